"""Puts what `python benchmarks/serve_load.py` measured into `docs/serve.md`.

python tools/serve_load.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULT = ROOT / "docs" / "serve.md", ROOT / "benchmarks" / "results" / "serve_load.json"
MARKS = ("<!-- written by tools/serve_load.py -->", "<!-- end -->")


def page() -> str:
    """The whole page, with the part between the marks written anew."""
    told = json.loads(RESULT.read_text(encoding="utf-8"))
    machine, memory = told["machine"], told["memory_mib"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores for server and clients",
        f"(load average at the end {told['load_average'][0]}),",
        f"{told['seconds']:g} seconds; seconds a request took:",
        "",
        "| clients | of | answered | refused | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in told["rows"]),
        "",
        f"The server's memory: at most {memory['first_third']} MiB in the first third of that time and",
        f"{memory['last_third']} MiB in the last. It wrote {told['log_bytes']} bytes to its log.",
    ]
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0], 1)
    return "\n".join([before + MARKS[0], *lines, MARKS[1] + rest.split(MARKS[1], 1)[1]])


def _line(row: dict[str, Any]) -> str:
    times = [f"{row[p]:.2f}" if p in row else "" for p in ("p50", "p95", "p99")]
    share = row["refused"] / max(1, row["refused"] + row["answered"] + row["lost"])
    return f"| {row['clients']} | {row['kind']} | {row['answered']} | {share:.0%} | {' | '.join(times)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
