"""From checked rows to a :class:`~moescope.types.Task`: labels, groups, limit, rendering, hash."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moescope.errors import InputError
from moescope.types import Example, Task


@dataclass(frozen=True)
class RenderedTask(Task):
    """A task that remembers its template and, for each rendered text, the content that was placed in it.

    ``slot_of`` maps a rendered text to the part that carries the class (the answer, the review): surface baselines act
    on that part, because a template makes every text end alike.
    """

    template: str = "{text}"
    slot_of: dict[str, str] = field(default_factory=dict, compare=False, repr=False)


def normalise(text: str) -> str:
    """Text without case, punctuation and spacing: rows that agree on it form one group."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text.strip()


def task_sha256(examples: Sequence[Example]) -> str:
    """SHA-256 over the rendered texts, labels (graded ones and the places of words too) and groups, in order."""
    digest = hashlib.sha256()
    for example in examples:
        more = [part for part in (example.value, example.span) if part is not None]
        digest.update(json.dumps([example.text, example.label, example.group, *more], ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def subset(task: Task, indices: Sequence[int] | np.ndarray) -> Task:
    """The task's rows at ``indices`` (integers, shape (n,)), in that order; classes and answers stay as they are."""
    examples = tuple(task.examples[int(i)] for i in indices)
    return replace(task, examples=examples, sha256=task_sha256(examples))


def _common_prefix(texts: Sequence[str]) -> str:
    # What the first and the last in sorted order share, all share.
    first, last = min(texts, default=""), max(texts, default="")
    at = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:at]


def slots(task: Task) -> list[str]:
    """For each row the content without its template.

    Tasks of :func:`~moescope.tasks.load_task` know theirs; of a labelled word it is the word. For any other task it is
    the text without the beginning and end that all texts share, cut at line ends so that no content is lost.
    """
    texts = [e.text for e in task.examples]
    if task.kind == "tokens":
        return [word_of(e) for e in task.examples]
    if isinstance(task, RenderedTask) and all(t in task.slot_of for t in texts):
        return [task.slot_of[t] for t in texts]
    head = _common_prefix(texts)
    head = head[: head.rfind("\n") + 1]
    tail = _common_prefix([t[len(head) :][::-1] for t in texts])[::-1]
    cut = len(tail) - tail.find("\n") if "\n" in tail else 0
    return [t[len(head) : len(t) - cut] for t in texts]


def word_of(example: Example) -> str:
    """The labelled word; the whole text where no word of it is."""
    return example.text if example.span is None else example.text[slice(*example.span)]


def take_groups(labels: np.ndarray, groups: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Indices (sorted) of at most ``limit`` rows in whole groups, class-balanced as far as the classes reach.

    Each class gets an equal quota; what a small class cannot fill goes to the others. Groups come in seeded random
    order and are taken while they fit every class's quota, so where groups mix classes somewhat fewer rows may come.
    """
    n_classes = int(labels.max()) + 1
    if limit >= len(labels):
        return np.arange(len(labels))
    counts = np.bincount(labels, minlength=n_classes)
    quota = np.zeros(n_classes, dtype=np.int64)
    for i, c in enumerate(np.argsort(counts, kind="stable")):
        quota[c] = min(counts[c], -(-(limit - quota.sum()) // (n_classes - i)))
    names, member = np.unique(groups, return_inverse=True)
    table = np.zeros((len(names), n_classes), dtype=np.int64)
    np.add.at(table, (member, labels), 1)
    taken = np.zeros(len(names), dtype=bool)
    used = np.zeros(n_classes, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()

    def sweep(slack: float) -> bool:
        """Take what fits the quotas and leaves their filled shares within ``slack``; True if anything was taken."""
        nonlocal used
        before = used.sum()
        for g in order:
            after = used + table[g]
            if not taken[g] and (after <= quota).all() and np.ptp(after / np.maximum(quota, 1)) <= slack:
                taken[g] = True
                used = after
        return bool(used.sum() > before)

    # Groups that mix classes unevenly would fill one quota first, and nothing would fit after it: grow evenly.
    if ((table > 0).sum(axis=1) > 1).any():
        while sweep(0.02):
            pass
    sweep(1.0)
    return np.flatnonzero(taken[member])


def require_classes(labels: Sequence[int], n_classes: int, context: str) -> None:
    """Raise InputError unless every class 0..n_classes-1 has a row."""
    if len(set(labels)) < n_classes:
        raise InputError(f"{context}: the limit leaves {len(set(labels))} of {n_classes} classes; raise limit=")
