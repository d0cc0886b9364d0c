"""A mixture of experts with fewer of them, as a checkpoint, and what that costs beside random experts and fewer bits."""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.files.folder import draft_of, settled, system_errors
from moescope.intervene.text_loss import encode_texts
from moescope.models.layered import open_layered
from moescope.studies.prune.card import card_text
from moescope.studies.prune.checkpoint import write_pruned
from moescope.studies.prune.claims import (
    bytes_case,
    change,
    elsewhere_case,
    guard_claim,
    mask_cases,
    prune_claims,
    recommend,
)
from moescope.studies.prune.cut import banks_of
from moescope.studies.prune.measure import Judged
from moescope.studies.prune.rivals import Rival, Rivals
from moescope.studies.prune.saliency import expert_saliency
from moescope.studies.prune.settings import PruneSettings
from moescope.studies.prune.tasks import harness_model
from moescope.study.checkpoint import Checkpoint
from moescope.study.choice_tasks import task_cases, task_table
from moescope.study.harness import check_tasks
from moescope.study.protocol import Context, ModelLike, TextsLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.study.verdicts import beyond_draws, verdicts

_SETTINGS, _RUN = PruneSettings(), Run()


@verb
def prune(model: ModelLike, texts: TextsLike = None, settings: PruneSettings = _SETTINGS, *, run: Run = _RUN) -> StudyResult:
    """Read saliency on one half of the documents, write the model without the least salient experts, and measure on the other
    half what that costs.

    The model is run layer by layer from its files, all variants through a layer together, so that one layer's weights are in
    memory at a time. What is judged as the checkpoint is what was written.

    Args:
        model: a mixture of experts with its head. One in memory is written to a temporary folder first.
        texts: passages with category and group, or a file of them; None: the shipped ones.

    Returns:
        A result of kind ``"prune"``, whose first claim is the recommendation. Tables: ``pruning``, ``domains``, ``saliency``,
        and ``tasks`` where asked for. Artifacts: ``checkpoint``, which is saved in the result's own folder, so that what
        ``run.out`` names is what transformers loads; ``mask``, the :class:`~moescope.runtime.mask.PruneMask` of it.

    Raises:
        InputError: the model is dense, has no head, or is of a type that cannot be cut or run layer by layer; a ratio leaves
            too few experts, or not as many in each group of a router that chooses groups first.

    >>> import moescope
    >>> run = moescope.Run(out="smaller")
    >>> result = moescope.prune("moe-tiny", settings=moescope.PruneSettings(ratio=0.5), run=run)  # doctest: +SKIP
    >>> transformers.AutoModelForCausalLM.from_pretrained("smaller")  # doctest: +SKIP
    """
    context = Context("prune", settings, run, of=PruneSettings)
    passages = context.passages(texts)
    categories = list(dict.fromkeys(p.category for p in passages))
    if settings.domain not in (None, *categories):
        raise InputError(f"category {settings.domain!r} is not among {', '.join(categories)}", "domain")
    if settings.eval_task:
        check_tasks(settings.eval_task, settings.eval_include)
    layered = context.layered(model)
    loaded, banks = layered.model, banks_of(layered)
    rivals = Rivals(layered, banks, settings, run.seed)
    for note in rivals.notes:
        context.note(note)
    encoded, used = encode_texts(loaded, passages, tokens=settings.text_tokens, length=settings.length)
    category = np.array([p.category for p in used])
    documents = np.array([f"{p.category}/{p.group}" for p in used])
    chose = np.ones(len(used), dtype=bool) if settings.domain is None else category == settings.domain
    first = _half(documents, category, run.seed)
    select, judge = np.flatnonzero(first & chose), np.flatnonzero(~first)
    rows = context.rows(Rows("documents", documents, fit=select, select=select, judge=judge))
    read, held = (Encoded.from_ids([encoded[i] for i in part.tolist()]) for part in (rows.select, rows.judge))
    where, groups = category[rows.judge], documents[rows.judge]
    own = chose[rows.judge]
    for part, name in ((own, settings.domain or "the text"), (~own, "the other text")):
        if part.any() and len(np.unique(groups[part])) < 2:
            raise InputError(
                f"{name} has one document to judge by, which shows nothing: give more text_tokens, or more documents"
            )
    reading = partial(expert_saliency, layered, banks, read, progress=context.counter("reading saliency"))
    found = context.stage("reading saliency", reading)
    plan = rivals.plan(found)
    mask = rivals.mask
    _control(context, plan, mask.pruned)
    judged = Judged(layered, held, run.batch_tokens)
    judged.final = context.stage("the whole model", partial(judged.whole, context.counter("the whole model")))
    clean = judged.clean = context.stage("loss of the whole model", judged.losses)
    with contextlib.ExitStack() as stack:
        if run.out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moescope-")))
        else:
            folder = stack.enter_context(draft_of(settled(run.out)))
        with system_errors(run.out or folder):
            made = write_pruned(rivals.cut(mask.kept), mask, folder)
        # what is judged is what was written
        written = open_layered(folder, dtype=layered.precision, device=str(loaded.device))
        added: dict[tuple[str, float], np.ndarray] = {}
        for rival in context.steps("pruning", plan):
            judging = partial(judged.added, rival.edits, alone=rival.alone)
            if rival.key == (settings.by, settings.ratio):
                judging = partial(judged.of, written)
            added[rival.key] = context.stage(f"pruning by {rival.criterion}, {rival.ratio:g}", judging)
        table = _table(plan, added, clean, groups, own, run.seed)
        tables = {
            "pruning": table,
            "domains": _domains(plan, added, where, groups, settings.domain, run.seed),
            "saliency": found.to_frame(),
        }
        if settings.eval_task:
            models = {name: harness_model(it, run.batch_tokens) for name, it in (("whole", layered), ("pruned", written))}
            options: Any = {"include": settings.eval_include, "limit": run.limit, "seed": run.seed}
            tables["tasks"] = context.stage("evaluating tasks", partial(task_table, models, settings.eval_task, **options))
        key = settings.by, settings.ratio
        loss = {name: values[:, own, 0] for name, values in added.items()}
        bits, same = next((r.bits, r.key) for r in plan if r.bits and r.ratio == settings.ratio)
        judging_by: dict[str, Any] = {"margin": settings.margin, "seed": run.seed}
        cases = mask_cases(*key, loss[key][0], loss["random", settings.ratio], groups[own], **judging_by)
        cases.append(bytes_case(*key, loss[key][0], loss[same][0], groups[own], bits=bits, **judging_by))
        if settings.domain is not None and not own.all():
            cases.append(elsewhere_case(*key, settings.domain, added[key][0, ~own, 0], groups[~own], **judging_by))
        spared, kept, cheaper, *more = verdicts(cases, settings.alpha)
        without = loss.get(("unguarded", settings.ratio))
        guard = guard_claim(
            sorted(found.super_experts()),
            len(tables["saliency"]),
            on=settings.guard,
            without=None if without is None else float(without.mean()),
            own=float(loss[key].mean()),
        )
        headline = [recommend(kept, spared, cheaper), spared, kept, cheaper, *more, guard]
        tasks = verdicts(task_cases(tables["tasks"], "whole", "pruned"), settings.alpha) if "tasks" in tables else []
        claims = [*prune_claims(table, headline), *tasks]
        line = table.set_index(["criterion", "ratio"]).loc[key]
        mask.meta.update(
            {
                "model": loaded.name,
                "fingerprint": loaded.fingerprint,
                "criterion": settings.by,
                "ratio": settings.ratio,
                "loss_before": float(clean[own].mean()),
                "loss_after": float(line["loss"]),
            }
        )
        context.note(claims[0].words.partition("; a decision")[0])
        facts: dict[str, Any] = {
            "title": f"{loaded.name} with {mask.kept} of {banks.n_experts} experts a layer",
            "loss": float(clean[own].mean()),
            "tokens": {"saliency": found.tokens, "loss": int(held.lengths.sum())},
            "config": made.config,
            "bytes": {"before": made.bytes_before, "after": made.bytes},
            "super_experts": [list(e) for e in sorted(found.super_experts())],
        }
        if made.dropped:
            context.note(f"{len(made.dropped)} tensors that the model has no place for were left out ({made.dropped[0]})")
        text = card_text(loaded.name, facts, settings, run.seed, claims, tables)
        (folder / "README.md").write_text(text, encoding="utf-8")
        checkpoint = Checkpoint(folder)
        result = context.result(
            model=loaded, claims=claims, tables=tables, artifacts={"checkpoint": checkpoint, "mask": mask}, **facts
        )
        if run.out is None:
            checkpoint.draft = stack.pop_all()
        else:
            checkpoint.folder = settled(run.out)
    return result


