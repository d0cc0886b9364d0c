"""What a command gives a model to read: batches of texts, by what they are for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moescope.capture.encode import Encoded, batches, encode, model_limit
from moescope.models import LoadedModel
from moescope.studies.circuits.reread import control_rows
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.route.settings import EARLY, FOREIGN, PASSES, TURNS, WAYS, RouteSettings, first_layers
from moescope.studies.sparsify.settings import PLAIN, SparsifySettings
from moescope.study.rows import FOLDS
from moescope.study.run import Run
from moescope.tasks import ImageTask, fixed_wrap, load_prompts, load_tasks, plain_text
from moescope.tasks.crossed import load_crossed
from moescope.tasks.questions import Questions
from moescope.types import Task

_CHARACTERS = 4.0
"""of a token, where there is no tokenizer"""
TIMED = "what is timed leaves early: counted is full depth, which is the most it can come to"


@dataclass(frozen=True)
class Reading:
    """One pass over some texts."""

    purpose: str
    lengths: np.ndarray
    """(N,) int64: tokens of each text"""
    new_tokens: int = 0
    """that are written after each"""
    share: float = 1.0
    """of the layers that are run"""

    @property
    def tokens(self) -> int:
        """Forward tokens, padding left out, by the share of layers; the last token that is written is not read."""
        return round(self.share * (int(self.lengths.sum()) + len(self.lengths) * max(0, self.new_tokens - 1)))

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
        tasks = load_tasks(inputs["tasks"], limit=run.limit, seed=run.seed)
        sizes += [len(task) for task in tasks]
        if isinstance(settings, RouteSettings):
            readings += of_route([_lengths(model, [e.text for e in task.examples], run) for task in tasks], settings, model)
            readings.append(Reading("WikiText paragraphs", _foreign(model, readings[0], run), share=readings[0].share))
            notes += [TIMED] if settings.act else []
        else:
            readings += [reading for task in tasks for reading in _of_task(command, task, settings, run, model)]
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
    whole = ("sparsify", "choice", "circuits", "dynamics", "scaling", "trace", "signatures", "atlas", "route")
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


def of_route(lengths: Sequence[np.ndarray], settings: RouteSettings, model: LoadedModel) -> list[Reading]:
    """What naming tasks reads of texts of so many tokens, an array for each task, and what acting or replacing reads beyond.

    What is timed, or moved, is a few of the texts again and again: each counts as long as the mean one.
    """
    every = np.concatenate(lengths)
    share = (first_layers(model.n_layers, settings) + 1) / model.n_layers
    mean = max(1, round(float(every.mean())))
    timed = min(settings.timed_texts, len(every) // FOLDS)
    found = [
        Reading("first layers", every, share=share),
        Reading("on the clock", np.full((1 + timed) * PASSES, mean)),
    ]
    if settings.act:
        ways = len(WAYS) * (timed * TURNS + 1)
        found += [Reading("all layers", every), Reading("the mixed stream on the clock", np.full(ways, mean))]
    if settings.leave_out is not None:
        fit, calibrate, judge = (len(every) * n // FOLDS for n in (2, 1, 1))
        masks = (1 + len(lengths)) * (calibrate + judge) + (1 + settings.n_changes) * judge
        found += [Reading("use of the experts", every[:fit]), Reading("experts left out", np.full(masks, mean))]
    if settings.causal:
        judged = min(settings.causal_texts, *(len(one) * 3 // FOLDS for one in lengths))
        changes = settings.n_changes + (2 if len(lengths) > 2 else 1)  # towards the next task, and a third
        passes = judged * len(lengths) * (1 + (len(EARLY) if settings.early_neurons else 1) * changes)
        found += [
            Reading("neurons after the router's layer", every[: len(every) * 2 // FOLDS]),
            Reading("early identification replaced", np.full(passes, mean)),
        ]
    return found


def _foreign(model: LoadedModel, known: Reading, run: Run) -> np.ndarray:
    """(N,) tokens of the text that is no task's, cut to the length of the tasks' own."""
    most = int(np.quantile(known.lengths, 0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are cut
        return np.asarray(np.minimum(_lengths(model, plain_text()[:FOREIGN], run), most))


def _lengths(model: LoadedModel, texts: Sequence[str], run: Run) -> np.ndarray:
    """(N,) int64 tokens of each text."""
    if model.tokenizer is not None:
        read: Encoded = encode(model.read_as(run.special_tokens, run.chat), texts, max_tokens=run.max_tokens)
        return np.asarray(read.lengths)
    most = min(run.max_tokens or 10**9, model_limit(model) or 10**9)
    return np.array([min(most, 1 + math.ceil(len(text) / _CHARACTERS)) for text in texts], np.int64)
