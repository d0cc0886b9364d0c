"""Edits of experts, and the same edits of random experts that match in layer and usage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moescope.intervene.experts import ExpertEdits, steer_experts
from moescope.models.experts import expert_layers
from moescope.routing.counts import routing_counts
from moescope.studies.steer.effects import Plan, Texts, one_by_one
from moescope.studies.steer.experts_match import matched_edits, usage_ratio

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.studies.steer.settings import Match, SteerSettings
    from moescope.study.run import Run

Usage = dict[str, dict[int, np.ndarray]]
"""Category, or ``"overall"`` (their mean) -> layer -> float64 (E,): share of its tokens that are sent to each expert."""


def experts_plan(
    model: LoadedModel, edits: ExpertEdits, texts: Texts, usage: Usage, *, target: str | None, settings: SteerSettings, run: Run
) -> Plan:
    """The edits, and the same edits of matched random experts.

    Args:
        usage: on the texts, from :func:`text_usage`.

    Raises:
        InputError: no experts to compare with.
    """
    found: dict[Match, list[ExpertEdits]] = {}
    ratios: dict[Match, float] = {}
    for match in settings.match if target is not None else ("overall",):
        here = usage[target if match == "target" and target in usage else "overall"]
        sets = matched_edits(edits, here, n_sets=settings.n_random, seed=run.seed)
        # where usage does not enter (values shuffled over a layer), one matching says it all
        if sets not in found.values():
            found[match] = sets
            ratios[match] = usage_ratio(edits, sets, here)
    own = _values(edits)
    everything = [partial(steer_experts, model, one) for one in (edits, *(one for sets in found.values() for one in sets))]
    return Plan(
        everything[0],
        partial(one_by_one, model, texts, everything, run),
        {match: len(sets) for match, sets in found.items()},
        ratios,
        {match: float(np.mean([len(own & _values(s)) / len(own) for s in sets])) for match, sets in found.items()},
    )


def _values(edits: ExpertEdits) -> set[tuple[object, ...]]:
    """What is done to whom, one by one."""
    done = {("ban", e) for e in edits.ban} | {("force", e) for e in edits.force}
    return done | {("boost", *item) for item in edits.boost.items()} | {("scale", *item) for item in edits.scale.items()}


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
