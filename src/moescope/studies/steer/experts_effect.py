"""What steering experts does to a model's loss, beside the same steering of random experts that match in layer and usage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moescope.intervene.experts import ExpertEdits, steer_experts
from moescope.models.experts import expert_layers
from moescope.routing.counts import routing_counts
from moescope.studies.steer.effects import EffectSettings, Match, Progress, Texts, compare_effects
from moescope.studies.steer.experts_match import matched_edits, usage_ratio

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Usage = dict[str, dict[int, np.ndarray]]
"""Category, or ``"overall"`` (their mean) -> layer -> float64 (E,): share of its tokens that are sent to each expert."""


def steering_effects(
    model: LoadedModel,
    edits: ExpertEdits,
    texts: Texts,
    usage: Usage,
    *,
    target: str | None = None,
    settings: EffectSettings | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The effect of some edits on every category, against matched random experts.

    Args:
        usage: on the texts, from :func:`text_usage`.

    Returns:
        What :func:`compare_effects` gives, and ``usage_ratio``, random to edited: 1 is a match.

    Raises:
        InputError: an unknown target, an expert that is not there, or no experts to compare with.
    """
    settings = settings or EffectSettings()
    controls: dict[Match, list[ExpertEdits]] = {}
    ratios = {}
    for match in settings.match if target is not None else ("overall",):
        here = usage[target if match == "target" and target in usage else "overall"]
        sets = matched_edits(edits, here, n_sets=settings.n_random, seed=settings.seed)
        # where usage does not enter (values shuffled over a layer), one matching says it all
        if sets not in controls.values():
            controls[match] = sets
            ratios[match] = usage_ratio(edits, sets, here)
    frame = compare_effects(
        model,
        texts,
        partial(steer_experts, model, edits),
        {match: [partial(steer_experts, model, one) for one in sets] for match, sets in controls.items()},
        target=target,
        settings=settings,
        progress=progress,
    )
    frame["usage_ratio"] = frame["match"].map(ratios)
    return frame


def text_usage(model: LoadedModel, texts: Texts, *, batch_tokens: int = 8192) -> Usage:
    """How much each category's texts use each expert, and what all categories alike use it.

    Raises:
        InputError: the model is dense.
    """
    layers = expert_layers(model)
    counts = routing_counts(model, texts.encoded, batch_tokens=batch_tokens)  # (N, L, E)
    usage: Usage = {}
    for name in texts.categories:
        at = texts.rows(name)
        share = counts[at].sum(0) / texts.encoded.lengths[at].sum()
        usage[name] = {layer.layer: share[i, : layer.n_experts] for i, layer in enumerate(layers)}
    usage["overall"] = {layer.layer: np.mean([u[layer.layer] for u in usage.values()], axis=0) for layer in layers}
    return usage
