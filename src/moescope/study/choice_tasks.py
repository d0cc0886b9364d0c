"""Tasks of multiple choice on two models, example by example: does the second do as well at what the first can do at all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.stats import group_bootstrap
from moescope.study.harness import run_tasks
from moescope.study.paired import paired_effect
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control


def task_table(
    models: Mapping[str, Any], tasks: Sequence[str], *, include: Path | None, limit: int | None, seed: int
) -> pd.DataFrame:
    """Table ``tasks``: accuracy of two models on the same examples, beside chance.

    Args:
        models: by name, as the harness takes them, the first the one that the second is held against. The names are columns.

    Raises:
        InputError: the harness is not installed, does not know a task, or a task is not one of multiple choice.
    """
    samples = {
        name: run_tasks(model, tasks, include=include, limit=limit, seed=seed)["samples"] for name, model in models.items()
    }
    first, second = models
    rows = []
    for task in samples[first]:
        right = {name: _right(task, found[task]) for name, found in samples.items()}
        chance = np.array([1 / len(s["arguments"]) for s in _ordered(samples[first][task])])
        documents = np.arange(len(chance))
        low, high = group_bootstrap(right[first] - chance, documents, seed=seed)
        change = paired_effect(right[second], right[first], documents, f"the {first} model", 0.0, seed)
        rows.append(
            {
                "task": task,
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
        )
    return pd.DataFrame(rows)


def _ordered(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def _right(task: str, samples: Sequence[dict[str, Any]]) -> np.ndarray:
    """float64 (N,): whether each example is right."""
    if not samples or any("acc" not in sample for sample in samples):
        raise InputError(f"{task!r} is no task of multiple choice that is scored by accuracy (acc)", "eval_task")
    return np.array([float(sample["acc"]) for sample in _ordered(samples)])


def task_cases(table: pd.DataFrame, first: str, second: str, margin: float = 0.02) -> list[Case | Claim]:
    """Is the second model as good at each task that the first can do at all?"""
    found: list[Case | Claim] = []
    for row in table.to_dict("records"):
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
