"""How far signatures move when a prompt is written otherwise or run otherwise, and when a monitor's answer flips.

A distance has no meaning by itself: two prompts of one category are some distance apart as well. So every change is given as
a multiple of that distance, and beside it the share of prompts that a monitor, fitted without them, then calls something
else.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError
from moescope.models import LoadedModel, from_model
from moescope.routing.classify import prompt_folds
from moescope.routing.counts import routing_counts
from moescope.routing.dense import fit_dense_experts, is_dense
from moescope.routing.nulls import pooled_cosine
from moescope.routing.similarity import null_corrected
from moescope.routing.subject import check_categories
from moescope.stats import group_bootstrap
from moescope.studies.robustness.attack import Attack, find_suffixes
from moescope.studies.robustness.cascade import cascade_of, monitor_layer
from moescope.studies.robustness.claims import robustness_claims
from moescope.studies.robustness.claims_cascade import cascade_claims
from moescope.studies.robustness.monitor import Counter, Monitors, flat_signatures
from moescope.studies.robustness.perturb import perturbed
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.studies.robustness.turns import watched_rows
from moescope.study.paired import above_chance, paired_effect
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb
from moescope.study.result import Artifact, StudyResult
from moescope.study.run import Run
from moescope.tasks import Prompt

_SETTINGS, _RUN = RobustnessSettings(), Run()


@verb
def robustness(
    model: ModelLike, prompts: PromptsLike = "routing-480", settings: RobustnessSettings = _SETTINGS, *, run: Run = _RUN
) -> StudyResult:
    """Perturb prompts, precision and batches, search for suffixes, and say what a monitor of the routing makes of it.

    A dense model is read by groups of its MLPs' neurons (:mod:`moescope.routing.dense`).

    Args:
        prompts: with categories.

    Returns:
        A result of kind ``"robustness"``: tables ``changes``, ``by_category`` and ``attack``; where ``settings.monitor`` names
        a category also ``monitor`` and ``monitor_changes``, and the artifact ``monitor``, a
        :class:`~moescope.runtime.monitor.MonitorCascade`.

    Raises:
        InputError: prompts without categories, a monitor that names none rightly, or too few prompts for its promise.

    >>> import moescope
    >>> settings = moescope.RobustnessSettings(attacked=4, queries=64)
    >>> moescope.robustness("moe-tiny", "routing-80", settings).table("attack")  # doctest: +SKIP
    """
    context = Context("robustness", settings, run, of=RobustnessSettings)
    asked = context.prompts(prompts)
    y, categories = check_categories([p.id for p in asked], [p.category for p in asked])
    parts = watched_rows(asked, y, categories, settings, run.seed)
    loaded = context.load(model)
    if parts is not None:
        monitor_layer(loaded, settings)
    read = partial(encode, loaded, max_tokens=run.max_tokens)
    make = _counters(context, loaded, asked, settings)
    counter, encoded = make(loaded), read([p.text for p in asked])
    clean = context.stage("reading the prompts", lambda: counter(encoded))  # (N, L, E)
    topics = np.array([p.topic for p in asked]) if all(p.topic for p in asked) else None
    folds = context.rows(prompt_folds(y, topics, settings.n_folds, run.seed))
    monitors = Monitors.fit(flat_signatures(clean), y, folds)
    rows = np.arange(len(y))
    base = _Base(clean, encoded.lengths, y, monitors.predict(flat_signatures(clean), rows), folds.groups)
    changes: list[dict[str, Any]] = []
    predicted: dict[str, np.ndarray] = {}

    def change(name: str) -> tuple[str, np.ndarray, np.ndarray, int]:
        """Its name, counts, lengths and how many texts it changed."""
        if name == "precision":
            other = _other_precision(loaded)
            return f"precision {str(other.dtype).removeprefix('torch.')}", make(other)(encoded), encoded.lengths, 0
        if name == "batch":
            alone = np.concatenate([counter(encoded.rows(i, i + 1)) for i in range(len(encoded))])
            return "one by one", alone, encoded.lengths, 0
        written = perturbed(asked, name, run.seed)  # type: ignore[arg-type]
        texts = read([p.text for p in written])
        return name, counter(texts), texts.lengths, sum(p.text != q.text for p, q in zip(asked, written, strict=True))

    others = ["precision"] * settings.precision + ["batch"] * settings.batches
    changed: dict[str, int] = {}
    for name in context.steps("perturbing", [*settings.perturbations, *others]):
        label, counts, lengths, texts = context.stage(f"perturbing: {name}", partial(change, name))
        if name in settings.perturbations:
            changed[name] = texts
        predicted[label] = monitors.predict(flat_signatures(counts), rows)
        changes.append({"change": label, **base.compare(counts, lengths, predicted[label], run.seed)})
    _identity(context, changed, len(asked))
    tables = {"changes": pd.DataFrame(changes), "by_category": _by_category(predicted, base, categories)}
    known = above_chance(base.predicted == y, y, folds.groups, settings.margin, run.seed)
    attack = None
    if settings.attacked:
        chosen = _chosen(y, base.predicted, settings.attacked, run.seed)
        search = partial(
            find_suffixes,
            counter,
            monitors,
            [_ids(encoded, i) for i in chosen],
            chosen,
            y[chosen],
            suffix_vocabulary(loaded),
            settings=settings,
            seed=run.seed,
            progress=context.counter("searching suffixes"),
        )
        attack = context.stage("searching suffixes", search)
        context.control(
            "random suffixes", differs=attack.own > 0, evidence=f"{attack.own:.1%} of them are none that the search tried"
        )
        tables["attack"] = _attack_table(loaded, attack, asked, chosen, categories)
    claims = robustness_claims(tables["changes"], known, attack, settings, run.seed)
    artifacts: dict[str, Artifact] = {}
    if parts is not None:
        kept, watching = cascade_of(context, loaded, asked, y == categories.index(str(settings.monitor)), parts, settings)
        claims += cascade_claims(kept, watching["monitor_changes"], settings, run.seed)
        tables |= watching
        artifacts["monitor"] = kept.monitor
    return context.result(
        model=loaded,
        title=f"Robustness of the routing of {loaded.name}",
        claims=claims,
        tables=tables,
        artifacts=artifacts,
        prompts=len(asked),
    )


def _counters(
    context: Context, model: LoadedModel, prompts: Sequence[Prompt], settings: RobustnessSettings
) -> Callable[[LoadedModel], Counter]:
    """What makes the counter of a model of this kind: its router's experts, or a dense model's groups of neurons."""
    run = context.run
    if not is_dense(model):
        return lambda other: partial(routing_counts, other, batch_tokens=run.batch_tokens)
    texts = encode(model, [p.text for p in prompts], max_tokens=run.max_tokens)
    options = {"n_experts": settings.n_experts, "k": settings.active, "seed": run.seed, "batch_tokens": run.batch_tokens}
    fitted = context.stage("grouping neurons", partial(fit_dense_experts, model, texts, **options))
    return lambda other: partial(fitted.counts, other, batch_tokens=run.batch_tokens)


def _identity(context: Context, changed: dict[str, int], n: int) -> None:
    """The prompts as they are stand beside those perturbations that change a text."""
    for name, count in changed.items():
        if name != "identity" and not count:
            context.note(f"{name} changes none of these prompts")
    others = {name: count for name, count in changed.items() if count}
    if "identity" in changed and others:
        said = ", ".join(f"{name} {count}" for name, count in others.items())
        context.control("identity", differs="identity" not in others, evidence=f"texts changed of {n}: {said}; identity 0")


@dataclasses.dataclass(frozen=True, eq=False)
class _Base:
    """The untouched prompts: counts (N, L, E), lengths and categories (N,), and what the monitor calls them (N,)."""

    counts: np.ndarray
    lengths: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    groups: np.ndarray
    """(N,) topics, or each prompt by itself: what is resampled"""

    def compare(self, counts: np.ndarray, lengths: np.ndarray, predicted: np.ndarray, seed: int) -> dict[str, Any]:
        n = len(self.y)
        both = np.concatenate([self.counts, counts])
        flat = flat_signatures(both)
        unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
        cosine = unit @ unit.T  # (2N, 2N)
        expected = pooled_cosine(both, np.concatenate([self.lengths, lengths]))
        corrected = null_corrected(cosine, expected)
        same = (self.y[:, None] == self.y) & ~np.eye(n, dtype=bool)
        row: dict[str, Any] = {}
        still = (both[:n] == both[n:]).all((1, 2))
        for name, similar in (("", cosine), ("corrected_", corrected)):
            # equal counts are at distance 0, not at the rounding of a cosine
            moved = np.where(still, 0.0, 1 - similar[np.arange(n), n + np.arange(n)])
            within = float((1 - similar[:n, :n])[same].mean())
            if not within > 1e-12:
                raise InputError(
                    "those of one category are all routed alike, so no change can be measured by their distance: give texts "
                    "that differ",
                    "prompts",
                )
            # distances are no proportions: where none moved there is no doubt for Wilson's interval to add
            low, high = group_bootstrap(moved, self.groups, seed=seed) if moved.any() else (0.0, 0.0)
            row |= {
                f"{name}cosine": float(1 - moved.mean()),
                f"{name}within": float(1 - within),
                f"{name}relative": float(moved.mean() / within),
                f"{name}relative_low": low / within,
                f"{name}relative_high": high / within,
            }
        flips = predicted != self.predicted
        low, high = group_bootstrap(flips.astype(float), self.groups, seed=seed)
        before, after = self.predicted == self.y, predicted == self.y
        change = paired_effect(after, before, self.groups, "", 0.0, seed)
        return {
            **row,
            "unmoved": float(still.mean()),
            "flips": float(flips.mean()),
            "flips_low": low,
            "flips_high": high,
            "accuracy_before": float(before.mean()),
            "accuracy_after": float(after.mean()),
            "accuracy_change_low": change.low,
            "accuracy_change_high": change.high,
            "p": change.p,
        }


def suffix_vocabulary(model: LoadedModel) -> np.ndarray:
    """int64: token ids that stand for text: no special token, and no piece of a character."""
    tokenizer = model.tokenizer
    size = min(len(tokenizer), int(model.config.get_text_config().vocab_size))
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    return np.array(
        [i for i, text in enumerate(texts) if i not in special and text and "\N{REPLACEMENT CHARACTER}" not in text]
    )


def _other_precision(model: LoadedModel) -> LoadedModel:
    dtype = torch.float32 if model.dtype == torch.bfloat16 else torch.bfloat16
    other = from_model(copy.deepcopy(model.module).to(dtype), model.tokenizer, model.name, revision=model.revision)
    return dataclasses.replace(other, reading=model.reading)


def _ids(encoded: Encoded, row: int) -> np.ndarray:
    """A prompt's tokens without special ones that the tokenizer puts at its end, where the suffix goes."""
    special = encoded.special_of(row)
    end = len(special) - int(special[::-1].argmin())
    return encoded[row][:end]


