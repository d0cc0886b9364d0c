"""An early exit beside a surface cue whose worth is known: better, as good, and not to be told from it."""

from __future__ import annotations

import numpy as np
import pytest

import moescope
from moescope.types import Claim
from tests.wiring.planted import lookup_model, task

WIDTH, EARLY = 16, 5


def advice(rows: int, model_right: np.ndarray, cue_right: np.ndarray) -> list[Claim]:
    """A task of two classes whose texts end with a full stop as often as the cue is right, and a model that is right there."""
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(rows) % 2)
    said, stop = (np.where(right, classes, 1 - classes) for right in (model_right, cue_right))
    texts = [f"w{i:04d}{'z.'[int(s)]}" for i, s in enumerate(stop)]
    x = 0.1 * rng.normal(size=(rows, WIDTH))
    x[:, 0] = 20.0  # so that all rows are of one size
    x[:, EARLY] = 12.0 * (2 * said - 1)
    model = lookup_model(dict(zip(texts, x, strict=True)), layers=2)
    settings = moescope.ExitSettings(risk=0.1, head="linear", k=1, timed_texts=1)
    return list(moescope.exit(model, [task(texts, classes, name="planted")], settings).claims)


def of_share(rows: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(rows) < share


@pytest.mark.parametrize("seed", range(2))
def test_a_model_a_little_better_than_a_cue_is_not_called_needless(seed: int) -> None:
    """Right 85 % beside a cue that is right 80 %, on 200 test rows: neither that it adds nor that it does not."""
    told, known, *_ = advice(1000, of_share(1000, 0.85, seed), of_share(1000, 0.80, seed + 100))
    assert (known.outcome, known.explanation) == ("inconclusive", None)
    assert "surface cue" in known.words
    assert told.measured != "no layer needed: a surface cue does it"
    assert told.outcome != "holds"


def test_a_cue_that_is_as_good_needs_no_layer() -> None:
    right = of_share(1000, 0.85, 0)
    told, known, *_ = advice(1000, right, right)
    assert (known.outcome, known.explanation) == ("holds", "trivial cue")
    assert (told.measured, told.outcome, told.explanation) == (
        "no layer needed: a surface cue does it",
        "contradicted",
        "trivial cue",
    )


def test_a_model_that_knows_much_more_is_not_explained_by_the_cue() -> None:
    told, known, *_ = advice(1000, of_share(1000, 0.95, 0), of_share(1000, 0.6, 1))
    assert (known.outcome, known.explanation) == ("holds", "none found")
    assert told.measured in ("use the early exit", "keep full depth")  # the clock decides
