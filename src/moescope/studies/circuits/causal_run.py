"""The causal part of the study: circuits switched off and class directions erased, for all tasks in shared passes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.intervene.running_text import LOSS, RunningText
from moescope.intervene.together import run_together
from moescope.models import LoadedModel
from moescope.models.forward_tokens import ForwardTokens
from moescope.studies.circuits.causal import NeuronAblation
from moescope.studies.circuits.erasure import ClassErasure
from moescope.studies.circuits.features import Columns, Features, rows_of
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import rank_columns
from moescope.studies.circuits.trial import prepare_trial
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import plain_text, split_half, subset
from moescope.types import Site


def causal_sites(model: LoadedModel, columns: Columns) -> tuple[Site, ...]:
    """What has to be known of the untouched model at the final token: the circuit's sites and the stream after each layer."""
    return tuple(dict.fromkeys([*columns.sites, *(Site("resid", layer) for layer in range(model.n_layers))]))


def causal_tables(
    model: LoadedModel,
    features: Mapping[str, Features],
    settings: CircuitSettings,
    context: Context,
    tokens: ForwardTokens,
) -> dict[str, pd.DataFrame]:
    """Circuits are ranked on one half of the groups and switched off on the other, beside erasure of the direction.

    Each task's untouched texts, and the running text, go through the model once for all interventions.
    """
    assert settings.ablate is not None
    seed, batch_tokens = context.run.seed, context.run.batch_tokens
    ablations: list[NeuronAblation] = []
    scores: list[dict[str, np.ndarray]] = []
    erased: list[pd.DataFrame] = []
    for name, here in features.items():
        half = split_half(here.y, here.groups, seed)
        judge = np.flatnonzero(~half)
        if len(judge) > settings.ablate_rows:
            judge = _whole_groups(judge, here.groups, settings.ablate_rows, seed)
        first = np.flatnonzero(half)
        rows = context.rows(Rows(f"{name}: interventions", here.groups, fit=first, select=first, judge=judge))
        ranking = rank_columns(here.x[rows.select], here.y[rows.select], settings.sigma)[: max(settings.ablate_ks)]
        used = np.concatenate([rows.fit, rows.judge])
        assert here.encoded is not None
        trial = prepare_trial(
            model,
            subset(here.task, used),
            rows_of(here.encoded, used),
            {site: x[used] for site, x in here.final.items()},
            np.arange(len(used)) < len(rows.fit),
        )
        neurons = [here.columns.neuron(int(c)) for c in ranking]
        ks = sorted({k for k in settings.ablate_ks if k <= here.columns.n})
        if not ks:
            raise InputError(f"every size is above the {here.columns.n} neurons of {name}'s sites", "ablate_ks")
        ablation = NeuronAblation(
            model,
            trial,
            neurons,
            ks=ks,
            mode=settings.ablate,
            n_random=settings.ablate_random,
            seed=seed,
        )
        context.control(f"{name}: matched random neurons", **ablation.proof())
        erasure = ClassErasure(model, trial, range(model.n_layers), seed=seed)
        context.control(f"{name}: erasure of permuted labels", **erasure.proof())
        with tokens.of(model, "edited"):
            replicas = trial.replicas(batch_tokens=batch_tokens)
            progress = context.counter(f"{name}: switching neurons off, erasing the class")
            found, cleared = run_together(replicas, [ablation.sets, erasure.sets], trial.readout, progress)
        ablations.append(ablation)
        scores.append(found)
        erased.append(erasure.table(cleared))
    if model.has_head and not model.is_encoder:
        with tokens.of(model, "text"):
            text = RunningText(
                model,
                plain_text(),
                tokens=settings.ablate_text_tokens,
                batch_tokens=batch_tokens,
                max_tokens=context.run.max_tokens,
            )
            if settings.ablate in ("mean", "resample"):  # their values are the text's own: read for all tasks at once
                text.read([site for ablation in ablations for site in ablation.sites])
            losses = text.losses([a.on_text(text) for a in ablations], context.counter("other text: switching neurons off"))
        for found, loss in zip(scores, losses, strict=True):
            found[LOSS] = loss
    curves = [ablation.table(found) for ablation, found in zip(ablations, scores, strict=True)]
    return {
        "ablation": pd.concat(curves, ignore_index=True),
        "erasure": pd.concat(erased, ignore_index=True),
    }


def _whole_groups(rows: np.ndarray, groups: np.ndarray, limit: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    names, counts = np.unique(groups[rows], return_counts=True)
    order = rng.permutation(len(names))
    chosen = names[order[np.cumsum(counts[order]) <= limit]]
    return rows[np.isin(groups[rows], chosen)]
