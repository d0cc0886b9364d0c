"""What a command gives a model to read: batches of texts, by what they are for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moescope.capture.encode import Encoded, batches, encode, model_limit
from moescope.models import LoadedModel
from moescope.studies.circuits.reread import control_rows
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.sparsify.settings import PLAIN, SparsifySettings
from moescope.study.run import Run
from moescope.tasks import ImageTask, fixed_wrap, load_prompts, load_tasks
from moescope.tasks.crossed import load_crossed
from moescope.tasks.questions import Questions
from moescope.types import Task

_CHARACTERS = 4.0
"""of a token, where there is no tokenizer"""


@dataclass(frozen=True)
class Reading:
    """One pass over some texts."""

    purpose: str
    lengths: np.ndarray
    """(N,) int64: tokens of each text"""
    new_tokens: int = 0
    """that are written after each"""

    @property
    def tokens(self) -> int:
        """Forward tokens, padding left out; the last token that is written is not read."""
        return int(self.lengths.sum()) + len(self.lengths) * max(0, self.new_tokens - 1)

    def shapes(self, batch_tokens: int) -> list[tuple[int, int]]:
        """(rows, tokens) of each batch, padding included."""
        full = self.lengths + self.new_tokens
        return [(len(rows), int(self.lengths[rows].max())) for rows in batches(full, batch_tokens)]


@dataclass(frozen=True)
class Work:
    """All that a command reads, as far as it is known beforehand."""

    readings: tuple[Reading, ...]
    rows: int
    """texts that are studied"""
    largest: int
    """of one task"""
    notes: tuple[str, ...] = ()


def work_of(command: str, inputs: dict[str, Any], settings: Any, run: Run, model: LoadedModel) -> Work:
    """Raises InputError where a task or the prompts cannot be read."""
    notes: list[str] = []
    if model.tokenizer is None:
        notes.append(f"there is no tokenizer: {_CHARACTERS:g} characters are taken for a token")
    readings: list[Reading] = []
    sizes: list[int] = []
    if inputs.get("tasks"):
        for task in load_tasks(inputs["tasks"], limit=run.limit, seed=run.seed):
            sizes.append(len(task))
            readings += _of_task(command, task, settings, run, model)
    elif "prompts" in inputs:
        prompts = load_prompts(inputs["prompts"] or "routing-480", limit=run.limit, seed=run.seed)
        sizes.append(len(prompts))
        lengths = _lengths(model, [p.text for p in prompts], run)
        share = getattr(settings, "neuron_share", None)
        readings.append(Reading("main", lengths, 0 if share is not None else getattr(settings, "new_tokens", 0)))
        if share is not None:
            readings.append(Reading("residual stream", lengths))
        if getattr(settings, "twin", False):
            readings.append(Reading("twin", lengths))
    if isinstance(settings, CircuitSettings) and settings.few_shot is not None:
        for task in load_tasks(settings.few_shot, limit=run.limit, seed=run.seed):
            sizes.append(len(task))
            readings.append(Reading("few shot", _lengths(model, [example.text for example in task.examples], run)))
    if isinstance(settings, CircuitSettings) and settings.crossed is not None:
        cells = load_crossed(settings.crossed, limit=run.limit, seed=run.seed).cells
        sizes.append(len(cells))
        readings.append(Reading("crossed", _lengths(model, [example.text for example in cells.examples], run)))
        notes.append("what editing the circuits of texts with two labels takes is not counted")
    if isinstance(settings, SparsifySettings):
        for purpose, tokens in settings.forward_tokens(len(PLAIN)).items():
            readings.append(Reading(purpose, np.full(max(1, tokens // settings.window), settings.window)))
    whole = ("sparsify", "choice", "circuits", "dynamics", "scaling", "trace", "signatures", "atlas")
    if command not in whole or getattr(settings, "intervenes", False):
        notes.append("counted is one pass over the texts; what follows depends on what is found, and comes to more")
    return Work(tuple(readings), sum(sizes), max(sizes, default=0), tuple(notes))


def _of_task(command: str, task: Task, settings: Any, run: Run, model: LoadedModel) -> list[Reading]:
    words = task.kind == "tokens"
    number = {text: i for i, text in enumerate(dict.fromkeys(e.text for e in task.examples))}
    texts = [*number] if words else [example.text for example in task.examples]
    lengths = _lengths(model, texts, run)
    found = []
    if isinstance(task, Questions):
        found.append(Reading("answers", lengths, task.new_tokens))
        lengths = lengths + (task.new_tokens if task.at == "answer" else 0)  # at most: an answer may be shorter
    found.append(Reading("main", lengths))
    if command == "choice":
        found.append(Reading("activations", lengths))
    if command == "scaling" and settings.twin:
        found.append(Reading("twin", lengths))
    if command != "circuits":
        return found
    assert isinstance(settings, CircuitSettings)
    if words:
        if settings.twin:
            found.append(Reading("twin", lengths))
        return found
    images = isinstance(task, ImageTask)
    packed = 0 * lengths if images else _lengths(model, [example.text for example in fixed_wrap(task).examples], run)
    y = np.array([example.label for example in task.examples])
    groups = np.array([example.group for example in task.examples])
    costs = packed + (lengths if settings.twin else 0)
    rows = control_rows(y, groups, costs, settings.control_cost * float(lengths.sum()), settings, run.seed)
    if not images:
        found.append(Reading("template", packed[rows]))
    if settings.twin:
        found.append(Reading("twin", lengths[rows]))
    return found


def _lengths(model: LoadedModel, texts: Sequence[str], run: Run) -> np.ndarray:
    """(N,) int64 tokens of each text."""
    if model.tokenizer is not None:
        read: Encoded = encode(model.read_as(run.special_tokens, run.chat), texts, max_tokens=run.max_tokens)
        return np.asarray(read.lengths)
    most = min(run.max_tokens or 10**9, model_limit(model) or 10**9)
    return np.array([min(most, 1 + math.ceil(len(text) / _CHARACTERS)) for text in texts], np.int64)
