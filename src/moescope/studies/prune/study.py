"""What leaving experts out costs: loss by ratio, for REAP, frequency and mass, beside random experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.intervene.experts import ExpertEdits, steer_experts
from moescope.intervene.text_loss import encode_texts, text_losses
from moescope.models import LoadedModel
from moescope.runtime.mask import PruneMask, prune_mask
from moescope.stats import group_bootstrap
from moescope.studies.prune.claims import mask_cases, prune_claims
from moescope.studies.prune.saliency import Saliency, expert_saliency
from moescope.studies.prune.settings import CRITERIA, PruneSettings
from moescope.study.protocol import Context, ModelLike, TextsLike
from moescope.study.result import StudyResult
from moescope.study.rows import halves
from moescope.study.run import Run
from moescope.study.verdicts import beyond_draws

_SETTINGS, _RUN = PruneSettings(), Run()


def prune(model: ModelLike, texts: TextsLike = None, settings: PruneSettings = _SETTINGS, *, run: Run = _RUN) -> StudyResult:
    """Read saliency on one half of the documents, and measure on the other what banning the least salient experts costs.

    An expert that is left out is banned as in :func:`moescope.intervene.steer_experts`: the router chooses among the rest.

    Args:
        model: a mixture of experts, with its head where it is loaded already.
        texts: passages with category and group, or a file of them; None: the shipped ones.

    Returns:
        A result of kind ``"prune"``: tables ``pruning`` and ``saliency``; artifact ``mask``, the
        :class:`~moescope.runtime.mask.PruneMask` of ``settings.by`` at ``settings.ratio``.

    Raises:
        InputError: the model is dense or has no head, a ratio leaves too few experts.

    >>> import moescope
    >>> result = moescope.prune("moe-tiny", settings=moescope.PruneSettings(ratio=0.5))  # doctest: +SKIP
    >>> result.artifacts["mask"].pruned  # doctest: +SKIP
    """
    context = Context("prune", settings, run)
    loaded = context.load(model, head=True)
    encoded, used = encode_texts(loaded, context.passages(texts), tokens=settings.text_tokens, length=settings.length)
    documents = np.array([f"{p.category}/{p.group}" for p in used])
    rows = context.rows(halves("documents", documents, _half(documents, np.array([p.category for p in used]), run.seed)))
    read, held = (Encoded.from_ids([encoded[i] for i in part.tolist()]) for part in (rows.select, rows.judge))
    reading = partial(expert_saliency, loaded, read, progress=context.counter("reading saliency"))
    found = context.stage("reading saliency", reading)
    masks = _masks(found, settings, run)
    for (criterion, ratio), members in masks.items():
        if criterion == "random":
            own = masks[settings.by, ratio][0]
            others = sum(mask.pruned != own.pruned for mask in members)
            context.control(
                f"random masks at {ratio:g}",
                differs=others > 0 or not own.pruned,
                evidence=f"{others} of {len(members)} leave out other experts than {settings.by} does",
            )
    clean = context.stage("loss of the whole model", partial(text_losses, loaded, held, batch_tokens=run.batch_tokens))
    lines: list[dict[str, Any]] = []
    by_text: dict[tuple[str, float], np.ndarray] = {}
    for criterion, ratio in context.steps("pruning", list(masks)):
        pruning = partial(_effects, loaded, held, masks[criterion, ratio], clean, run)
        effects = context.stage(f"pruning by {criterion}, {ratio:g}", pruning)
        mean = effects.mean(0)
        # losses are no proportions: where none changed there is no doubt for Wilson's interval to add
        low, high = group_bootstrap(mean, documents[rows.judge], seed=run.seed) if mean.any() else (0.0, 0.0)
        by_text[criterion, ratio] = effects
        line = {"criterion": criterion, "ratio": ratio, "masks": len(effects), "loss": float(clean.mean() + mean.mean())}
        lines.append({**line, "effect": float(mean.mean()), "low": low, "high": high})
    table = pd.DataFrame(lines)
    table["p"] = [
        beyond_draws(r["effect"], by_text["random", r["ratio"]].mean(1), "", 0.0).p if r["criterion"] != "random" else np.nan
        for r in lines
    ]
    headline = mask_cases(
        settings.by,
        settings.ratio,
        by_text[settings.by, settings.ratio][0],
        by_text["random", settings.ratio],
        documents[rows.judge],
        margin=settings.margin,
        seed=run.seed,
    )
    mask = masks[settings.by, settings.ratio][0]
    own_line = table.query("criterion == @settings.by and ratio == @settings.ratio").iloc[0]
    mask.meta.update(
        {
            "model": loaded.name,
            "fingerprint": loaded.fingerprint,
            "criterion": settings.by,
            "ratio": settings.ratio,
            "loss_before": float(clean.mean()),
            "loss_after": float(own_line["loss"]),
        }
    )
    return context.result(
        model=loaded,
        title=f"Pruning the experts of {loaded.name}",
        claims=prune_claims(table, headline),
        tables={"pruning": table, "saliency": found.to_frame()},
        artifacts={"mask": mask},
        loss=float(clean.mean()),
        tokens={"saliency": found.tokens, "loss": int(held.lengths.sum())},
    )


def _effects(model: LoadedModel, held: Encoded, masks: Sequence[PruneMask], clean: np.ndarray, run: Run) -> np.ndarray:
    """(masks, texts): loss with what each leaves out banned, less the whole model's."""
    applied = [partial(steer_experts, model, ExpertEdits(ban=mask.pruned)) for mask in masks]  # type: ignore[arg-type]
    return np.stack([text_losses(model, held, one, batch_tokens=run.batch_tokens) - clean for one in applied])


def _masks(found: Saliency, settings: PruneSettings, run: Run) -> dict[tuple[str, float], list[PruneMask]]:
    """By criterion and ratio; ``random`` has as many as asked for."""
    rng = np.random.default_rng(run.seed)
    masks: dict[tuple[str, float], list[PruneMask]] = {}
    for ratio in sorted({*settings.ratios, settings.ratio}):
        for name in CRITERIA:
            masks[name, ratio] = [prune_mask(found.by(name), ratio, top_k=found.top_k)]
        shuffled = [{layer: rng.random(len(v)) for layer, v in found.chosen.items()} for _ in range(settings.n_random)]
        masks["random", ratio] = [prune_mask(values, ratio, top_k=found.top_k) for values in shuffled]
    return masks


def _half(documents: np.ndarray, categories: np.ndarray, seed: int) -> np.ndarray:
    """bool (N,): half of each category's documents, whole."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(documents), dtype=bool)
    for category in np.unique(categories):
        names = rng.permutation(np.unique(documents[categories == category]))
        if len(names) < 2:
            raise InputError(f"category {category!r}: one document cannot be halved; give passages of at least two groups")
        chosen |= np.isin(documents, names[: len(names) // 2])
    return chosen
