"""``inspect`` on an ``.espdl`` file, ours or Espressif's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from narrowcast.base.reading import reading
from narrowcast.cli.tables import print_json, print_table, say


def inspect_espdl(path: Path, nodes: bool, json: bool) -> None:
    """Inputs and outputs, operators and sizes; every node on request."""
    from narrowcast.chips.esp.codec import read_espdl
    from narrowcast.chips.esp.file import describe

    file = read_espdl(path)
    with reading(path, "copy or export it again"):
        found = describe(file)
    if json:
        print_json(asdict(found))
        return
    test = "with" if found.test_vector else "without"
    say(f"{path}: {found.producer or 'unknown producer'}, {len(found.nodes)} nodes, {test} a test vector")
    say(
        f"{found.bytes:,} bytes, of them {found.constant_bytes:,} constants ({found.weight_bytes:,} packed filters); "
        f"largest tensor between nodes {found.largest_activation:,} bytes"
    )
    for key, value in found.metadata.items():
        say(f"{key}: {value}")
    values = [(v.direction, v.name, v.dtype, v.shape, str(v.exponent)) for v in found.values]
    print_table("", ("", "name", "type", "shape", "exponent"), values, 4)
    if not nodes:
        print_table("", ("operator", "nodes"), [(name, str(count)) for name, count in found.operators.items()])
        say("--nodes shows every node")
        return
    rows = [
        (
            n.name,
            n.op_type,
            n.type,
            n.shape,
            n.exponents,
            n.weight_layout,
            n.weight_exponents,
            n.details,
            f"{n.bytes:,}",
        )
        for n in found.nodes
    ]
    columns = ("node", "type", "kernel", "shape", "exponents", "weights", "weight exp.", "details", "bytes")
    print_table("", columns, rows, 8)