def _chosen(y: np.ndarray, predicted: np.ndarray, attacked: int, seed: int) -> np.ndarray:
    """Prompts to attack, in turn from each category, among those that the monitor gets right."""
    rng = np.random.default_rng(seed)
    right = rng.permutation(np.flatnonzero(predicted == y))
    if not len(right):
        raise InputError(
            "the monitor names no prompt's category rightly, so none can be flipped; leave the search out", "attacked"
        )
    turn = np.zeros(len(right), dtype=np.int64)
    for category in np.unique(y[right]):
        at = y[right] == category
        turn[at] = np.arange(int(at.sum()))
    return right[np.argsort(turn, kind="stable")][:attacked]


def _by_category(predicted: dict[str, np.ndarray], base: _Base, categories: list[str]) -> pd.DataFrame:
    rows = []
    for name, now in predicted.items():
        for code, category in enumerate(categories):
            at = base.y == code
            flips = now[at] != base.predicted[at]
            rows.append({"change": name, "category": category, "n": int(at.sum()), "flips": float(flips.mean())})
    return pd.DataFrame(rows)


def _attack_table(
    model: LoadedModel, attack: Attack, prompts: Sequence[Prompt], chosen: np.ndarray, categories: list[str]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": [prompts[i].id for i in chosen],
            "category": [prompts[i].category for i in chosen],
            "margin": attack.clean,
            "one_random": attack.first,
            "best_random": attack.random,
            "search": attack.search,
            "becomes": [categories[c] for c in attack.becomes],
            "suffix": model.tokenizer.batch_decode(attack.suffixes.tolist()),
        }
    )
