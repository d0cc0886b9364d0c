"""``python -m tests.fuzz [READER ...] [--inputs N] [--seed S] [--save FILE.json]``: hostile input for all readers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.fuzz.run import chosen, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help="readers by name, or by what their names begin with; all by default")
    parser.add_argument("--inputs", type=int, default=2000, help="of each reader; a slow one gets a tenth")
    parser.add_argument("--total", type=int, help="of all readers together, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--save", type=Path, help="write the counts here; readers that are not run keep theirs")
    parser.add_argument("--sources", default="now", help="what to call the sources that were run, in that file")
    given = parser.parse_args()
    readers = chosen(given.names)
    each = given.inputs if given.total is None else given.total // sum(0.1 if r.slow else 1 for r in readers)
    found, failed = {}, 0
    for reader in readers:
        start = time.monotonic()
        tally = fuzz(reader, max(1, int(each) // (10 if reader.slow else 1)), seed=given.seed, first=given.first)
        failed += tally.failed
        spent = time.monotonic() - start
        print(
            f"{reader.name:20} {tally.inputs:7} inputs  {tally.read:6} read  {tally.refused:6} refused  "
            f"{tally.failed:6} faults  {spent:6.1f} s",
            flush=True,
        )
        for fault, count in tally.faults.most_common():
            print(f"    {count:6}  {fault}  (first: --first {tally.first[fault]} --inputs 1)", flush=True)
        found[reader.name] = {
            "inputs": tally.inputs, "read": tally.read, "refused": tally.refused, "faults": dict(tally.faults.most_common()),
        }  # fmt: skip
        if given.save is not None:
            kept = json.loads(given.save.read_text(encoding="utf-8")) if given.save.exists() else {}
            kept.setdefault(given.sources, {})[reader.name] = found[reader.name]
            given.save.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(f['inputs'] for f in found.values())} inputs, {failed} faults")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
