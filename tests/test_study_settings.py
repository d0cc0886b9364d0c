"""Settings check themselves when they are made, in Python's words; the command line says the same in its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from moescope.cli.generate import option_of, translated
from moescope.errors import InputError
from moescope.study.settings import NonEmpty, Settings, above, at_least, between, documentation


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    """An example."""

    n_folds: Annotated[int, at_least(2)] = 5
    """Cross-validation folds."""
    ks: Annotated[tuple[int, ...], at_least(1), NonEmpty()] = (1, 2)
    """Circuit sizes,
    in any order."""
    risk: Annotated[float, between(0, 1)] = 0.02
    lr: Annotated[float, above(0)] = 1e-3
    mode: Literal["mean", "zero"] = "mean"
    layer: Annotated[int | None, at_least(0)] = None
    position: Literal["final", "mean"] | int = "final"
    twin: bool = True
    experts: tuple[tuple[int, int], ...] = ()
    mask: Path | None = None


def test_what_fits_is_taken_in_pythons_own_form() -> None:
    made = Example(n_folds=np.int64(3), ks=[3, np.int32(4)], risk=np.float32(0.5), position=-2, experts=[[1, 2]], mask="a/b")
    assert (made.n_folds, made.ks, made.risk, made.position, made.experts) == (3, (3, 4), 0.5, -2, ((1, 2),))
    assert type(made.n_folds) is int
    assert type(made.risk) is float
    assert made.mask == Path("a/b")
    assert Example() == Example(layer=None)
    with pytest.raises(AttributeError):
        made.n_folds = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_folds": 1}, "n_folds: must be at least 2, got 1"),
        ({"n_folds": 2.5}, "n_folds: 2.5 is not a whole number"),
        ({"n_folds": True}, "n_folds: True is not a whole number"),
        ({"n_folds": "3"}, "n_folds: '3' is not a whole number"),
        ({"ks": ()}, "ks: give at least one"),
        ({"ks": (1, 0)}, "ks: must be at least 1, got 0"),
        ({"ks": 5}, "ks: 5 is not a list"),
        ({"ks": "12"}, "ks: '12' is not a list"),
        ({"risk": 0}, "risk: must be above 0 and below 1, got 0"),
        ({"risk": float("nan")}, "risk: is not a number (NaN)"),
        ({"lr": 0.0}, "lr: must be above 0, got 0"),
        ({"mode": "nonsense"}, "mode: 'nonsense' is none of mean, zero"),
        ({"layer": -1}, "layer: must be at least 0, got -1"),
        ({"layer": "x"}, "layer: 'x' is not a whole number"),
        ({"position": "middle"}, "position: 'middle' is none of final, mean or a whole number"),
        ({"twin": 1}, "twin: 1 is not True or False"),
        ({"experts": ((1, 2, 3),)}, "experts: (1, 2, 3) has not 2 members"),
        ({"mask": 3}, "mask: 3 is not a path"),
    ],
)
def test_what_does_not_fit_names_the_parameter(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        Example(**values)  # type: ignore[arg-type]
    assert str(error.value) == message
    assert error.value.parameter == next(iter(values))


def test_fields_are_documented_by_the_string_under_them() -> None:
    assert documentation(Example) == {"n_folds": "Cross-validation folds.", "ks": "Circuit sizes, in any order."}


def test_the_command_line_says_the_same_with_its_options() -> None:
    options = {name: option_of(name) for name in ("n_folds", "ks", "twin", "dense_experts")} | {"tasks": "--task"}
    assert options["n_folds"] == "--folds"
    said = [
        (InputError("must be at least 2, got 1", "n_folds"), "--folds: must be at least 2, got 1"),
        (InputError("two are called 'a'", "tasks"), "--task: two are called 'a'"),
        (
            InputError("dense; give dense_experts=16, twin=False or ks=(1, 2)"),
            "dense; give --dense-experts 16, --no-twin or ks=(1, 2)",
        ),
    ]
    assert [str(translated(error, options)) for error, _ in said] == [text for _, text in said]
