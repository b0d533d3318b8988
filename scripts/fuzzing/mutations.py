"""Ways to spoil a file: as bytes, as text, as a tree of tables and lists, and as a protobuf message."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["spoil_bytes", "spoil_json", "spoil_message", "spoil_tree", "spoil_yaml"]

NUMBERS = (0, -1, 1, 2, 7, 255, 65536, 2**31 - 1, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63), 2**64, 10**30)
REALS = (0.0, -0.0, 0.5, -1.5, 1e-45, 1e-320, 1e38, 1e39, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", " ", "x", "0", "1e999", "nan", "true", "²", "٣", "a" * 300, "a" * 100_000, "../x", "/etc/passwd", "a/b", "a\\b",
    "a\0b", "\x1b[31mred", "\ud7ff\uffff", "CON", ".", "..", "💥", "{{7*7}}", "<script>", "int8", "float32", "x" * 65,
)  # fmt: skip
#: Made anew each time, because they may be changed.
TREES: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, list, dict, lambda: [[]], lambda: {"": {}}, lambda: [None] * 3,
    lambda: list(range(1000)), lambda: {"a": {"b": {"c": [1]}}}, lambda: nested(70), lambda: nested(150),
)  # fmt: skip


def nested(depth: int) -> Any:
    """Lists in each other."""
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]
    return tree


def anything(rng: random.Random) -> Any:
    """A value that the field is unlikely to expect."""
    kind = rng.randrange(4)
    return rng.choice((NUMBERS, REALS, TEXTS)[kind]) if kind < 3 else rng.choice(TREES)()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    found, stack = [], [tree]
    while stack:
        node = stack.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in pairs:
            found.append((node, key))
            stack.append(child)
    return found


def _spoil_place(rng: random.Random, tree: Any) -> Any:
    places = _places(tree)
    if not places or rng.random() < 0.01:
        return anything(rng)
    # one of the outer places as often as one of the many inner ones
    outer = [place for place in places if place[0] is tree] or places
    node, key = rng.choice(rng.choice((outer, places)))
    action = rng.randrange(7)
    if action == 0:
        del node[key]
    elif action == 1:
        node[key] = _retyped(rng, node[key])
    elif action == 2 and isinstance(node, dict):
        node[rng.choice((str(key) + "x", str(key).upper(), *TEXTS[:12]))] = node.pop(key)
    elif action == 3 and isinstance(node, list):
        node.extend(copy.deepcopy(node[key]) for _ in range(rng.choice((1, 2, 50))))
    elif action == 4:
        other, name = rng.choice(places)
        value = copy.deepcopy(other[name])  # before it moves: no tree holds itself
        node[key] = value
    elif action == 5 and isinstance(node, list):
        rng.shuffle(node)
    else:
        node[key] = anything(rng)
    return tree


def _retyped(rng: random.Random, value: Any) -> Any:
    forms: list[Callable[[Any], Any]] = [str, lambda v: [v], lambda v: {"value": v}, lambda v: None, lambda v: bool(v)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        forms += [lambda v: -v, lambda v: v + 1, lambda v: v * 1000, lambda v: v + 0.5, lambda v: rng.choice(NUMBERS),
                  lambda v: rng.choice(REALS)]  # fmt: skip
    return rng.choice(forms)(value)


def spoil_tree(rng: random.Random, tree: Any) -> Any:
    """A tree with one to three mutations."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _spoil_place(rng, tree)
    return tree


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with flipped bits, a hole, a repeated part or an early end."""
    changed = bytearray(data)
    action = rng.randrange(6)
    start = rng.randrange(max(1, len(changed)))
    end = min(len(changed), start + rng.choice((1, 2, 4, 8, 64, 1024)))
    if action == 0:
        return bytes(changed[:start])
    if action == 1:
        del changed[start:end]
    elif action == 2:
        changed[start:start] = changed[start:end] * rng.choice((1, 3, 100))
    elif action == 3 and changed:
        changed[start:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
    elif action == 4 and len(changed) > 8:  # a number of four bytes, as formats have for sizes and offsets
        start = start // 4 * 4
        changed[start : start + 4] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(data))).to_bytes(4, "little")
    else:
        for _ in range(rng.choice((1, 2, 8, 50))):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _spoil_text(rng: random.Random, text: str) -> bytes:
    action = rng.randrange(7)
    if action == 0:
        return text.encode("utf-16")
    if action == 1:
        return b"\xef\xbb\xbf" + text.encode()
    if action == 2:
        return text.encode() + b"\xff\xfe"
    if action == 3:
        depth = rng.choice((100, 3000, 100_000))
        return rng.choice((b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth))
    if action == 4:
        return b"1" * 100_000
    if action == 5:
        return rng.choice((b"", b"null", b"\0" * 10, b"[]", b"{}", b'"x"', b"---\n", b"\t"))
    return spoil_bytes(rng, text.encode())


def spoil_json(rng: random.Random, tree: Any) -> bytes:
    """JSON text of a spoilt tree, or spoilt text of a tree."""
    action = rng.randrange(10)
    if action == 0:
        return _spoil_text(rng, json.dumps(tree))
    if action == 1:
        return spoil_bytes(rng, json.dumps(tree).encode())
    text = json.dumps(spoil_tree(rng, tree))
    if action == 2:
        return text.replace(":", ": 1" + "0" * 5000 + ', "x":', 1).encode()
    if action == 3 and text.startswith("{"):  # a key twice
        return (text[:-1] + "," + text[1:]).encode()
    return text.encode("utf-8", "surrogatepass")


def spoil_yaml(rng: random.Random, tree: Any) -> bytes:
    """YAML text of a spoilt tree, or text that YAML reads in ways of its own."""
    import yaml

    action = rng.randrange(8)
    text = yaml.safe_dump(tree, allow_unicode=True)
    if action == 0:
        return _spoil_text(rng, text)
    if action == 1:
        return spoil_bytes(rng, text.encode())
    if action == 2:
        odd = ("2024-13-45", "0b_", "0x_", "1:99:99", "!!binary x", "!!python/object:os.system x", "&a [*a]", "*none",
               "<<: 3", ".inf", "-.NaN", "! x", "|2-", "? [a]", "12e03", "0o9", "!!set {a}", "!!omap [a]")  # fmt: skip
        lines = text.splitlines()
        line = rng.randrange(len(lines))
        lines[line] = lines[line].split(":")[0] + ": " + rng.choice(odd)
        return "\n".join(lines).encode()
    if action == 3:
        levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
        return f"a0: &a0 [x]\n{levels}\n{text}".encode()
    return yaml.safe_dump(spoil_tree(rng, tree), allow_unicode=True).encode("utf-8", "replace")


def _messages(message: Message) -> list[Message]:
    found, stack = [], [message]
    while stack:
        node = stack.pop()
        found.append(node)
        for field, value in node.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                stack.extend(value if _repeated(field) else [value])
    return found


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    kinds = FieldDescriptor
    if field.type in (kinds.TYPE_STRING, kinds.TYPE_BYTES):
        text = rng.choice(TEXTS)
        return text.encode() if field.type == kinds.TYPE_BYTES else text
    if field.type in (kinds.TYPE_FLOAT, kinds.TYPE_DOUBLE):
        return rng.choice(REALS)
    if field.type == kinds.TYPE_ENUM:
        return rng.randrange(26)
    return rng.choice([number for number in NUMBERS if abs(number) < 2**31] + [3, 4, 5, 16, 200_000])


def spoil_message(rng: random.Random, message: Message, names: list[str]) -> None:
    """Change one field of a message, or of one inside it, in place.

    Args:
        rng: decides.
        message: any.
        names: texts that mean something in it, such as names of values.
    """
    everything = _messages(message)
    node = rng.choice(everything)
    filled = node.ListFields()
    action = rng.randrange(7)
    if not filled or action == 0:  # a field that was empty
        field = rng.choice(node.DESCRIPTOR.fields)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            part = getattr(node, field.name)
            same = [other for other in everything if other.DESCRIPTOR is field.message_type]
            if same:
                (part.add() if _repeated(field) else part).CopyFrom(copy.deepcopy(rng.choice(same)))
            return
        _set(rng, node, field, names)
        return
    field, value = rng.choice(filled)
    if action == 1:
        node.ClearField(field.name)
    elif _repeated(field):
        _spoil_list(rng, value, action, field)
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        _set(rng, node, field, names)


def _set(rng: random.Random, node: Message, field: FieldDescriptor, names: list[str]) -> None:
    value = rng.choice(names) if field.type == FieldDescriptor.TYPE_STRING and names else _scalar(rng, field)
    value = _scalar(rng, field) if rng.random() < 0.5 else value
    try:
        if _repeated(field):
            getattr(node, field.name).append(value)
        else:
            setattr(node, field.name, value)
    except (ValueError, UnicodeEncodeError):  # out of the field's range: the next mutation will do
        node.ClearField(field.name)


def _spoil_list(rng: random.Random, values: Any, action: int, field: FieldDescriptor) -> None:
    index = rng.randrange(len(values))
    if action == 2:
        del values[index]
    elif action == 3:
        values.extend([copy.deepcopy(values[index])])
    elif action == 4:
        order = list(copy.deepcopy(value) for value in values)
        rng.shuffle(order)
        del values[:]
        values.extend(order)
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        try:
            values[index] = _scalar(rng, field)
        except ValueError:
            del values[index]
