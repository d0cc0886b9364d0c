"""What leaving experts out costs: loss by ratio, for REAP, frequency and mass, beside random experts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.intervene.experts import ExpertEdits, steer_experts
from moescope.intervene.text_loss import encode_texts, text_losses
from moescope.runtime.mask import PruneMask, prune_mask
from moescope.stats import group_bootstrap, permutation_p
from moescope.studies.prune.saliency import CRITERIA, Criterion, expert_saliency
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.types import Claim

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.tasks.passages import Passage

Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How pruning is measured.

    Attributes:
        by: the criterion whose mask is exported.
        ratio: of that mask.
        ratios: of the table; ``ratio`` is added.
        n_random: random masks per ratio, the same number of experts in each layer.
        tokens: of text per category, half for reading saliency and half for the loss.
    """

    by: Criterion = "reap"
    ratio: float = 0.25
    ratios: tuple[float, ...] = (0.125, 0.25, 0.5)
    n_random: int = 20
    tokens: int = 4096
    length: int = 256
    seed: int = 0
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.by not in CRITERIA:
            raise InputError(f"--by {self.by!r}: choose from {', '.join(CRITERIA)}")
        if self.n_random < 1:
            raise InputError(f"--random: {self.n_random} random masks; at least 1 is needed")


def prune_study(
    model: LoadedModel,
    passages: Sequence[Passage],
    *,
    settings: PruneSettings | None = None,
    report: Report | None = None,
) -> tuple[StudyResult, PruneMask]:
    """Read saliency on one half of the documents, and measure on the other what banning the least salient experts costs.

    An expert that is left out is banned as in :func:`moescope.intervene.steer_experts`: the router chooses among the rest.

    Returns:
        A result of kind ``"prune"`` (tables ``pruning``: criterion, ratio, effect on the loss in nats per token with a
        bootstrap interval over documents, loss; and ``saliency``), and the mask of ``settings.by`` at ``settings.ratio``.

    Raises:
        InputError: the model is dense or has no head, a ratio leaves too few experts.
    """
    settings = settings or PruneSettings()
    began = time.time()
    encoded, used = encode_texts(model, passages, tokens=settings.tokens, length=settings.length)
    documents = np.array([f"{p.category}/{p.group}" for p in used])
    fit = _half(documents, np.array([p.category for p in used]), settings.seed)
    rows_fit, rows_rest = np.flatnonzero(fit), np.flatnonzero(~fit)

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: report(stage, done, total) if report is not None else None

    found = expert_saliency(model, Encoded.from_ids([encoded[i] for i in rows_fit.tolist()]), progress=tell("reading saliency"))
    held = Encoded.from_ids([encoded[i] for i in rows_rest.tolist()])
    groups = documents[rows_rest]
    clean = text_losses(model, held, batch_tokens=settings.batch_tokens)
    rng = np.random.default_rng(settings.seed)
    ratios = sorted({*settings.ratios, settings.ratio})
    masks: dict[tuple[str, float], list[PruneMask]] = {}
    for ratio in ratios:
        for name in CRITERIA:
            masks[name, ratio] = [prune_mask(found.by(name), ratio, top_k=found.top_k)]
        shuffled = [{layer: rng.random(len(v)) for layer, v in found.chosen.items()} for _ in range(settings.n_random)]
        masks["random", ratio] = [prune_mask(values, ratio, top_k=found.top_k) for values in shuffled]
    total, done = sum(map(len, masks.values())), 0
    rows: list[dict[str, Any]] = []
    random: dict[float, np.ndarray] = {}
    for (criterion, ratio), members in masks.items():
        effects = []
        for mask in members:
            banned = ExpertEdits(ban=mask.pruned)  # type: ignore[arg-type]
            applied = partial(steer_experts, model, banned)
            effects.append(text_losses(model, held, applied, batch_tokens=settings.batch_tokens) - clean)
            done += 1
            tell("pruning")(done, total)
        by_text = np.mean(effects, axis=0)
        # losses are no proportions: where none changed there is no doubt for Wilson's interval to add
        low, high = group_bootstrap(by_text, groups, seed=settings.seed) if by_text.any() else (0.0, 0.0)
        if criterion == "random":
            random[ratio] = np.mean(effects, axis=1)
        rows.append(
            {
                "criterion": criterion,
                "ratio": ratio,
                "masks": len(members),
                "loss": float(clean.mean() + by_text.mean()),
                "effect": float(by_text.mean()),
                "low": low,
                "high": high,
            }
        )
    table = pd.DataFrame(rows)
    table["p"] = [
        float(permutation_p(-r["effect"] - 1e-9, -random[r["ratio"]])) if r["criterion"] != "random" else np.nan for r in rows
    ]
    meta = provenance(model, [], seed=settings.seed, settings=dataclasses.asdict(settings))
    meta |= {"title": f"Pruning the experts of {model.name}", "seconds": round(time.time() - began, 1)}
    meta["loss"] = float(clean.mean())
    meta["tokens"] = {"saliency": found.tokens, "loss": int(held.lengths.sum())}
    own = table.query("criterion == @settings.by and ratio == @settings.ratio").iloc[0]
    mask = masks[settings.by, settings.ratio][0]
    mask.meta.update(
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "criterion": settings.by,
            "ratio": settings.ratio,
            "loss_before": float(clean.mean()),
            "loss_after": float(own["loss"]),
        }
    )
    claims = [_claim(r, table) for r in table.query("criterion != 'random'").to_dict("records")]
    if report is not None:
        report("done", 1, 1)
    return StudyResult("prune", meta, tuple(claims), tables={"pruning": table, "saliency": found.to_frame()}), mask


def _claim(row: dict[str, Any], table: pd.DataFrame) -> Claim:
    null = table.query("criterion == 'random' and ratio == @row['ratio']").iloc[0]
    better = row["p"] < 0.05
    word = "less than" if better else "no less than"
    return Claim(
        name=f"pruning {row['ratio']:.1%} by {row['criterion']}: loss added",
        measured=row["effect"],
        interval=(row["low"], row["high"]),
        null=float(null["effect"]),
        p=row["p"],
        verdict="measured" if better else "explained by chance",
        note=f"costs {word} random experts do ({int(null['masks'])} masks); nats a token, experts banned, none retrained",
    )


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
