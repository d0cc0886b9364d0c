"""How often each printed interval covers what it is of, and what each p is worth under its null.

    python -m benchmarks.truths.coverage                        # 1,000 draws of every routine at three sizes; table and JSON
    python -m benchmarks.truths.coverage --only nested --draws 200 --jobs 4 --out coverage.json

Numbers come from the product's own functions on planted arrays. Rows already in the file with as many draws are kept, so that a
run that was cut off goes on where it stopped. With sources only: ``PYTHONPATH=src:. python -m benchmarks.truths.coverage``; of
the libraries numpy, scipy, scikit-learn, pandas and torch are enough.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core: their own threads would only be in each other's way

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.truths import bare
from benchmarks.truths.routine import Routine

RESULTS = Path(__file__).resolve().parent.parent / "results" / "coverage.json"
COVERED, SIZE, SAFE, UNIFORM = (0.93, 0.97), (0.03, 0.07), 0.07, 1e-3


@cache
def routines() -> dict[str, Routine]:
    """Every routine by ``kind: name``."""
    bare.prepare()
    from benchmarks.truths import calibration, intervals

    both = [*intervals.ROUTINES, *calibration.ROUTINES]
    return {f"{'p' if r.kind.endswith('p') else r.kind}: {r.name}": r for r in both}


def one(name: str, n: int, seed: int) -> tuple[float, ...]:
    """The numbers of one draw."""
    return tuple(float(v) for v in routines()[name].draw(n, seed))


def row_of(name: str, n: int, drawn: list[tuple[float, ...]], seconds: float) -> dict[str, Any]:
    """A row of the table from all draws of a routine at one size."""
    import numpy as np
    from scipy.stats import kstest

    routine, numbers = routines()[name], np.array(drawn)
    row: dict[str, Any] = {"routine": name, "kind": routine.kind, "n": n, "draws": len(drawn), "seconds": round(seconds, 1)}
    if routine.kind == "interval":
        value, low, high, planted = numbers.T
        truth = np.where(np.isnan(planted), value.mean(), planted)
        share = float(((low <= truth) & (truth <= high)).mean())
        row |= {"coverage": share, "width": float((high - low).mean()), "missing": float(np.isnan(low).mean())}
        row["passed"] = COVERED[0] <= share <= (1.0 if n <= routine.wide else COVERED[1])
        row["wide"] = n <= routine.wide
    elif routine.kind in ("risk", "mean"):
        mean, error = float(numbers.mean()), float(numbers.std()) / len(numbers) ** 0.5
        row |= {"share" if routine.kind == "risk" else "mean": mean, "bound": routine.bound}
        row["passed"] = mean <= routine.bound + 3 * error
    else:
        p = numbers[:, 0]
        test = kstest(p, "uniform")
        size = float((p <= 0.05 + 1e-12).mean())
        row |= {"size": size, "size_01": float((p <= 0.01 + 1e-12).mean())}
        row |= {"distance": float(test.statistic), "p_uniform": float(test.pvalue)}
        ends = (0.0, SAFE) if routine.kind == "safe p" else SIZE
        row["passed"] = ends[0] <= size <= ends[1] and (routine.kind != "exact p" or test.pvalue >= UNIFORM)
    row["passed"] = bool(row["passed"])
    return row


def measured(pool: ProcessPoolExecutor, name: str, n: int, draws: int, jobs: int) -> dict[str, Any]:
    """The row of a routine at one size.

    A share of 1,000 draws has an error of 0.7 points, and of 200 rows some are outside by luck: a row that is outside is
    measured again on four times as many draws of its own, and these decide. What the first said stays in the row.
    """
    first: dict[str, Any] = {}
    for seeds in (range(draws), range(draws, 5 * draws)):
        began = time.time()
        step = max(1, len(seeds) // (8 * jobs))
        row = row_of(name, n, list(pool.map(partial(one, name, n), seeds, chunksize=step)), time.time() - began)
        if row["passed"]:
            break
        first = first or {"first": row}
    return row | {"asked": draws} | first


def line(row: dict[str, Any]) -> str:
    """A row of the table in words."""
    again = f" ({row['draws']:,} further draws)" if "first" in row else ""
    head = f"{'ok   ' if row['passed'] else 'FAULT'} {row['routine']}, N = {row['n']}{again}: "
    if "coverage" in row:
        return f"{head}covers {row['coverage']:.1%}, width {row['width']:.3g}"
    if "size" in row:
        return f"{head}p <= .05 in {row['size']:.1%}, <= .01 in {row['size_01']:.1%}; KS {row['distance']:.3f}"
    return f"{head}{row.get('share', row.get('mean')):.3f}, promised at most {row['bound']:g}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Coverage of every interval and calibration of every p.")
    parser.add_argument("--only", default="", help="routines whose name holds this")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    known = {(row["routine"], row["n"]): row for row in kept if row["asked"] == options.draws}
    chosen = [name for name in routines() if options.only in name]
    here: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in chosen:
            for n in routines()[name].sizes:
                if (name, n) not in known:
                    known[name, n] = measured(pool, name, n, options.draws, options.jobs)
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    draft = options.out.with_suffix(".part")
                    draft.write_text(json.dumps(list(known.values()), indent=1) + "\n", encoding="utf-8")
                    draft.replace(options.out)
                here.append(known[name, n])
                print(line(here[-1]), flush=True)
    missed = sum(not row["passed"] for row in here)
    print(f"{len(chosen)} routines, {len(here)} rows of {options.draws} draws, {missed} outside the bounds")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
