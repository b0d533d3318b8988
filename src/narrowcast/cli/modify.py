"""The command ``modify``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from narrowcast.cli.tables import print_json, print_table, say, suggest

__all__ = ["run"]


def run(
    path: Path,
    remove_dequantize: Sequence[str],
    remove: Sequence[str],
    nodes: Sequence[str],
    out: Path,
    *,
    force: bool,
    json: bool,
) -> None:
    """Write the bundle with other ends and print what enters and leaves it."""
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.modify import modify
    bundle = open_bundle(path)
    changed = modify(
        bundle,
        out=out,
        remove_dequantize=_split(remove_dequantize),
        remove=_split(remove),
        nodes=_split(nodes),
        force=force,
    )
    manifest = changed.manifest
    if json:
        outputs = [{"name": o.name, "dtype": o.chip_dtype, "shape": list(o.shape)} for o in manifest.outputs]
        print_json({"bundle": str(out), **manifest.modified, "outputs": outputs})
        return
    for entry in manifest.modified.get("removed", ()):
        say(f"- removed {entry['type']} {entry['node']}")
    if "input_rounding" in manifest.modified and manifest.input_encoding is not None:
        code = manifest.input_encoding
        say(f"- {manifest.input_name} enters as {code['dtype']}, scale {code['scale']:.6g}, zero point "
            f"{code['zero_point']}")  # fmt: skip
    integers = set(manifest.modified["dequantize"])
    rows = [
        (o.name, "x".join(map(str, o.shape)), o.chip_dtype if o.name in integers else "float32",
         "-" if o.axis is None or o.name not in integers else str(o.axis))
        for o in manifest.outputs
    ]  # fmt: skip
    print_table("", ("output", "shape", "leaves as", "scales along axis"), rows, 4)
    say(f"{out} written")
    suggest(("narrowcast", "inspect", out))


def _split(names: Sequence[str]) -> list[str]:
    """Names given one by one or with ``,``, ``;`` or spaces between."""
    return [part for name in names for part in re.split(r"[,;\s]+", name) if part]
