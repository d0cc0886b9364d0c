"""Writes `docs/fuzz.md` from what `python -m tests.fuzz --save benchmarks/results/fuzz.json` measured.

python tools/fuzz.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "fuzz.md", ROOT / "benchmarks" / "results" / "fuzz.json"


def page() -> str:
    """The whole page."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    before, now = found["before"], found["now"]
    most = max(row["inputs"] for row in now.values())
    lines = [
        "# Hostile input",
        "",
        "Written by `python tools/fuzz.py` from `benchmarks/results/fuzz.json`.",
        "",
        "Every reader is given damaged versions of a valid input: cut short, bits flipped, types swapped in JSON, nested",
        "100,000 deep, numbers of 5,000 digits, NaN, keys twice, foreign encodings, headers that lie, archives that",
        "unpack to hundreds of megabytes, scripts and control characters in names. Manifests are mostly given the",
        "checksums of the damaged contents, so that these are reached. It may end in two ways: one printable line that",
        "names the file, or a use that succeeds; within 5 seconds of processor time and 512 MiB. Anything else is a",
        "fault: a traceback of any kind, mostly.",
        "",
        "`make test` runs 200 inputs of each reader, `make test-all` 2,000, `make fuzz` a million (a tenth for those that",
        f"load a model). Below: `python -m tests.fuzz --inputs {most}`, on the sources before the readers were mended (commit",
        "791fae1) and now, the same harness and the same inputs.",
        "",
        "| reader | inputs | faults before | faults now | read now | refused now |",
        "|---|---|---|---|---|---|",
        *(_row(name, before.get(name), row) for name, row in now.items()),
        "",
        f"Together: {_faults(before.values())} faults of {sum(r['inputs'] for r in before.values()):,} inputs before,",
        f"{_faults(now.values())} of {sum(r['inputs'] for r in now.values()):,} now.",
        "",
        "## A million of them",
        "",
        "`make fuzz SEED=1`: other inputs of the same kinds, and the faults that they found. Where a reader has some, the kind",
        "is mended since, and what was found is refused in words. Three of these inputs took longer than five seconds of a",
        "loaded processor and one, of an adapter, more memory: they are not looked into.",
        "",
        "| reader | inputs | faults | read | refused |",
        "|---|---|---|---|---|",
        *(f"| {n} | {r['inputs']} | {_faults([r])} | {r['read']} | {r['refused']} |" for n, r in found["more"].items()),
        "",
        f"Together {_faults(found['more'].values())} faults, found and mended, of "
        f"{sum(r['inputs'] for r in found['more'].values()):,}.",
    ]
    return "\n".join(lines) + "\n"


def _faults(rows: Any) -> int:
    return sum(sum(row["faults"].values()) for row in rows)


def _row(name: str, before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    had = "not run" if before is None else f"{_faults([before])}"
    if before is not None and before["inputs"] != now["inputs"]:
        had += f" of {before['inputs']}"
    return f"| {name} | {now['inputs']} | {had} | {_faults([now])} | {now['read']} | {now['refused']} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
