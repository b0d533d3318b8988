"""The command ``prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from narrowcast.base.errors import UserError
from narrowcast.cli.options import parse_size
from narrowcast.cli.tables import print_json, print_table, say, suggest

__all__ = ["run"]


def run(
    model: Path,
    out: Path,
    attention: str,
    size: str | None,
    keep_head: bool,
    *,
    force: bool,
    json: bool,
) -> None:
    """Write the prepared float graph and say what was done to it."""
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.base.writing import check_file, write_file
        from narrowcast.bundle.contents import proto_bytes
        from narrowcast.graph import load
    if out.suffix != ".onnx":
        raise UserError(f"{out} is no model name", "end it in .onnx")
    check_file(out, force)
    if out.exists() and out.resolve() == model.resolve():
        raise UserError(f"{out} is the model itself", "choose another --out")
    loaded = load(model, size=parse_size(size), keep_head=keep_head, attention=attention_choice(attention))
    write_file(out, proto_bytes(loaded.to_stock()), force=force)
    outputs = [(str(v.name), "x".join(str(d) for d in v.shape or ())) for v in loaded.ir.graph.outputs]
    if json:
        print_json(
            {
                "model": str(out),
                "task": loaded.task,
                "outputs": dict(outputs),
                "notes": list(loaded.notes),
                "difference": loaded.difference,
            }
        )
        return
    for note in loaded.notes:
        say(f"- {note}")
    worst = ", ".join(f"{name} {value:.2g}" for name, value in loaded.difference.items())
    say(f"- largest difference to {loaded.source} on a random image: {worst}")
    print_table("", ("output", "shape"), outputs, 2)
    say(f"{out} written")
    suggest(("narrowcast", "quantize", out, "--images", "FOLDER", "--out", out.with_suffix("")))


def attention_choice(text: str) -> Literal["keep", "rewrite"]:
    """``keep`` or ``rewrite``.

    Raises:
        UserError: anything else.
    """
    if text == "keep":
        return "keep"
    if text == "rewrite":
        return "rewrite"
    raise UserError(f"--attention {text} is unknown", "use keep or rewrite")
