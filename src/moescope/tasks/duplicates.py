"""Texts that are nearly the same: found, and put into one group, so that no split has one of them on either side.

A classifier that has seen a text knows it by heart; rows that agree but for a word then count as evidence though they are
none (leakage). Two texts are nearly the same where the Jaccard similarity of their words is at least :data:`ALIKE`; words that
almost every text has (those of a template) do not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from moescope.tasks.build import normalise, slots, task_sha256
from moescope.tasks.images.task import ImageTask, shown
from moescope.types import Task

ALIKE = 0.75
"""One word in seven may differ."""
_LEAST = 4  # words; shorter texts are the same or not
_TEMPLATE = 0.9  # share of the texts that have a word of the template
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Regrouped:
    """A task whose near-duplicates share a group; ``given`` has the group of each row as it was.

    ``merged`` rows stood in another group than a text that is nearly theirs; ``example`` is a pair of them. ``task`` is the
    task as given where there are none, or where so many are alike that groups could no longer be split (``refused``).
    """

    task: Task
    given: tuple[str, ...]
    merged: int = 0
    example: tuple[str, str] | None = None
    refused: bool = False

    @property
    def note(self) -> str:
        """What a reader must know; empty where all texts differ."""
        if self.example is None:
            return ""
        if isinstance(self.task, ImageTask):
            first, second = map(shown, self.example)
            said = f"{self.task.name}: leakage: {self.merged} images are those of another group ({first}, {second})"
        else:
            first, second = (t if len(t) <= 60 else f"{t[:59]}…" for t in self.example)
            said = f"{self.task.name}: leakage: {self.merged} texts are nearly those of another group ({first!r}, {second!r})"
        if self.refused:
            return f"{said}; too many are alike to keep them on one side of a split, so any accuracy may be learnt by heart"
        return f"{said}; they are kept on one side of every split"


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Pairs (M, 2), int64, i < j, of texts that are nearly the same.

    Exact: a pair above the threshold shares one of its rarest words (prefix filter, Bayardo et al. 2007), so only such pairs
    are compared.
    """
    words = [sorted(set(_WORD.findall(normalise(text)))) or [text] for text in texts]
    vocabulary, frequency = np.unique(
        np.concatenate([np.array(w, dtype=object) for w in words]).astype(str), return_counts=True
    )
    number = {word: i for i, word in enumerate(vocabulary)}
    template = frequency >= max(_TEMPLATE * len(texts), 3)
    rarest = np.lexsort((np.arange(len(vocabulary)), frequency)).argsort()
    rows: list[int] = []
    columns: list[int] = []
    prefix_rows: list[int] = []
    prefix_columns: list[int] = []
    for i, row in enumerate(words):
        codes = [number[w] for w in row if not template[number[w]]] or [number[w] for w in row]
        codes.sort(key=rarest.__getitem__)
        rows += [i] * len(codes)
        columns += codes
        least = len(codes) if len(codes) < _LEAST else int(np.ceil(ALIKE * len(codes) - 1e-9))
        prefix = codes[: len(codes) - least + 1]
        prefix_rows += [i] * len(prefix)
        prefix_columns += prefix
    shape = (len(texts), len(vocabulary))
    whole = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape)
    start = sparse.csr_matrix((np.ones(len(prefix_rows)), (prefix_rows, prefix_columns)), shape)
    pairs = np.stack(sparse.triu(start @ start.T, k=1).nonzero(), axis=1).astype(np.int64)
    size = np.asarray(whole.sum(1)).ravel()
    shared = np.asarray(whole[pairs[:, 0]].multiply(whole[pairs[:, 1]]).sum(1)).ravel()
    first, second = size[pairs[:, 0]], size[pairs[:, 1]]
    alike = shared / (first + second - shared)
    return np.asarray(pairs[np.where(np.minimum(first, second) < _LEAST, alike == 1, alike >= ALIKE - 1e-9)])


def regroup(task: Task, least_groups: int = 2) -> Regrouped:
    """``task`` with the groups of near-duplicates made one; of images, those of equal pixels.

    Args:
        least_groups: of each class that must be left; with fewer the groups stay as given.
    """
    groups = np.array([e.group for e in task.examples])
    pairs = _same_pixels(task) if isinstance(task, ImageTask) else near_duplicates(_content(task))
    apart = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
    if not len(apart):
        return Regrouped(task, tuple(groups))
    names, code = np.unique(groups, return_inverse=True)
    edges = code[apart]
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (len(names),) * 2)
    joined = connected_components(graph, directed=False)[1][code]
    y = np.array([e.label for e in task.examples])
    i, j = apart[0]
    merged, example = len(np.unique(apart)), (task.examples[i].text, task.examples[j].text)
    if min(len(np.unique(joined[y == label])) for label in np.unique(y)) < least_groups:
        return Regrouped(task, tuple(groups), merged, example, refused=True)
    first = {group: names[code[row]] for row, group in reversed(list(enumerate(joined)))}
    examples = tuple(replace(e, group=str(first[g])) for e, g in zip(task.examples, joined, strict=True))
    made = replace(task, examples=examples, sha256=task_sha256(examples))
    return Regrouped(made.hashed() if isinstance(made, ImageTask) else made, tuple(groups), merged, example)


def _content(task: Task) -> list[str]:
    """What is compared: of questions to be answered the question alone, which may have few words beside a long template."""
    return slots(task) if task.kind == "answers" else [e.text for e in task.examples]


def _same_pixels(task: ImageTask) -> np.ndarray:
    """Pairs (M, 2), int64, i < j: each image with the first of equal pixels."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(seen.content, row), row) for row, seen in enumerate(task.surfaces())]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)
