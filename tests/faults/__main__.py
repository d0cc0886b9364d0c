"""Every fault at every place, and the table of it in docs/faults.md: ``make faults``, some minutes."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.check import Tally, damage_everywhere, strike_everywhere
from tests.faults.commands import COMMANDS, interrupted, two_at_once
from tests.faults.kinds import kinds
from tests.faults.strike import Fault

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- written by python -m tests.faults -->", "<!-- end -->"
FLIPS, CUTS = 400, 40
FAULTS: tuple[Fault, ...] = ("kill", "full disk", "read-only")


def main(only: list[str]) -> int:
    """Run the kinds and commands whose names hold one of ``only``, or all; only then the page is written."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moescope-faults-") as folder:
        work = Path(folder)
        rows = [
            "| written | kill, new | kill, old there | full disk | read-only | one bit flipped | cut off |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, kind in kinds(work).items():
            if only and not any(part in name for part in only):
                continue
            began = time.monotonic()
            here = work / "here"
            here.mkdir()
            # a figure is drawn anew for each point
            step = 8 if "figures" in name else 1
            tallies = [strike_everywhere(kind, here, "kill", replacing=False, step=step)]
            if not kind.replaced:
                tallies.append(Tally())
            for fault in FAULTS[not kind.replaced :]:
                tallies.append(strike_everywhere(kind, here, fault, replacing=kind.replaced, step=step))
            tallies += damage_everywhere(kind, here, flips=FLIPS, cuts=CUTS)
            here.rmdir()
            rows.append(f"| {name} | {' | '.join(map(_cell, tallies))} |")
            wrong += [line for tally in tallies for line in tally.wrong]
            print(f"{rows[-1]} {time.monotonic() - began:.0f} s", flush=True)
        rows += ["", "| command | kill −9 | SIGINT | SIGTERM | run again | two at once |", "|---|---|---|---|---|---|"]
        for command in COMMANDS:
            if only and command not in only:
                continue
            here = work / command
            here.mkdir()
            both = two_at_once(command, here)
            _clear(here)
            found = [*interrupted(command, here).values(), (1, both)]
            rows.append(f"| `{command}` | {' | '.join(f'{n - len(w)} of {n}' for n, w in found)} |")
            wrong += [f"{command}: {line}" for _, lines in found for line in lines]
            print(rows[-1], flush=True)
    print(*wrong, sep="\n")
    if not only:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text("\n".join([before + BEGIN, *rows, END + rest.partition(END)[2]]), encoding="utf-8")
    return 1 if wrong else 0


def _cell(tally: Tally) -> str:
    return f"{tally.struck - len(tally.wrong)} of {tally.struck}" if tally.struck else ""


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
