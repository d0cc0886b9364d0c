"""The one way in which every study runs: settings in, a context that owns the run, a result out.

A verb is a plain function ``verb(model, inputs, settings=Settings(), *, run=Run()) -> StudyResult``::

    def prune(model: ModelLike, texts=None, settings=PruneSettings(), *, run=Run()) -> StudyResult:
        context = Context("prune", settings, run, of=PruneSettings)
        loaded = context.load(model, head=True)
        rows = context.rows(halves("prune", groups, chosen))   # who fits, selects, calibrates, judges: kept apart by group
        ...                                                     # measure; context.counter("pruning") shows progress
        context.control("random masks", differs=…, evidence="…")
        return context.result(model=loaded, title=…, claims=…, tables=…, artifacts={"mask": mask})

The context owns progress, seed, time, provenance, device and the record of rows and controls; ``run.out`` saves the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from torch import nn

from moescope.cluster import LOCAL, engine_of, rank_device
from moescope.errors import InputError, Note, StudyFault
from moescope.files.folder import output, settled
from moescope.models import LoadedModel, load
from moescope.models.forward_tokens import ForwardTokens
from moescope.models.layered import Layered, open_layered
from moescope.models.reading import Reading
from moescope.models.spread import Spread
from moescope.study.provenance import machine, spent, subject, texts_of
from moescope.study.repeat import current, decisive
from moescope.study.result import Artifact, StudyResult
from moescope.study.result import load as load_result
from moescope.study.rows import FOLDS, FoldRows, Rows
from moescope.study.run import Counter, Run, check_given
from moescope.study.schema import check_tables
from moescope.study.settings import Settings
from moescope.study.stages import Stages, work_of
from moescope.study.store import check_target
from moescope.study.verdicts import ALPHA, Case, verdicts
from moescope.tasks import Prompt, Regrouped, load_prompts, load_tasks, regroup
from moescope.tasks.images import ImageTask
from moescope.tasks.kinds import KINDS
from moescope.tasks.passages import Passage, load_passages
from moescope.types import Circuit, Claim, LabelKind, Task

ModelLike = str | Path | LoadedModel | nn.Module | tuple[Any, Any]
"""A Hub id, a local folder, an embedded name, a loaded model, or (model, tokenizer) of transformers or peft in memory."""
TaskLike = Task | str | Path | Any
"""A task, its specification (``"certainty=halueval"``), or a table in memory: see :func:`moescope.load_task`."""
TasksLike = TaskLike | Sequence[TaskLike] | Mapping[str, TaskLike]
"""Tasks, one or several, or by name."""
TextsLike = Sequence[Passage] | str | Path | Any | None
"""Passages with category and group, a file or a table of them, or None for the shipped ones."""
PromptsLike = Sequence[Prompt] | str | Path | Any
"""Labelled prompts, the name of a shipped set, a file, or a table: see :func:`moescope.load_prompts`."""
CircuitsLike = StudyResult | str | Path | Sequence[Circuit] | None
"""A result of :func:`moescope.circuits` or its folder, or circuits themselves."""

_R = TypeVar("_R", Rows, FoldRows)
_V = TypeVar("_V")


class ControlFault(StudyFault):
    """A control is what it was to control: a fault of the study, not of its input."""


class Context:
    """One run of one study.

    Args:
        of: the class of the study's settings.
        spread: its reading of texts can be shared out over processes.
        images: it also takes vision encoders, with tasks of images.

    Raises:
        InputError: the settings are of another study; `run.out` cannot be written to, or another process does, or several are
            asked for that are of no use.
    """

    def __init__(
        self,
        study: str,
        settings: Settings,
        run: Run,
        *,
        of: type[Settings] = Settings,
        spread: bool = False,
        images: bool = False,
    ) -> None:
        check_given(settings, of, run)
        self.engine = engine_of(run.engine, run.address, alone=None if spread else study)
        self.study, self.settings, self.run = study, settings, run
        self.notes: list[str] = []
        self.leaks: dict[str, Regrouped] = {}
        """tasks that hold near-duplicates, by name"""
        self.tokens = ForwardTokens()
        self._began, self._before = time.monotonic(), spent()["cpu_seconds"]
        self._images = images
        self._tasks: list[Task] = []
        self._rows: list[dict[str, Any]] = []
        self._controls: list[dict[str, Any]] = []
        self._read: list[tuple[Reading, Any]] = []  # not the models: of a series each goes when the next comes
        self._held = contextlib.ExitStack()  # until the result is saved, or there will be none
        weakref.finalize(self, self._held.close)
        if run.out is not None:
            check_target(run.out, overwrite=run.overwrite)
            self._held.enter_context(output(settled(run.out)))
        # how reading is shared out decides its last digits
        of_run = [study, _plain(settings), decisive(run), self.engine.name, self.engine.processes]
        self.stages = Stages(run.work or (run.out and work_of(settled(run.out))), of_run, current())

    def load(self, model: ModelLike, *, head: bool = False, required: bool = True, **options: Any) -> LoadedModel:
        """The model, loaded as ``run`` says unless it is in memory already, with its tokenizer.

        Args:
            head: with its language-model head.
            required: also one that is in memory must have the head.

        Whether its texts may share a batch is measured here, once; a note says so where they may not.

        Raises:
            InputError: the model cannot be had, or has no tokenizer.
        """
        asked = head and (required or isinstance(model, str | Path))
        options = {"head": asked, **self.run.load_options(), **options}
        loaded = load(model, **{**options, "device": rank_device(options["device"])})
        if loaded.tokenizer is None:
            raise InputError(f"{loaded.name} has no tokenizer, and its texts are to be read; give (model, tokenizer)", "model")
        self._check_images(loaded)
        computed = str(loaded.dtype).removeprefix("torch.")
        if loaded.stored is not None:
            self.note(f"Note: {loaded.name}: weights stored in {loaded.stored} were computed in {computed} (dtype)")
        if loaded.quantisation is not None:
            self.note(
                f"Note: the weights of {loaded.name} are a quantised copy ({loaded.quantisation}); figures of the model that "
                "it was made from may differ, and none counts as reproduced."
            )
        if (note := loaded.batching.note()) is not None:
            self.note(note)
        loaded = loaded.read_as(self.run.special_tokens, self.run.chat)
        loaded.spread = loaded.spread or Spread.of(self.engine, model, options)
        self.stages.read(loaded.fingerprint, str(loaded.dtype), str(loaded.device), loaded.reading)
        self._read.append((loaded.reading, loaded.tokenizer))
        return loaded

    def _check_images(self, loaded: LoadedModel) -> None:
        """Raises InputError where a model or a task is of images and the other, or the study, is not."""
        if loaded.reads_images and not self._images:
            raise InputError(f"{loaded.name} reads images, which {self.study} does not; `moescope circuits` does", "model")
        if loaded.reads_images and self.engine is not LOCAL:
            raise InputError("images are read in one process; leave it out", "engine")
        odd = next((task for task in self._tasks if isinstance(task, ImageTask) != loaded.reads_images), None)
        if odd is not None and getattr(loaded.config, "vision_config", None) is not None and not loaded.reads_images:
            raise InputError(
                f"{odd.name} is of images, and of the vision-language model {loaded.name} the text model alone is read; give a "
                "task of texts, or a vision encoder",
                "tasks",
            )
        if odd is not None:
            what = ("texts", "images") if loaded.reads_images else ("images", "texts")
            raise InputError(
                f"{odd.name} is of {what[0]}, and {loaded.name} reads {what[1]}; give a task of {what[1]}", "tasks"
            )

    def layered(self, model: ModelLike) -> Layered:
        """A causal language model that is run layer by layer from its files, with what :meth:`load` says of it.

        Raises:
            InputError: the model cannot be had, or not run so (:func:`moescope.models.layered.open_layered`).
        """
        if self.run.device_map is not None:
            raise InputError("one layer at a time is on the device: give device", "device_map")
        if isinstance(model, str | Path):
            found = open_layered(model, dtype=self.run.dtype, device=rank_device(self.run.device))
        else:
            found = open_layered(self.load(model, head=True))
        found.model = self.load(found.model, head=True)
        return found

    def tasks(self, tasks: TasksLike, *, least: int = 1, takes: Sequence[LabelKind] = ("classes",)) -> list[Task]:
        """The tasks, read where they are specifications; their names differ. Near-duplicate texts share a group, with a note.

        Raises:
            InputError: fewer than ``least``, two of one name, a specification that cannot be read, or labels of a kind that the
                study does not take.
        """
        with self.noted():
            loaded = load_tasks(tasks, limit=self.run.limit, seed=self.run.seed)
        if odd := next((task for task in loaded if task.kind not in takes), None):
            have = " or ".join(KINDS[kind].said for kind in takes)
            raise InputError(f"{odd.name!r} has {KINDS[odd.kind].said}; {self.study} takes {have} alone", "tasks")
        if len(loaded) < least:
            raise InputError(f"at least {least} needed, e.g. certainty=halueval", "tasks")
        images = next((task.name for task in loaded if isinstance(task, ImageTask)), None)
        if images is not None and not self._images:
            raise InputError(f"{images} is of images, which {self.study} does not read; `moescope circuits` does", "tasks")
        names = [task.name for task in loaded]
        double = next((name for name in names if names.count(name) > 1), None)
        if double:
            raise InputError(f"two are called {double!r}; name them apart, e.g. {double}2=SOURCE", "tasks")
        apart = [regroup(task, getattr(self.settings, "n_folds", FOLDS)) for task in loaded]
        self.notes += [found.note for found in apart if found.note]
        self.leaks = {found.task.name: found for found in apart if found.note}
        self.stages.read([found.task for found in apart])
        self._tasks = [found.task for found in apart]
        return [*self._tasks]

    def passages(self, texts: TextsLike) -> Sequence[Passage]:
        """The passages, read where they are not yet."""
        with self.noted():
            found = load_passages(texts)
        self.stages.read(list(found))
        return found

    def prompts(self, prompts: PromptsLike) -> Sequence[Prompt]:
        """The prompts, read where they are not :class:`Prompt` already."""
        with self.noted():
            found = load_prompts(prompts, limit=self.run.limit, seed=self.run.seed)
        self.stages.read(list(found))
        return found

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """What is said about the input while it is read becomes notes of the result."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", Note)
            yield
        for warning in said:
            if issubclass(warning.category, Note):
                self.notes += [text for text in [str(warning.message)] if text not in self.notes]
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def circuits(self, source: CircuitsLike, model: LoadedModel) -> dict[str, Circuit]:
        """The circuits by task; a result that they are taken from is of ``model``.

        Raises:
            InputError: it holds none, or is of another model.
        """
        if source is None:
            return {}
        if not isinstance(source, StudyResult | str | Path):
            found = {circuit.task: circuit for circuit in source}
            self.stages.read(found)
            return found
        result = source if isinstance(source, StudyResult) else load_result(source)
        where = result.meta.get("title") or "the result" if isinstance(source, StudyResult) else source
        if not result.circuits:
            raise InputError(f"{where} holds no circuits; give a result of `moescope circuits`", "circuits")
        if result.meta.get("fingerprint") != model.fingerprint:
            raise InputError(
                f"{where} is of a model of fingerprint {result.meta.get('fingerprint')}, not {model.fingerprint}; "
                f"run `moescope circuits` on {model.name}",
                "circuits",
            )
        self.stages.read(result.circuits)
        return dict(result.circuits)

    # Progress

    def stage(self, name: str, compute: Callable[[], _V], /, **shared: object) -> _V:
        """What ``compute`` gives; or, where a run of the same settings, inputs and code was cut off after it, what it gave.

        What it says to this context (rows, controls, notes, tokens) is kept with it. Stages come in one order in every run.

        Args:
            shared: what the value refers to without being of the stage: the model, activations.
        """
        said: Any = (self._rows, self._controls, self.notes, self.tokens.counts)
        return self.stages.run(name, compute, shared, said, self.tell)

    def each(self, names: Sequence[str], compute: Callable[[list[int]], Iterator[tuple[int, _V]]]) -> list[_V]:
        """The values of stages that do not depend on each other, in the order of their names; each kept as soon as it is there.

        Args:
            compute: given the numbers of those that no earlier run has kept; gives each with its value, in any order.
        """
        return self.stages.each(names, compute, self.tell)

    def inner(self, run: Run) -> Run:
        """``run`` for a study within this one, which saves that one's result and keeps its stages with its own."""
        return dataclasses.replace(run, out=None, work=self.stages.inner)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if self.run.progress is not None:
            self.run.progress(stage, done, total)

    def counter(self, stage: str) -> Counter:
        """``tell`` for one stage."""
        return lambda done, total: self.tell(stage, done, total)

    def steps(self, stage: str, names: Sequence[Any]) -> Iterator[Any]:
        """``names`` one by one, telling that each begins."""
        for done, name in enumerate(names):
            self.tell(stage, done, len(names))
            yield name

    @property
    def alpha(self) -> float:
        """The level at which this study judges."""
        return float(getattr(self.settings, "alpha", ALPHA))

    # What is put on record

    def rows(self, rows: _R) -> _R:
        """Put on record who fits, selects, calibrates and judges, and return it to be worked with."""
        self._rows.append(rows.record())
        return rows

    def control(self, name: str, *, differs: bool, evidence: str) -> None:
        """Put on record what shows that a control differs from what it controls.

        Raises:
            ControlFault: it does not.
        """
        if not differs:
            raise ControlFault(f"{self.study}: the control {name!r} is what it controls ({evidence})")
        self._controls.append({"control": name, "evidence": evidence})

    def note(self, text: str) -> None:
        """A sentence that a reader must have before the figures; said once."""
        if text not in self.notes:
            self.notes.append(text)

    # The end

    def result(
        self,
        *,
        title: str,
        claims: Sequence[Claim | Case],
        tables: Mapping[str, pd.DataFrame],
        model: LoadedModel | str | None = None,
        tasks: Sequence[Task] = (),
        circuits: Mapping[str, Circuit] | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
        kind: str | None = None,
        **meta: Any,
    ) -> StudyResult:
        """The result with its provenance and the verdicts on its cases, written to ``run.out`` where that is given.

        Args:
            tables: by name, as declared; a frame without any column, made of no rows, is left out.
            model: what was studied, or its name where only its traces were.
            meta: further facts, which win over those that the context knows.
            kind: of the result, where it is not the study's name.
        """
        tables = {name: table for name, table in tables.items() if len(table.columns)}
        check_tables(self.study, tables)
        used = spent()
        facts = {
            **(subject(model, tasks) if isinstance(model, LoadedModel) else {"model": model} if model else {}),
            **(texts_of(tasks) if tasks and not isinstance(model, LoadedModel) else {}),
            "title": title,
            "seed": self.run.seed,
            "settings": _plain(self.settings),
            "run": {k: v for k, v in decisive(self.run).items() if k != "seed"},
            "rows": self._rows,
            "controls": self._controls,
            "notes": list(dict.fromkeys([*self.notes, *self._notes_of_reading()])),
            **({} if (given := current()) is None else {"study": given}),
            **machine(self.engine),
            "seconds": round(time.monotonic() - self._began + self.stages.seconds, 1),
            "cpu_seconds": round(used["cpu_seconds"] - self._before + self.stages.cpu_seconds, 1),
            "peak_gib": used["peak_gib"],
            **meta,
        }
        result = StudyResult(
            kind or self.study,
            facts,
            tuple(verdicts(claims, self.alpha)),
            dict(circuits or {}),
            dict(tables),
            artifacts=dict(artifacts or {}),
        )
        self.tell("done", 1, 1)
        return self._saved(result)

    def beside(self, result: StudyResult, *, title: str, published: pd.DataFrame) -> StudyResult:
        """``result`` of an inner run with the published figures as a further table and this context's notes first."""
        check_tables(self.study, {"published": published})
        meta = {**result.meta, "title": title, "notes": list(dict.fromkeys([*self.notes, *result.meta["notes"]]))}
        return self._saved(dataclasses.replace(result, meta=meta, tables={**result.tables, "published": published}))

    def _notes_of_reading(self) -> list[str]:
        return [note for reading, tokenizer in self._read for note in reading.notes(tokenizer)]

    def _saved(self, result: StudyResult) -> StudyResult:
        try:
            if self.run.out is not None:
                result.save(self.run.out, overwrite=self.run.overwrite)
                self.stages.clear()
        finally:
            self._held.close()
        return result


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}
