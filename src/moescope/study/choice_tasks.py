"""Tasks of lm-evaluation-harness on two models, those of multiple choice example by example: does the second do as well at what
the first can do at all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap
from moescope.study.harness import run_tasks
from moescope.study.paired import paired_effect
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_ACCURACY = "acc"


def task_table(
    models: Mapping[str, Any], tasks: Sequence[str], *, include: Path | None, limit: int | None, seed: int
) -> pd.DataFrame:
    """Table ``tasks``: of tasks of multiple choice the accuracy of two models on the same examples, beside chance; of every
    task the harness's other metrics, which stand beside nothing.

    Args:
        models: by name, as the harness takes them, the first the one that the second is held against. The names are columns.

    Raises:
        InputError: the harness is not installed, or does not know a task.
    """
    found = {name: run_tasks(model, tasks, include=include, limit=limit, seed=seed) for name, model in models.items()}
    first, second = models
    rows = [
        _chosen(task, {name: given["samples"][task] for name, given in found.items()}, seed)
        for task, samples in found[first]["samples"].items()
        if _is_choice(samples)
    ]
    known = {row["task"] for row in rows}
    others = {name: _metrics(given["results"], known) for name, given in found.items()}
    for (task, metric), value in others[first].items():
        count = len(found[first]["samples"].get(task, ()))
        other = others[second][task, metric]
        own = {"task": task, "metric": metric, "n": count, first: value, second: other}
        rows.append({**own, "change": other - value, "used": False})
    ends = ("low", "high")
    columns = ("task", "metric", "n", "chance", first, *(f"{first}_{end}" for end in ends), second, "change", *ends, "used")
    return pd.DataFrame(rows, columns=[*columns])


def _chosen(task: str, samples: Mapping[str, Sequence[dict[str, Any]]], seed: int) -> dict[str, Any]:
    """Two models' accuracy on one task of multiple choice."""
    (first, second), right = samples, {name: _right(of) for name, of in samples.items()}
    chance = np.array([1 / len(s["arguments"]) for s in _ordered(samples[first])])
    documents = np.arange(len(chance))
    low, high = group_bootstrap(right[first] - chance, documents, seed=seed)
    change = paired_effect(right[second], right[first], documents, f"the {first} model", 0.0, seed)
    return {
        "task": task,
        "metric": _ACCURACY,
        "n": len(chance),
        "chance": float(chance.mean()),
        first: float(right[first].mean()),
        f"{first}_low": float(chance.mean() + low),
        f"{first}_high": float(chance.mean() + high),
        second: float(right[second].mean()),
        "change": change.value,
        "low": change.low,
        "high": change.high,
        "used": bool(low > 0),
    }


def _is_choice(samples: Sequence[dict[str, Any]]) -> bool:
    """Whether each example offers several answers, of which one is right."""
    return bool(samples) and all(_ACCURACY in s and len(s["arguments"]) > 1 for s in samples)


def _metrics(results: Mapping[str, Mapping[str, Any]], known: set[str]) -> dict[tuple[str, str], float]:
    """The harness's figures by task and metric, without the accuracy of ``known`` tasks."""
    found = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric = key.partition(",")[0]
            if not isinstance(value, int | float) or metric in ("alias", "sample_len") or metric.endswith("_stderr"):
                continue
            if not (metric == _ACCURACY and task in known):
                found[task, metric] = float(value)
    return found


def _ordered(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def _right(samples: Sequence[dict[str, Any]]) -> np.ndarray:
    """float64 (N,): whether each example is right."""
    return np.array([float(sample[_ACCURACY]) for sample in _ordered(samples)])


def task_cases(table: pd.DataFrame, first: str, second: str, margin: float = 0.02) -> list[Case | Claim]:
    """Is the second model as good at each task that the first can do at all?"""
    found: list[Case | Claim] = []
    of_choice = set(table["task"][table["chance"].notna()])
    for row in table.to_dict("records"):
        if not row["chance"] > 0:  # NaN
            if row["task"] not in of_choice:
                words = f"no task of multiple choice: what guessing would give is not known; the {first} model {row[first]:.4g}"
                said = f"{row['task']}, {row['metric']}: the {second} model"
                found.append(Claim(said, row[second], outcome="not tested", words=words))
            continue
        name = f"{row['task']}: the {second} model is no worse than the {first}"
        if not row["used"]:
            words = (
                f"left out: the {first} model does not beat chance on it ({row[first]:.1%}, {row[f'{first}_low']:.1%} to "
                f"{row[f'{first}_high']:.1%}, beside {row['chance']:.1%}, {row['n']} examples)"
            )
            found.append(Claim(name, row[second], outcome="not tested", words=words))
            continue
        effect = Effect(row["change"], row["low"], row["high"], f"the {first} model", margin, no_worse=True)
        control = Control(f"the {first} model", row[first])
        words = f"accuracy on {row['n']} examples, paired; guessing gives {row['chance']:.1%}"
        ends = (row[second] - row["change"] + row["low"], row[second] - row["change"] + row["high"])
        found.append(Case(name, row[second], effect, interval=ends, control=control, words=words))
    return found
