"""The figures of steering, pruning, robustness and transfer: drawn from their tables, left out without them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moescope.study.result import StudyResult

EFFECTS = pd.DataFrame(
    [
        {
            "steering": name,
            "match": "overall",
            "category": category,
            "target": category == "code",
            "effect": 0.1 * i,
            "low": np.nan if i == 2 else 0.1 * i - 0.05,
            "high": np.nan if i == 2 else 0.1 * i + 0.05,
            "random_mean": 0.0,
            "random_low": -0.1,
            "random_high": 0.1,
        }
        for name in ("ban $x$", "route like code", "third")
        for i, category in enumerate(("code", "math", "wikitext", "selectivity"))
    ]
)
PRUNING = pd.DataFrame(
    [
        {"criterion": c, "ratio": r, "bytes": 1 - r, "effect": r, "low": r - 0.1, "high": r + 0.1}
        for c in ("reap", "frequency", "mass", "8-bit", "random")
        for r in (0.125, 0.5)
    ]
)
CHANGES = pd.DataFrame(
    [
        {
            "change": c,
            "relative": 0.2,
            "relative_low": 0.1,
            "relative_high": 0.3,
            "flips": 0.0,
            "flips_low": 0.0,
            "flips_high": 0.1,
        }
        for c in ("identity", "typo")
    ]
)
ATTACK = pd.DataFrame({"margin": [2.0, 1.0], "one_random": [1.0, 1.0], "best_random": [0.5, -0.2], "search": [-1.0, -2.0]})
SIMILARITY = pd.DataFrame({"layer_a": [None, 0, 0, 3, 3], "layer_b": [None, 1, 2, 1, 2], "rho": [0.4, 0.1, 0.2, 0.3, 0.4]})


@pytest.mark.parametrize(
    ("kind", "tables", "names"),
    [
        ("steer", {"effects": EFFECTS}, ["effects"]),
        ("prune", {"pruning": PRUNING}, ["pruning"]),
        ("robustness", {"changes": CHANGES, "attack": ATTACK}, ["changes", "search"]),
        ("robustness", {"changes": CHANGES}, ["changes"]),
        ("transfer", {"similarity": SIMILARITY}, ["layers"]),
        ("steer", {"effects": EFFECTS[:0]}, []),
    ],
)
def test_figures_follow_from_tables(kind: str, tables: dict[str, pd.DataFrame], names: list[str]) -> None:
    result = StudyResult(kind, {}, tables=tables)
    assert result.figures == names
    for name in names:
        figure = result.figure(name)
        figure.canvas.draw()
        assert all(axes.get_title(loc="left") or axes.get_title() for axes in figure.axes if axes.axison)


def test_effects_show_one_panel_a_steering_without_the_contrast() -> None:
    panels = StudyResult("steer", {}, tables={"effects": EFFECTS}).figure("effects").axes
    assert [axes.axison for axes in panels] == [True, True, True, False]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["wikitext", "math", "code"]
