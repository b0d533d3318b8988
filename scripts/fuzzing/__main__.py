"""``scripts/fuzz``: spoilt files for every loader; exit code 1 when one ends in a traceback, hangs or gets through."""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

#: Seconds after which a hang in somebody else's C code ends the run with the stacks of all threads.
LAST_PATIENCE = 600


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="inputs")
    parser.add_argument("--start", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--only", type=int, help="run this input alone, show its traceback, keep its files here")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB of address space that the process may have")
    options = parser.parse_args()
    limit = int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    faulthandler.enable()
    from fuzzing.driver import fuzz
    from fuzzing.seeds import make_seeds

    alone = options.only is not None
    numbers = range(options.only, options.only + 1) if alone else range(options.start, options.start + options.count)
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        make_seeds(Path(folder) / "seeds")
        summary = fuzz(numbers, options.seed, Path(folder) / "seeds", verbose=alone)
    cases: dict[str, Counter[str]] = {}
    for (case, end), count in sorted(summary.ends.items()):
        cases.setdefault(case, Counter())[end] += count
    for case, ends in cases.items():
        print(f"{case:16} {sum(ends.values()):6}: " + ", ".join(f"{count} x {end}" for end, count in ends.items()))
    kinds = Counter(end for (_, end), count in summary.ends.items() for _ in range(count) if end not in "012")
    print(
        f"{len(numbers)} inputs in {summary.seconds:.0f} s, slowest {summary.slowest:.1f} s, memory "
        f"{summary.memory / 2**30:.2f} GiB: {kinds['traceback']} tracebacks, {kinds['hang']} hangs, "
        f"{sum(kinds.values()) - kinds['traceback'] - kinds['hang']} other failures; again: scripts/fuzz --only NUMBER"
    )
    sys.exit(bool(summary.failures))


if __name__ == "__main__":
    main()
