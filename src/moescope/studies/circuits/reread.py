"""The controls for which a model reads texts anew: as many rows as their interval needs, and no more than they may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from moescope.capture import encode
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.models.forward_tokens import ForwardTokens
from moescope.studies.circuits.features import Features, capture_features, rows_of
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.protocol import Context
from moescope.tasks import ImageTask, fixed_wrap, subset


@dataclass(frozen=True)
class Reread:
    """One task's texts in a fixed template, and as the twin reads them, on the same rows.

    Attributes:
        rows: (n,) int64, which of the task's rows.
        own: the activations of the study's model on these rows, with folds of their own where they are a sample.
        template: the same rows in the fixed template; None for images and where words are labelled, which have none.
        twin: the same rows read by the randomly initialised model; None without one.
        note: how many rows these are and why, in words; empty where they are all.
    """

    rows: np.ndarray
    own: Features
    template: Features | None
    twin: Features | None
    note: str

    @property
    def sampled(self) -> bool:
        """Whether some rows were left out."""
        return bool(self.note)


def reread(
    features: Features,
    settings: CircuitSettings,
    *,
    model: LoadedModel,
    twin: LoadedModel | None,
    tokens: ForwardTokens,
    batch_tokens: int,
    max_tokens: int | None,
) -> Reread:
    """Read the template and the twin on the rows that :func:`control_rows` gives.

    Raises:
        InputError: as :func:`moescope.studies.circuits.features.capture_features`.
    """
    assert features.encoded is not None
    lengths = features.costs
    words = features.task.kind == "tokens"
    wrapped = None if words or isinstance(features.task, ImageTask) else fixed_wrap(features.task)
    packed, costs = None, lengths if twin is not None else np.zeros_like(lengths)
    if wrapped is not None:
        packed = encode(model, [example.text for example in wrapped.examples], max_tokens=max_tokens)
        costs = costs + packed.lengths
    budget = settings.control_cost * float(lengths.sum())
    strata = np.zeros(len(lengths), np.int64) if features.task.kind == "graded" else features.y
    rows = control_rows(strata, features.groups, costs, budget, settings, features.seed)
    own = features
    note = ""
    if len(rows) < len(lengths):
        try:
            own = features.subset(rows, n_folds=settings.n_folds)
        except InputError:  # the sample cannot be split as the whole can
            rows = np.arange(len(lengths))
    if len(rows) < len(lengths):
        needed = rows_for(settings.control_half_width) if settings.control_half_width else len(lengths)
        why = (
            f"as many as ± {settings.control_half_width:.1%} needs"
            if len(rows) >= 0.9 * needed
            else f"as many as {settings.control_cost:g} of a pass over the texts pays for"
        )
        note = f"on {len(rows)} of {len(lengths)} rows, whole groups drawn at random, {why}"
    template = None
    if wrapped is not None and packed is not None:
        with tokens.of(model, "template"):
            template = capture_features(
                model, subset(wrapped, rows), features.columns, settings,
                seed=features.seed, encoded=rows_of(packed, rows), folds=own.folds, batch_tokens=batch_tokens,
            )  # fmt: skip
    untrained = None
    if twin is not None:
        with tokens.of(twin, "twin"):
            untrained = capture_features(
                twin, own.task, features.columns, settings,
                seed=features.seed, encoded=None if words else rows_of(features.encoded, rows), folds=own.folds,
                batch_tokens=batch_tokens, max_tokens=max_tokens if words else None,
            )  # fmt: skip
    return Reread(rows, own, template, untrained, note)


def prove_reread(context: Context, read: Reread, model: LoadedModel, twin: LoadedModel | None) -> None:
    """Put on record that the template changed every text, and that another model read the twin's.

    Raises:
        ControlFault: they are what they control.
    """
    name = read.own.task.name
    if read.template is not None:
        pairs = list(zip(read.own.task.examples, read.template.task.examples, strict=True))
        changed = sum(own.text != other.text for own, other in pairs)
        context.control(
            f"{name}: fixed template",
            differs=changed == len(pairs) and all((own.label, own.value) == (other.label, other.value) for own, other in pairs),
            evidence=f"{changed} of {len(pairs)} texts changed, no label",
        )
    if read.twin is not None and twin is not None:
        # of the texts read, so that a twin that was made and not used is seen too
        apart = float((read.twin.x != read.own.x).mean())
        context.control(
            f"{name}: random twin",
            differs=twin.fingerprint != model.fingerprint and apart > 0.5,
            evidence=f"fingerprint {twin.fingerprint}, the model's {model.fingerprint}; {apart:.1%} of activations differ",
        )


def rows_for(half_width: float, level: float = 0.95) -> int:
    """Rows for an accuracy's interval of ± ``half_width``, were they independent and the accuracy a half (the worst case).

    >>> rows_for(0.05)
    385
    """
    z = float(norm.ppf(0.5 + level / 2))
    return math.ceil((z / (2 * half_width)) ** 2)


def control_rows(
    y: np.ndarray, groups: np.ndarray, costs: np.ndarray, budget: float, settings: CircuitSettings, seed: int
) -> np.ndarray:
    """Rows (sorted int64) on which the controls that need a forward pass are read.

    Whole groups, drawn at random, the classes in their shares of the task. As many as ``settings.control_half_width``
    needs, fewer where their ``costs`` (N,) would come to more than ``budget``, but at least four rows
    and two groups for each fold.
    """
    n = len(y)
    wanted = n if settings.control_half_width == 0 else min(n, rows_for(settings.control_half_width))
    least = min(n, 4 * settings.n_folds)
    wanted = max(wanted, least)
    if wanted == n and costs.sum() <= budget:
        return np.arange(n)
    classes, code = np.unique(y, return_inverse=True)
    room = np.ceil(wanted * np.bincount(code) / n).astype(np.int64)
    names, inverse = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(counts, (inverse, code), 1)
    price = np.bincount(inverse, weights=costs)
    chosen = np.zeros(len(names), dtype=bool)
    spent = 0.0
    for group in np.random.default_rng(seed).permutation(len(names)):
        if (counts[group] > room).any():
            continue
        # not the next that would fit: the sample would be one of short texts
        enough = counts[chosen].sum() >= least and chosen.sum() >= 2 * settings.n_folds
        if spent + price[group] > budget and enough:
            break
        chosen[group], room, spent = True, room - counts[group], spent + price[group]
    rows = np.flatnonzero(chosen[inverse])
    # Groups so large that they leave a class out cannot be sampled.
    return rows if (np.bincount(code[rows], minlength=len(classes)) >= 2).all() else np.arange(n)
