"""Texts that carry two labels at once, every class of the one with every class of the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.tasks.build import subset, take_groups
from moescope.tasks.crossed_made import tone_certainty
from moescope.tasks.load import load_task
from moescope.tasks.sources import names_file
from moescope.tasks.spec import parse_limit, parse_spec, suggest
from moescope.types import Task

MADE = {"tone-certainty": (tone_certainty, ("tone", "certainty"))}
"""Crossed texts that moescope makes: rows, and the two label columns."""


@dataclass(frozen=True)
class Crossed:
    """The same texts under two labels.

    Attributes:
        properties: two tasks of two classes, with the same texts and groups.
        cells: the texts with four classes, one for each combination: ``2 * first + second``.
    """

    properties: tuple[Task, Task]
    cells: Task

    @property
    def labels(self) -> np.ndarray:
        """(2, N) int: the class of each text by either property."""
        return np.array([[e.label for e in task.examples] for task in self.properties])


def load_crossed(spec: str, *, limit: int | None = None, seed: int = 0) -> Crossed:
    """Load ``SOURCE?labels=a,b``: a file with two columns of labels, or the name of texts in :data:`MADE`.

    Further options are those of files (:func:`~moescope.tasks.load_task`). ``limit`` takes whole groups, the four combinations
    alike as far as possible.

    Raises:
        InputError: no or more than two columns, a label of other than two classes, a combination without a text; or what
            :func:`~moescope.tasks.load_task` refuses.
    """
    parsed = parse_spec(spec)
    options = dict(parsed.options)
    most = parse_limit(parsed, limit)
    options.pop("limit", None)
    named = options.pop("labels", None)
    if parsed.source in MADE:
        if options or named is not None:
            raise InputError(f"{spec!r}: {parsed.source} takes no option but limit", "crossed")
        rows, columns = MADE[parsed.source][0](), MADE[parsed.source][1]
        first, second = (load_task(rows, name=column, label=column, group="group") for column in columns)
    else:
        if not names_file(parsed.source):
            near = suggest(parsed.source, MADE)
            raise InputError(f"{spec!r}: no file and none of {', '.join(MADE)}{near}; write FILE?labels=a,b", "crossed")
        given = (named or "").split(",")
        if len(given) != 2 or not all(given) or given[0] == given[1]:
            raise InputError(f"{spec!r}: name the two columns of labels: FILE?labels=a,b", "crossed")
        if "label" in options:
            raise InputError(f"{spec!r}: label= is one column; name both with labels=a,b", "crossed")
        read: Any = options
        first, second = (load_task(Path(parsed.source), name=column, label=column, **read) for column in given)
    for task in (first, second):
        if len(task.classes) != 2:
            raise InputError(f"{spec!r}: column {task.name!r} has {len(task.classes)} classes; it needs two", "crossed")
    y = np.array([[e.label for e in task.examples] for task in (first, second)])
    cell = 2 * y[0] + y[1]
    names = tuple(f"{a}, {b}" for a in first.classes for b in second.classes)
    empty = [name for c, name in enumerate(names) if not (cell == c).any()]
    if empty:
        raise InputError(
            f"{spec!r}: no text is {empty[0]!r}; the labels must be crossed, every class with every other", "crossed"
        )
    groups = np.array([e.group for e in first.examples])
    keep = np.arange(len(cell)) if most is None else take_groups(cell, groups, most, seed)
    if len(np.unique(cell[keep])) < 4:
        raise InputError(f"{spec!r}: the limit leaves a combination of classes without a text; raise limit=", "crossed")
    joint = replace(
        first,
        name=f"{first.name} and {second.name}",
        classes=names,
        examples=tuple(replace(e, label=int(c)) for e, c in zip(first.examples, cell, strict=True)),
    )
    return Crossed((subset(first, keep), subset(second, keep)), subset(joint, keep))