def _control(context: Context, plan: list[Rival], pruned: frozenset[tuple[int, int]]) -> None:
    """Put on record that random masks are others than the criterion's, and leave out as many experts of each layer."""
    for rival in plan:
        if rival.criterion == "random" and rival.ratio == context.settings.ratio:  # type: ignore[attr-defined]
            others = sum(mask.pruned != pruned for mask in rival.masks)
            context.control(
                f"random masks at {rival.ratio:g}",
                differs=others > 0 or not pruned,
                evidence=f"{others} of {len(rival.masks)} leave out other experts than the checkpoint does",
            )


def _table(
    plan: list[Rival],
    added: dict[tuple[str, float], np.ndarray],
    clean: np.ndarray,
    groups: np.ndarray,
    own: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Table ``pruning``, on the text that is like that which chose."""
    lines: list[dict[str, Any]] = []
    for rival in plan:
        values = added[rival.key][:, own]  # (V, N, 2)
        mean = values[..., 0].mean(0)
        loss = float(clean[own].mean() + mean.mean())
        low, high = change(mean, groups[own], seed)
        null = added.get(("random", rival.ratio))
        tried = null is not None and rival.criterion != "random"
        lines.append(
            {
                "criterion": rival.criterion,
                "ratio": rival.ratio,
                "masks": len(values),
                "bytes": 1 - rival.saved,
                "loss": loss,
                "perplexity": float(np.exp(loss)),
                "kl": float(values[..., 1].mean()),
                "effect": float(mean.mean()),
                "low": low,
                "high": high,
                "p": beyond_draws(float(mean.mean()), null[:, own, 0].mean(1), "", 0.0).p if tried else np.nan,  # type: ignore[index]
            }
        )
    return pd.DataFrame(lines)


def _domains(
    plan: list[Rival],
    added: dict[tuple[str, float], np.ndarray],
    where: np.ndarray,
    groups: np.ndarray,
    domain: str | None,
    seed: int,
) -> pd.DataFrame:
    """Table ``domains``."""
    lines: list[dict[str, Any]] = []
    for rival in plan:
        for category in dict.fromkeys(where.tolist()):
            at = where == category
            values = added[rival.key][:, at]
            several = len(np.unique(groups[at])) > 1
            low, high = change(values[..., 0].mean(0), groups[at], seed) if several else (np.nan, np.nan)
            lines.append(
                {
                    "criterion": rival.criterion,
                    "ratio": rival.ratio,
                    "category": category,
                    "chose": domain in (None, category),
                    "documents": len(np.unique(groups[at])),
                    "kl": float(values[..., 1].mean()),
                    "effect": float(values[..., 0].mean()),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(lines)


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
