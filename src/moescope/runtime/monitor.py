"""A monitor in two stages: the routing of the first layers clears or flags what it is sure of, the whole model the rest.

The promise is on misses of both stages together: of the watched category's prompts, cleared by either. Thresholds are raised
along one path that is fixed before the calibration prompts are seen, from "flag everything" on, for as long as an exact test of
their misses allows (Learn-then-Test, Angelopoulos et al. 2021), so that the promise holds whatever the scores are worth; scores
that are worth nothing give a monitor that flags nearly everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch, Encoded, encode
from moescope.errors import InputError
from moescope.files.checkpoint import check_array
from moescope.files.remote import local
from moescope.runtime.exit.layers import Stepper, check_leaving, stepping
from moescope.runtime.route.router import source_sites, weighted_sum
from moescope.runtime.route.watch import after_opening, check_lengths, opening, prompt_features
from moescope.stats.conformal import learn_then_test
from moescope.study.artifacts import artifact_model, read_artifact, write_artifact
from moescope.study.settings import at_least, between, read_record

if TYPE_CHECKING:
    from moescope.models import LoadedModel

_STEPS = 64
_SURE = 0.01
"""of the other categories' prompts, in the rows that fit, those that the first stage may flag by itself"""


class Score(NamedTuple):
    """A linear score of features (N, F): positive speaks for the watched category; standardisation is inside."""

    weight: np.ndarray
    """(F,) float64"""
    bias: float

    def of(self, features: np.ndarray) -> np.ndarray:
        """(N,) float64."""
        return np.asarray(np.asarray(features, dtype=np.float64) @ self.weight + self.bias)


def fit_score(x: np.ndarray, y: np.ndarray) -> Score:
    """Logistic regression of y (N,) bool on features (N, F), both classes weighing alike."""
    scale = StandardScaler().fit(np.asarray(x, dtype=np.float64))
    model = LogisticRegression(max_iter=500, tol=1e-3, class_weight="balanced").fit(scale.transform(x), y)
    weight = model.coef_[0] / scale.scale_
    return Score(weight, float(model.intercept_[0] - weight @ scale.mean_))


class Thresholds(NamedTuple):
    """When the first stage clears and flags, and from which score on the second one flags."""

    clear: float
    """score of the first stage at or below which a prompt is let go; -inf: never"""
    flag: float
    """score of the first stage at or above which it is flagged without asking; inf: never"""
    decide: float
    """score of the second stage at or above which it is flagged"""

    def decisions(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) bool, whether each prompt is flagged, and whether the second stage was needed for it."""
        unsure = (first > self.clear) & (first < self.flag)
        return np.where(unsure, second >= self.decide, first >= self.flag), unsure


def cascade_path(first: np.ndarray, second: np.ndarray, y: np.ndarray) -> list[Thresholds]:
    """Thresholds from "flag everything" to the riskiest, by held-out scores (N,) of the rows that fit, y (N,) bool the watched
    category. At each step either stage may miss as many of those rows."""
    flag = float(np.quantile(first[~y], 1 - _SURE))
    clear, decide = (_rising(score[y]) for score in (first, second))
    return [Thresholds(min(c, flag), flag, d) for c, d in zip(clear, decide, strict=True)]


def first_alone(score: np.ndarray, y: np.ndarray) -> list[Thresholds]:
    """The path of a monitor that has a first stage alone."""
    return [Thresholds(t, t, -np.inf) for t in _rising(score[y])]


def second_alone(score: np.ndarray, y: np.ndarray) -> list[Thresholds]:
    """The path of one that asks the second stage always."""
    return [Thresholds(-np.inf, np.inf, t) for t in _rising(score[y])]


def _rising(own: np.ndarray) -> list[float]:
    """-inf, then from below the least score of the watched category's rows to their median."""
    quantiles = np.quantile(own, np.linspace(0, 0.5, _STEPS))
    return [-np.inf, *(float(q) for q in np.concatenate([quantiles[:1] - (quantiles[-1] - quantiles[0]), quantiles]))]


