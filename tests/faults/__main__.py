"""Every fault at every place, counted in faults.json, from which docs/faults.md has its table: ``make faults``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from moescope.files.atomic import write_atomic
from moescope.files.lock import locked
from tests.faults.check import Tally, damage_everywhere, strike_everywhere
from tests.faults.commands import COMMANDS, FAULTS_OF_COMMANDS, of_command
from tests.faults.kinds import kinds
from tests.faults.strike import Fault

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
KEPT = Path(__file__).with_name("faults.json")
BEGIN, END = "<!-- written by python -m tests.faults -->", "<!-- end -->"
FLIPS, CUTS = 400, 40
FAULTS: tuple[Fault, ...] = ("kill", "full disk", "read-only")
OF_KINDS = ("kill, new", "kill, old there", "full disk", "read-only", "one bit flipped", "cut off")


def main(only: list[str]) -> int:
    """Run the kinds and commands whose names hold one of ``only``, or all. What was found takes the place of what is kept."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moescope-faults-") as folder:
        work = Path(folder)
        for name, kind in kinds(work / "made").items() if not set(only) or set(only) - set(COMMANDS) else ():
            if only and not any(part in name for part in only):
                continue
            began = time.monotonic()
            here = work / "here"
            here.mkdir()
            # a figure is drawn anew for each point
            step = 12 if "figures" in name else 1
            tallies = [strike_everywhere(kind, here, "kill", replacing=False, step=step)]
            if not kind.replaced:
                tallies.append(Tally())
            for fault in FAULTS[not kind.replaced :]:
                tallies.append(strike_everywhere(kind, here, fault, replacing=kind.replaced, step=step))
            tallies += damage_everywhere(kind, here, flips=FLIPS, cuts=CUTS)
            here.rmdir()
            wrong += _keep("written", name, dict(zip(OF_KINDS, tallies, strict=True)), began)
        for command in COMMANDS:
            if only and command not in only:
                continue
            began = time.monotonic()
            (work / command).mkdir()
            wrong += _keep("command", command, of_command(command, work / command), began)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def _keep(what: str, name: str, tallies: dict[str, Tally], began: float) -> list[str]:
    """Keep the counts of one row, and write the page anew; gives what was wrong."""
    with locked(KEPT, wait=True):  # parts may run beside each other
        kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        cells = {fault: [tally.struck - len(tally.wrong), tally.struck] for fault, tally in tallies.items() if tally.struck}
        kept.setdefault(what, {})[name] = cells
        write_atomic(KEPT, [(json.dumps(kept, indent=1) + "\n").encode()])
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        page = "\n".join([before + BEGIN, *table_lines(kept), END + rest.partition(END)[2]])
        write_atomic(PAGE, [page.encode()])
    print(f"{name}: {cells} {time.monotonic() - began:.0f} s", flush=True)
    return [f"{name}, {fault}: {line}" for fault, tally in tallies.items() for line in tally.wrong]


def table_lines(kept: dict[str, Any]) -> list[str]:
    """The tables of the page, from the counts that are kept."""
    lines: list[str] = []
    for what, faults in (("written", OF_KINDS), ("command", FAULTS_OF_COMMANDS)):
        lines += [*([""] if lines else []), f"| {what} | {' | '.join(faults)} |", "|" + "---|" * (1 + len(faults))]
        for name, cells in kept.get(what, {}).items():
            found = [f"{cells[f][0]} of {cells[f][1]}" if f in cells else "" for f in faults]
            lines.append(f"| {name if what == 'written' else f'`{name}`'} | {' | '.join(found)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
