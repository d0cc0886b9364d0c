"""What a signatures study looks at: a trace whose prompts have categories, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.routing.separation import Cells, cells_of
from moescope.routing.trace import RoutingTrace
from moescope.tasks.build import task_sha256
from moescope.tasks.prompts import Prompt, split_group
from moescope.types import Example, Task


@dataclass(frozen=True, eq=False)
class Subject:
    """A labelled trace.

    Attributes:
        y: (N,) category codes in order of appearance.
        topics, templates: (N,) names; None unless every prompt has one and there are at least two.
        texts: the prompts' texts; None where only a trace is at hand.
        tokenizer: to read token ids; None where only a trace is at hand.
    """

    trace: RoutingTrace
    y: np.ndarray
    categories: list[str]
    topics: np.ndarray | None
    templates: np.ndarray | None
    texts: list[str] | None = None
    tokenizer: Any = None

    def __len__(self) -> int:
        return len(self.y)

    def decode(self, ids: list[int]) -> str:
        """Token ids as text; without a tokenizer as numbers."""
        return " ".join(map(str, ids)) if self.tokenizer is None else str(self.tokenizer.decode(ids))

    def cells(self, rows: np.ndarray | None = None, by: str | None = None) -> Cells:
        """The cells of the prompts (of ``rows`` only): category and template, else topic, else the prompt itself.

        Args:
            by: ``"template"``, ``"topic"`` or ``"prompt"``; None for the first of them that is known.
        """
        names = {"template": self.templates, "topic": self.topics}
        unit = by or next((name for name, known in names.items() if known is not None), "prompt")
        blocks = names.get(unit)
        kept = np.arange(len(self)) if rows is None else rows
        return cells_of(self.y[kept], None if blocks is None else blocks[kept], unit)

    def blocks(self) -> np.ndarray | None:
        """(N,) groups within which labels are exchangeable: topics, where each holds several categories."""
        if self.topics is None:
            return None
        mixed = [len(set(self.y[self.topics == topic].tolist())) > 1 for topic in np.unique(self.topics)]
        return self.topics if all(mixed) else None

    def of(self, rows: np.ndarray) -> Subject:
        """The prompts ``rows`` alone, with the whole trace."""
        topics, templates = (None if v is None else v[rows] for v in (self.topics, self.templates))
        texts = None if self.texts is None else [self.texts[i] for i in rows]
        return replace(self, y=self.y[rows], topics=topics, templates=templates, texts=texts)

    def task(self) -> Task:
        """The prompts as a task, for the surface baselines.

        Raises:
            InputError: the texts are not known.
        """
        if self.texts is None:
            raise InputError("the texts are not known; give the traced prompts for the surface baselines", "prompts")
        groups = [str(i) for i in range(len(self))]
        examples = tuple(Example(t, int(c), g) for t, c, g in zip(self.texts, self.y, groups, strict=True))
        return Task("routing prompts", examples, tuple(self.categories), "prompts", sha256=task_sha256(examples))


def subject_of(trace: RoutingTrace, prompts: Sequence[Prompt] | None = None, tokenizer: Any = None) -> Subject:
    """Match a trace with its prompts and check that the categories can be compared.

    Args:
        prompts: in any order; matched by id. They win over what the trace itself says of category and group.

    Raises:
        InputError: a prompt is missing or has no category, or there are fewer than two categories, or a category has
            one prompt.
    """
    category: list[str | None] = [s.category for s in trace.sequences]
    groups: list[str | None] = [s.group for s in trace.sequences]
    texts = None
    if prompts is not None:
        by_id = {p.id: p for p in prompts}
        missing = next((s.id for s in trace.sequences if s.id not in by_id), None)
        if missing is not None:
            raise InputError(f"no prompt has the id {missing!r}, which stands in the trace; give the traced prompts", "prompts")
        here = [by_id[s.id] for s in trace.sequences]
        category, groups, texts = [p.category for p in here], [p.group for p in here], [p.text for p in here]
    codes, names = check_categories([s.id for s in trace.sequences], category)
    pairs = [split_group(g) for g in groups]
    topics, templates = (_names([pair[i] for pair in pairs]) for i in (0, 1))
    return Subject(trace, codes, names, topics, templates, texts, tokenizer)


def check_categories(ids: Sequence[str], category: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
    """Codes (N,) and names of the categories.

    Raises:
        InputError: see :func:`subject_of`; the message names the prompt or category.
    """
    names = [c for c in dict.fromkeys(category) if c]
    if not names:
        raise InputError("the prompts have no categories; add a column 'category' with at least two values")
    bare = next((i for i, c in enumerate(category) if not c), None)
    if bare is not None:
        raise InputError(f"prompt {ids[bare]!r} has no category; fill it in or leave the prompt out")
    if len(names) < 2:
        raise InputError(f"all prompts are of category {names[0]!r}; signatures are compared across at least two categories")
    codes = np.array([names.index(c) for c in category if c])
    for code, name in enumerate(names):
        if (codes == code).sum() < 2:
            raise InputError(f"category {name!r} has one prompt; within-category similarity needs at least two")
    return codes, names


def _names(values: list[str | None]) -> np.ndarray | None:
    return np.array(values) if all(values) and len(set(values)) > 1 else None