@dataclass(frozen=True)
class Promise:
    """At most ``risk`` of the watched category's prompts are missed, with probability 1 - ``delta`` over calibrations."""

    risk: float
    delta: float
    prompts: int
    """of the category that calibrated, one of each group"""
    misses: int
    """of them"""

    def text(self) -> str:
        return (
            f"at most {self.risk:.1%} of its prompts are missed, both stages together, with probability {1 - self.delta:g} "
            f"(exact binomial test; {self.misses} of {self.prompts} calibration prompts missed)"
        )


def calibrated(
    candidates: Sequence[Thresholds], first: np.ndarray, second: np.ndarray, risk: float, delta: float
) -> tuple[Thresholds, Promise]:
    """The riskiest of some thresholds, in their order, that the misses among calibration prompts allow.

    Args:
        candidates: from the safest, fixed without the prompts that calibrate.
        first, second: (n,) scores of prompts of the watched category, one of each group.

    Raises:
        InputError: too few prompts for ``risk`` and ``delta``.
    """
    missed = np.stack([~c.decisions(first, second)[0] for c in candidates], axis=1).astype(float)
    chosen = learn_then_test(missed, risk, delta, binary=True)
    return candidates[chosen.candidate], Promise(risk, delta, chosen.n, int(missed[:, chosen.candidate].sum()))


class Watched(NamedTuple):
    """What a monitor said of N prompts."""

    flagged: np.ndarray
    """(N,) bool"""
    asked: np.ndarray
    """(N,) bool: the first stage was not sure, and the whole model was run"""


@dataclass(frozen=True, eq=False)
class MonitorCascade:
    """Tells whether prompts are of one category: ``monitor(["a prompt"])`` is an array of True and False.

    The first stage reads the routers' softmax, a mean over the prompt's tokens, in the layers up to ``layer``; a prompt that it
    is sure of leaves the model there. The second reads the mean of the residual stream after the last layer.

    Raises:
        InputError: rows cannot leave a batch of this model (:func:`~moescope.runtime.exit.layers.check_leaving`).
    """

    model: LoadedModel
    target: str
    layer: int
    first: Score
    second: Score
    thresholds: Thresholds
    promise: Promise
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_leaving(self.model)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) bool: flagged."""
        return self.run(texts).flagged

    def run(self, texts: Sequence[str] | Encoded, *, batch_tokens: int = 8192) -> Watched:
        """Both stages in one pass, which a prompt leaves as soon as it is decided.

        Raises:
            InputError: a text that is too short.
        """
        encoded, left_out = encode(self.model, texts, max_tokens=self.max_tokens), opening(self.model)
        check_lengths(encoded, left_out)
        flagged, asked = np.zeros(len(encoded), bool), np.zeros(len(encoded), bool)
        with stepping(self.model) as stepper:
            for batch in padded_batches(self.model, encoded, batch_tokens, "right"):
                first, second = self._scores(stepper, batch, left_out)
                flagged[batch.rows], asked[batch.rows] = self.thresholds.decisions(first, second)
        return Watched(flagged, asked)

    def _scores(self, stepper: Stepper, batch: Batch, left_out: int) -> tuple[np.ndarray, np.ndarray]:
        """(B,) of the first stage, and of the second where it was needed (else 0)."""
        weight = after_opening(left_out, batch.mask).to(self.model.device)
        count, last = weight.sum(1, keepdim=True), self.model.n_layers - 1
        first, second = np.zeros(len(batch.rows)), np.zeros(len(batch.rows))
        sums: list[Tensor] = []
        left = torch.arange(len(batch.rows))

        def decide(layer: int, hidden: Tensor) -> Tensor | None:
            nonlocal left
            if layer == self.layer:
                first[:] = self.first.of((torch.cat(sums, 1) / count).cpu().numpy())
                left = torch.from_numpy(np.flatnonzero(self.thresholds.decisions(first, second)[1]))
            if layer == last:
                kept = left.to(hidden.device)
                # rows have not been cut yet where both stages end here
                rows = hidden[kept] if layer == self.layer else hidden
                mean = weighted_sum("residual", rows, weight[kept][:, : hidden.shape[1]]) / count[kept]
                second[left.numpy()] = self.second.of(mean.cpu().numpy())
                return torch.arange(0)
            return left.to(hidden.device) if layer == self.layer else None

        sites = source_sites(self.model, "routing", self.layer)
        with ExitStack() as hooks:
            for site in sites:
                tap = self.model.tap_point(site)
                hooks.callback(tap.attach(lambda x: sums.append(weighted_sum("routing", x, weight))).remove)
            stepper.run(batch.ids, batch.mask, decide)
        return first, second

    def whole(self, texts: Sequence[str] | Encoded, *, batch_tokens: int = 8192) -> np.ndarray:
        """(N,) float64: the second stage's scores, of all of the texts."""
        last = self.model.n_layers - 1
        found, _ = prompt_features(self.model, texts, "residual", last, max_tokens=self.max_tokens, batch_tokens=batch_tokens)
        return self.second.of(found)

    def write(self, folder: Path, /) -> Path:
        """Write ``monitor.safetensors`` into ``folder``, which is made where it is absent; for :func:`load_monitor`."""
        arrays = {"first": self.first.weight, "second": self.second.weight}
        arrays["bias"] = np.array([self.first.bias, self.second.bias])
        arrays["open"] = np.isinf(self.thresholds)
        arrays["thresholds"] = np.where(arrays["open"], np.sign(self.thresholds), self.thresholds)
        fields = {"target": self.target, "layer": self.layer, "promise": asdict(self.promise), "max_tokens": self.max_tokens}
        return write_artifact(folder, "monitor", self.model, arrays, fields)


