"""``python tests/mutants [NAME ...] [--jobs N] [--list]``: each fault, put into a copy of the sources, must fail a test."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run by its folder's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.path.remove(str(Path(__file__).resolve().parent))

from tests.mutants.faults import FAULTS
from tests.mutants.run import check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults by name, or by what their names begin with; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at a time")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    given = parser.parse_args()
    unknown = [name for name in given.names if not any(f.name.startswith(name) for f in FAULTS)]
    if unknown:
        parser.error(f"no fault is called {', '.join(unknown)}; --list names them")
    chosen = [f for f in FAULTS if not given.names or any(f.name.startswith(name) for name in given.names)]
    if given.list:
        for fault in chosen:
            print(f"{fault.name}: {fault.breaks} ({fault.file})")
        return 0
    return check(chosen, jobs=given.jobs)


if __name__ == "__main__":
    sys.exit(main())
