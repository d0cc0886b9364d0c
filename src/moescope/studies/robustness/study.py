"""How far signatures move when a prompt is written otherwise or run otherwise, and when a monitor's answer flips.

A distance has no meaning by itself: two prompts of one category are some distance apart as well. So every change is given as
a multiple of that distance, and beside it the share of prompts that a monitor, fitted without them, then calls something
else.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError
from moescope.models import from_model
from moescope.routing.classify import folds_by
from moescope.routing.counts import routing_counts
from moescope.routing.nulls import pooled_cosine
from moescope.routing.subject import check_categories
from moescope.stats import group_bootstrap, paired_bootstrap_difference, wilson
from moescope.studies.robustness.attack import Attack, AttackSettings, find_suffixes
from moescope.studies.robustness.claims import robustness_claims
from moescope.studies.robustness.monitor import Counter, Monitors, flat_signatures
from moescope.studies.robustness.perturb import PERTURBATIONS, perturbed
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import group_folds

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.tasks.prompts import Prompt

Report = Callable[[str, int, int], None]
MakeCounter = Callable[["LoadedModel"], Counter]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessSettings:
    """What is tried.

    Attributes:
        perturbations: of the text, from :data:`PERTURBATIONS`; ``identity`` is the control that
            must give nought.
        precision: also run in bfloat16 (or, a bf16 model, in fp32).
        batches: also run the prompts one by one instead of together.
        attacked: prompts for which a suffix is searched, as many of each category; 0 leaves the search out.
    """

    perturbations: tuple[str, ...] = tuple(PERTURBATIONS)
    precision: bool = True
    batches: bool = True
    attacked: int = 24
    attack: AttackSettings = dataclasses.field(default_factory=AttackSettings)
    n_folds: int = 5
    seed: int = 0
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        unknown = next((p for p in self.perturbations if p not in PERTURBATIONS), None)
        if unknown is not None:
            raise InputError(f"--perturbation {unknown!r} is unknown: choose from {', '.join(PERTURBATIONS)}")


def robustness_study(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    settings: RobustnessSettings | None = None,
    make_counter: MakeCounter | None = None,
    report: Report | None = None,
) -> StudyResult:
    """Perturb prompts, precision and batches, search for suffixes, and say what a monitor of the routing makes of it.

    Args:
        prompts: with categories.
        make_counter: how experts are counted in a model, where they are not those of its own router (a dense model).

    Returns:
        Kind ``"robustness"``; tables ``changes`` (one row per change), ``by_category`` and ``attack`` (one row per prompt).

    Raises:
        InputError: prompts without categories, an unknown perturbation, or a dense model without ``make_counter``.
    """
    settings = settings or RobustnessSettings()
    began = time.time()
    tell = report or (lambda stage, done, total: None)
    y, categories = check_categories([p.id for p in prompts], [p.category for p in prompts])
    make = make_counter or (lambda m: partial(routing_counts, m, batch_tokens=settings.batch_tokens))
    counter = make(model)
    encoded = encode(model, [p.text for p in prompts])
    clean = counter(encoded)  # (N, L, E)
    folds = _folds(prompts, y, settings)
    monitors = Monitors.fit(flat_signatures(clean), y, folds)
    rows = np.arange(len(y))
    base = _Base(clean, encoded.lengths, y, monitors.predict(flat_signatures(clean), rows))
    changes: list[dict[str, Any]] = []
    predicted: dict[str, np.ndarray] = {}

    def add(name: str, counts: np.ndarray, lengths: np.ndarray) -> None:
        predicted[name] = monitors.predict(flat_signatures(counts), rows)
        changes.append({"change": name, **base.compare(counts, lengths, predicted[name], settings.seed)})

    steps = [*settings.perturbations, *["precision"] * settings.precision, *["batch"] * settings.batches]
    for done, name in enumerate(steps):
        tell("perturbing", done, len(steps))
        if name == "precision":
            other = _other_precision(model)
            add(f"precision {str(other.dtype).removeprefix('torch.')}", make(other)(encoded), encoded.lengths)
        elif name == "batch":
            alone = np.concatenate([counter(encoded.rows(i, i + 1)) for i in range(len(encoded))])
            add("one by one", alone, encoded.lengths)
        else:
            texts = encode(model, [p.text for p in perturbed(prompts, name, settings.seed)])
            add(name, counter(texts), texts.lengths)
    tables = {"changes": pd.DataFrame(changes), "by_category": _by_category(predicted, base, categories)}
    attack = None
    if settings.attacked:
        chosen = _chosen(y, base.predicted, settings)
        attack = find_suffixes(
            counter,
            monitors,
            [_ids(encoded, i) for i in chosen],
            chosen,
            y[chosen],
            suffix_vocabulary(model),
            settings=dataclasses.replace(settings.attack, seed=settings.seed),
            progress=lambda done, total: tell("searching suffixes", done, total),
        )
        tables["attack"] = _attack_table(model, attack, prompts, chosen, categories)
    meta = provenance(model, [], seed=settings.seed, settings=dataclasses.asdict(settings))
    meta |= {"title": f"Robustness of the routing of {model.name}", "seconds": round(time.time() - began, 1)}
    meta["prompts"] = len(prompts)
    tell("done", 1, 1)
    claims = robustness_claims(tables["changes"], attack, settings.attack)
    return StudyResult("robustness", meta, tuple(claims), tables=tables)


@dataclasses.dataclass(frozen=True, eq=False)
class _Base:
    """The untouched prompts: counts (N, L, E), lengths and categories (N,), and what the monitor calls them (N,)."""

    counts: np.ndarray
    lengths: np.ndarray
    y: np.ndarray
    predicted: np.ndarray

    def compare(self, counts: np.ndarray, lengths: np.ndarray, predicted: np.ndarray, seed: int) -> dict[str, Any]:
        n = len(self.y)
        both = np.concatenate([self.counts, counts])
        flat = flat_signatures(both)
        unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
        cosine = unit @ unit.T  # (2N, 2N)
        expected = pooled_cosine(both, np.concatenate([self.lengths, lengths]))
        corrected = (cosine - expected) / np.maximum(1 - expected, 1e-12)
        same = (self.y[:, None] == self.y) & ~np.eye(n, dtype=bool)
        row: dict[str, Any] = {}
        still = (both[:n] == both[n:]).all((1, 2))
        for name, similar in (("", cosine), ("corrected_", corrected)):
            # equal counts are at distance 0, not at the rounding of a cosine
            moved = np.where(still, 0.0, 1 - similar[np.arange(n), n + np.arange(n)])
            within = float((1 - similar[:n, :n])[same].mean())
            # distances are no proportions: where none moved there is no doubt for Wilson's interval to add
            low, high = group_bootstrap(moved, seed=seed) if moved.any() else (0.0, 0.0)
            row |= {
                f"{name}cosine": float(1 - moved.mean()),
                f"{name}within": float(1 - within),
                f"{name}relative": float(moved.mean() / within),
                f"{name}relative_low": low / within,
                f"{name}relative_high": high / within,
            }
        flips = predicted != self.predicted
        low, high = wilson(int(flips.sum()), n)
        before, after = self.predicted == self.y, predicted == self.y
        change = paired_bootstrap_difference(after, before, seed=seed)
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


def _folds(prompts: Sequence[Prompt], y: np.ndarray, settings: RobustnessSettings) -> np.ndarray:
    topics = [p.topic for p in prompts]
    if all(topics):
        by_topic = folds_by(y, np.array(topics), settings.n_folds, settings.seed)
        if by_topic is not None:
            return by_topic
    return group_folds(y, np.arange(len(y)), settings.n_folds, settings.seed)


def _other_precision(model: LoadedModel) -> LoadedModel:
    dtype = torch.float32 if model.dtype == torch.bfloat16 else torch.bfloat16
    return from_model(copy.deepcopy(model.module).to(dtype), model.tokenizer, model.name, revision=model.revision)


def _ids(encoded: Encoded, row: int) -> np.ndarray:
    """A prompt's tokens without special ones that the tokenizer puts at its end, where the suffix goes."""
    special = encoded.special_of(row)
    end = len(special) - int(special[::-1].argmin())
    return encoded[row][:end]


def _chosen(y: np.ndarray, predicted: np.ndarray, settings: RobustnessSettings) -> np.ndarray:
    """Prompts to attack, in turn from each category, among those that the monitor gets right."""
    rng = np.random.default_rng(settings.seed)
    right = rng.permutation(np.flatnonzero(predicted == y))
    if not len(right):
        raise InputError("the monitor names no prompt's category rightly, so none can be flipped; leave the search out")
    turn = np.zeros(len(right), dtype=np.int64)
    for category in np.unique(y[right]):
        at = y[right] == category
        turn[at] = np.arange(int(at.sum()))
    return right[np.argsort(turn, kind="stable")][: settings.attacked]


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
