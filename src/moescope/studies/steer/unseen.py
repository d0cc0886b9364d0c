"""Boosts for a task never seen, made from a few unlabelled prompts of it, beside those that other tasks' prompts make."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.intervene.experts import steer_experts
from moescope.routing import trace_prompts
from moescope.studies.steer.choose import route_like
from moescope.studies.steer.effects import Texts, one_by_one
from moescope.studies.steer.steering import Steering
from moescope.study.paired import interval_over, paired_effect

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.study.run import Counter, Run
    from moescope.tasks import Prompt
    from moescope.tasks.passages import Passage

_CATEGORIES = 3  # the unseen one, and two others, of which each is boosted against the other


def few_prompts(prompts: Sequence[Prompt], n: int, seed: int) -> list[Prompt]:
    """``n`` prompts of each category, drawn by ``seed``; those of a smaller ``n`` are among those of a larger one.

    Raises:
        InputError: a category with fewer, or fewer than three categories.
    """
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.category is not None:
            by_category.setdefault(prompt.category, []).append(prompt)
    if len(by_category) < _CATEGORIES:
        raise InputError(
            f"the prompts have {len(by_category)} categories; beside the unseen one, two others are needed to boost by",
            "unseen",
        )
    drawn = []
    for category, members in by_category.items():
        if len(members) < n:
            raise InputError(f"{n} prompts asked for and category {category!r} has {len(members)}; ask for fewer", "unseen")
        drawn += [members[i] for i in np.random.default_rng(seed).permutation(len(members))[:n]]
    return drawn


def check_documents(prompts: Sequence[Prompt], passages: Sequence[Passage], unseen: Collection[str]) -> None:
    """Whether no prompt that makes a boost is of a document that judges it, and each ``unseen`` category has two documents.

    Raises:
        InputError: one is (its topic is the group of a passage of its category), or a category has one document alone.
    """
    documents = {(p.category, p.group) for p in passages}
    alone = next((c for c in unseen if sum(category == c for category, _ in documents) < 2), None)
    if alone is not None:
        raise InputError(f"category {alone!r} has texts of one document; intervals need two or more", "texts")
    both = next((p for p in prompts if (p.category, p.topic) in documents), None)
    if both is not None:
        raise InputError(
            f"prompt {both.id!r} and a text that judges are both of document {both.topic!r}; leave it out of one", "prompts"
        )


def for_unseen(model: LoadedModel, prompts: Sequence[Prompt], asked: Sequence[tuple[str, int]], run: Run) -> list[Steering]:
    """For each pair of a category and a number, the boosts that so many prompts of it make, and those of the others."""
    found = []
    for category, n in asked:
        drawn = few_prompts(prompts, n, run.seed)
        trace = trace_prompts(
            model, drawn, weights=False, tokens=False, max_tokens=run.max_tokens, batch_tokens=run.batch_tokens
        )
        known = dict.fromkeys(p.category for p in drawn if p.category not in (None, category))
        # an unseen task is not among what another is told apart from: that would push its own experts down
        others = {c: route_like(trace, c, against=known.keys() - {c}) for c in known if c is not None}
        name = f"boost by {n} prompts of {category}"
        found.append(Steering(name, route_like(trace, category), category, "help", others))
    return found


def beside_others(
    model: LoadedModel, steering: Steering, texts: Texts, run: Run, progress: Counter | None = None
) -> pd.DataFrame:
    """The boosts that other tasks' prompts make, on the texts of the target: rows of the table ``others``, with
    ``beyond``, by how much less loss the steering itself leaves, paired by text, intervals over documents."""
    assert steering.target is not None
    of = texts.of(steering.target)
    groups = of.groups(np.arange(len(of.passages)))
    edits: list[Any] = [steering.edits, *steering.others.values()]
    own, *rest = one_by_one(model, of, [partial(steer_experts, model, one) for one in edits], run, progress)
    rows = []
    for category, effect in zip(steering.others, rest, strict=True):
        low, high = interval_over(effect, groups, run.seed)
        beyond = paired_effect(-own, -effect, groups, category, 0.0, run.seed, share=False)
        row: dict[str, Any] = {"steering": steering.name, "category": steering.target, "prompts_of": category}
        row |= {"effect": float(effect.mean()), "low": low, "high": high, "beyond": beyond.value}
        rows.append(row | {"beyond_low": beyond.low, "beyond_high": beyond.high, "p": beyond.p})
    return pd.DataFrame(rows)