@dataclass(frozen=True)
class _Stored:
    """What the file says of the monitor itself."""

    target: str
    layer: Annotated[int, at_least(0)]
    promise: dict[str, Any]
    max_tokens: Annotated[int | None, at_least(1)]


@dataclass(frozen=True)
class _Kept:
    risk: Annotated[float, between(0, 1)]
    delta: Annotated[float, between(0, 1)]
    prompts: Annotated[int, at_least(1)]
    misses: Annotated[int, at_least(0)]


def load_monitor(folder: str | Path, model: LoadedModel | None = None, **load_options: Any) -> MonitorCascade:
    """Read a saved monitor. Without ``model`` the model is loaded by its name, with ``load_options``.

    Raises:
        InputError: the folder is not a saved monitor, is damaged, or belongs to another model.
    """
    folder = local(folder)
    data, arrays = read_artifact(folder, "monitor")
    try:
        known = read_record(_Stored, {name: data[name] for name in ("target", "layer", "promise", "max_tokens")})
        promise = Promise(**asdict(read_record(_Kept, known.promise)))
        for name, shape in (("first", None), ("second", None), ("bias", (2,)), ("thresholds", (3,))):
            check_array(name, arrays[name], np.floating, shape)
        values = [float(v) * (np.inf if far else 1.0) for v, far in zip(arrays["thresholds"], arrays["open"], strict=True)]
        scores = [Score(arrays[name], float(bias)) for name, bias in zip(("first", "second"), arrays["bias"], strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'monitor.safetensors'} is damaged ({type(error).__name__}: {error}); run moescope robustness again"
        ) from error
    loaded = artifact_model(folder, data, model, load_options)
    try:
        encode(loaded, ["a"], max_tokens=known.max_tokens)  # there is room for a text, and a place for each token
    except InputError as error:
        raise InputError(f"{folder}: {error}; run moescope robustness again") from error
    widths = (sum(loaded.width(site) for site in source_sites(loaded, "routing", known.layer)), loaded.d_model)
    if tuple(score.weight.shape for score in scores) != tuple((n,) for n in widths):
        raise InputError(f"{folder} reads other numbers of features than the model has; run moescope robustness again")
    return MonitorCascade(
        loaded, known.target, known.layer, scores[0], scores[1], Thresholds(*values), promise, known.max_tokens
    )
