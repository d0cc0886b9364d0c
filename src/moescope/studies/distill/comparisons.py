"""Two students beside each other, document by document: what a ratio of their errors is worth.

The unit over which one generalises is the held-out document (of Gaussian inputs, a block of rows): errors are averaged over
seeds first, then documents are drawn anew. Seeds are few, so that they enter by their sign alone: where the runs of single
seeds do not agree on it, the interval is widened until it holds every seed's own value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from moescope.stats import bootstrap_sums, expanded_percentiles
from moescope.study.verdicts import Effect

LEAST_SEEDS = 3  # fewer cannot show whether starts and orders of the data agree


@dataclass(frozen=True, eq=False)
class LogRatio:
    """The logarithm of a ratio of errors, or a difference of two such."""

    value: float
    by_seed: NDArray[np.float64]
    """(S,): of each seed alone"""
    draws: NDArray[np.float64]
    """(B,): with documents drawn anew"""
    documents: int

    @property
    def agrees(self) -> bool:
        """Whether every seed has the sign of the value."""
        return bool((np.sign(self.by_seed) == np.sign(self.value)).all())

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; NaN for fewer than two documents."""
        if self.documents < 2:
            return float("nan"), float("nan")
        low, high = expanded_percentiles(self.draws, self.documents)
        if self.agrees:
            return low, high
        return min(low, float(self.by_seed.min())), max(high, float(self.by_seed.max()))

    @property
    def p(self) -> float:
        """Two-sided, that it is 0: from the t distribution whose interval this is."""
        low, high = self.interval
        side = self.value - low if self.value > 0 else high - self.value
        t = stats.t(max(self.documents - 1, 1))
        return float(2 * t.sf(abs(self.value) / max(side, 1e-300) * t.ppf(0.975)))

    def effect(self, against: str, margin: float, **options: Any) -> Effect:
        """This as an effect; where nothing is to be lost (``no_worse``) its p is of the margin, not of 0."""
        p = None if options.get("no_worse") else self.p
        return Effect(self.value, *self.interval, against, margin, p, **{"share": False, "kind": "none found", **options})

    def __neg__(self) -> LogRatio:
        return LogRatio(-self.value, -self.by_seed, -self.draws, self.documents)

    def __sub__(self, other: LogRatio) -> LogRatio:
        """The difference of two, seeds paired; of draws of the same seed, documents too."""
        seeds = min(len(self.by_seed), len(other.by_seed))
        return LogRatio(
            self.value - other.value,
            self.by_seed[:seeds] - other.by_seed[:seeds],
            self.draws - other.draws,
            min(self.documents, other.documents),
        )


def log_ratio(worse: NDArray[np.float64], better: NDArray[np.float64], seed: int = 0) -> LogRatio:
    """log(error of ``worse`` / error of ``better``), above 0 where the second explains more.

    Args:
        worse, better: (S, D), the parts of the error that each document has, for each seed; the same seeds and documents.
        seed: of the draws, which differ between comparisons that are to be independent.
    """
    sums = bootstrap_sums(np.stack([worse.mean(0), better.mean(0)], axis=1), seed=seed)
    return LogRatio(
        value=math.log(worse.sum() / better.sum()),
        by_seed=np.log(worse.sum(1) / better.sum(1)),
        draws=np.log(sums[:, 0] / sums[:, 1]),
        documents=worse.shape[1],
    )


def compared(documents: pd.DataFrame, data: str, worse: str, better: str, seed: int = 0) -> LogRatio | None:
    """:func:`log_ratio` of two students on one source of data, from the table ``documents``; None where no seed has both."""
    here = documents[documents["data"] == data]
    sides = [here[here["student"] == name].pivot(index="seed", columns="document", values="error") for name in (worse, better)]
    seeds = sides[0].index.intersection(sides[1].index)
    if not len(seeds):
        return None
    first, second = (side.loc[seeds].to_numpy(dtype=float) for side in sides)
    return log_ratio(first, second, seed)


def summary_table(students: pd.DataFrame) -> pd.DataFrame:
    """Test FVU of each student over its seeds: mean and a 95 % t interval on the logarithm (NaN with one seed)."""
    rows = []
    tested = students[students["chosen"] & students["fvu"].notna()]
    for (data, name), part in tested.groupby(["data", "student"], sort=False):
        low, high = log_interval(part["fvu"].to_numpy())
        first = part.iloc[0]
        rows.append(
            {
                "data": data,
                "student": name,
                "kind": first["kind"],
                "router": first["router"],
                "active_neurons": int(first["active_neurons"]),
                "fvu": float(np.exp(np.log(part["fvu"]).mean())),
                "low": low,
                "high": high,
                "worst": float(part["fvu"].max()),
                "seeds": len(part),
                "lr": float(first["lr"]),
                "multiply_adds": int(first["multiply_adds"]),
                "router_multiply_adds": int(first["router_multiply_adds"]),
                "bytes_batch_1": int(first["bytes_batch_1"]),
                "bytes_large_batch": float(part["bytes_large_batch"].mean()),
                "dead": float(part["dead"].mean()),
                "load_entropy": float(part["load_entropy"].mean()),
            }
        )
    return pd.DataFrame(rows)


def ratio_table(summary: pd.DataFrame, documents: pd.DataFrame) -> pd.DataFrame:
    """Error of the dense student over that of each expert student with as many active neurons, document by document.

    ``ratio`` has a 95 % interval over documents; ``by_seed`` are the ratios of single seeds.
    """
    rows = []
    dense = summary[summary["kind"] == "dense"].set_index(["data", "active_neurons"])["student"]
    for row in summary[summary["kind"] != "dense"].itertuples():
        rival = dense.get((row.data, row.active_neurons))
        found = None if rival is None else compared(documents, str(row.data), rival, str(row.student))
        if found is None:
            continue
        low, high = found.interval
        rows.append(
            {
                "data": row.data,
                "student": row.student,
                "kind": row.kind,
                "router": row.router,
                "active_neurons": row.active_neurons,
                "dense": rival,
                "ratio": math.exp(found.value),
                "low": math.exp(low),
                "high": math.exp(high),
                "documents": found.documents,
                "by_seed": np.exp(found.by_seed).tolist(),
            }
        )
    columns = ["data", "student", "kind", "router", "active_neurons", "dense", "ratio", "low", "high", "documents", "by_seed"]
    return pd.DataFrame(rows, columns=columns)


def log_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """t interval of the geometric mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    logs = np.log(values)
    half = stats.t.ppf(0.5 + level / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))
