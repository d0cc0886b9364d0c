"""Students trained on one source of data by one rule: the learning rate chosen on validation, every seed reported on test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from moescope.cluster import LOCAL
from moescope.studies.distill.accounting import cost, spec_cost
from moescope.studies.distill.data import Pairs, scaling_of, whole
from moescope.studies.distill.evaluate import Evaluation, evaluate
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.start import start_from_teacher
from moescope.studies.distill.students import LayerShape, Scaling, Student
from moescope.studies.distill.teacher import Teacher
from moescope.studies.distill.training import Job, Trained, TrainSettings, train

Progress = Callable[[int, int], None]
Key = tuple[str, float, int]
"""student, learning rate, number of the seed"""


@dataclass(frozen=True, eq=False)
class Runs:
    """Every training run on one source of data."""

    rows: pd.DataFrame
    """one row per run: student, its spec, lr, seed, chosen, status, validation and test FVU, load, cost"""
    curves: pd.DataFrame
    """student, lr, seed, step, train, validation"""
    best: dict[str, Student]
    """by student name, the first seed at the chosen learning rate, on the CPU; absent where all diverged"""
    loads: dict[str, Evaluation]
    """of those students, on the test split"""
    documents: pd.DataFrame
    """one row per chosen run and document of the test split: student, seed, document, vectors, error"""
    untrained: dict[str, Student]
    """the first expert student of ``best`` as it began"""
    scaling: Scaling
    """of the training split"""


def run_students(
    pairs: Pairs,
    specs: Mapping[str, StudentSpec],
    shape: LayerShape,
    settings: DistillSettings,
    *,
    seed: int = 0,
    teacher: Teacher | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Runs:
    """Train every student at every learning rate for the first seed, then at the best one for the other seeds.

    All runs of a seed share each pass over the data, in an order of its own; where the teacher's model is spread over
    processes, those of each process do. A student whose every learning rate diverged has no further seed.

    Args:
        seed: of the students' starts and of the order of the data.
        teacher: students train on its device; needed by those that start from its neurons.
        checkpoint: file name to keep a checkpoint for each seed at; of other processes where its folder is theirs, too.
    """
    training = _Training(pairs, dict(specs), shape, scaling_of(pairs), settings, seed, teacher, checkpoint)
    spread = None if teacher is None else teacher.model.spread
    engine = LOCAL if spread is None else spread.engine

    def trained(keys: Sequence[Key]) -> dict[Key, Trained]:
        costs = [spec_cost(specs[name], shape)[0] for name, _, _ in keys]
        found: dict[Key, Trained] = {}
        for number, one in engine.map(partial(_elsewhere, training), keys, costs, here=partial(training, progress=progress)):
            found[keys[number]] = one
            if teacher is not None:
                one.student.to(teacher.model.device)
        return {key: found[key] for key in keys}

    first = trained([(name, lr, 0) for name in specs for lr in settings.lr])
    chosen: dict[str, float] = {}
    for name in specs:
        lr = min(settings.lr, key=lambda rate: first[name, rate, 0].validation)
        if not first[name, lr, 0].diverged:
            chosen[name] = lr
    later = trained([(name, lr, n) for n in range(1, settings.seeds) for name, lr in chosen.items()])
    begun = next((name for name in chosen if specs[name].kind != "dense"), None)
    untrained = {} if begun is None else {begun: training.job((begun, chosen[begun], 0)).student.cpu()}
    return _collect({**first, **later}, specs, chosen, pairs, untrained, training.scaling)


@dataclass(frozen=True, eq=False)
class _Training:
    """What trains students on one source of data, in this process or another."""

    pairs: Pairs
    specs: dict[str, StudentSpec]
    shape: LayerShape
    scaling: Scaling
    settings: DistillSettings
    seed: int
    teacher: Teacher | None
    checkpoint: Path | None

    def __call__(self, keys: Iterable[Key], progress: Progress | None = None) -> Iterator[Trained]:
        for number, some in groupby(keys, key=lambda key: key[2]):
            jobs = {key: self.job(key) for key in some}
            named = {str(key): job for key, job in jobs.items()}
            train(self.pairs, named, self._plan(number, list(named)), _part(progress, number, self.settings.seeds))
            for job in jobs.values():
                yield Trained(job.student, job.lr, job.status, job.curve)

    def job(self, key: Key) -> Job:
        """The student before its first step."""
        name, lr, number = key
        student = Student(self.specs[name], self.shape, self.scaling, seed=1000 * self.seed + number)
        if self.specs[name].start == "teacher" and self.teacher is not None:
            start_from_teacher(student, self.teacher.neurons, self._sample, seed=number)
        return Job(student if self.teacher is None else student.to(self.teacher.model.device), lr)

    @cached_property
    def _sample(self) -> Tensor:
        return whole(self.pairs, "train", 8192).x

    def _plan(self, number: int, jobs: Sequence[str]) -> TrainSettings:
        place = None
        if self.checkpoint is not None and self.checkpoint.parent.is_dir():
            # which students are trained together depends on how many processes there are
            which = hashlib.sha256(" ".join(jobs).encode()).hexdigest()[:8]
            place = self.checkpoint.with_name(f"{self.checkpoint.stem}-seed-{number}-{which}.safetensors")
        return TrainSettings(
            steps=self.settings.steps,
            epochs=self.settings.epochs,
            batch=self.settings.batch,
            precision=self.settings.precision,
            revive=self.settings.revive,
            seed=1000 * self.seed + number,
            checkpoint=place,
        )


def _elsewhere(training: _Training, keys: Iterable[Key]) -> Iterator[Trained]:
    for one in training(keys):
        one.student.cpu()
        yield one


def _part(progress: Progress | None, part: int, parts: int) -> Progress | None:
    return None if progress is None else lambda done, total: progress(part * total + done, parts * total)


def _collect(
    jobs: Mapping[Key, Trained],
    specs: Mapping[str, StudentSpec],
    chosen: Mapping[str, float],
    pairs: Pairs,
    untrained: dict[str, Student],
    scaling: Scaling,
) -> Runs:
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    documents: list[tuple[str, int, int, int, float]] = []
    best: dict[str, Student] = {}
    loads: dict[str, Evaluation] = {}
    for (name, lr, seed), job in jobs.items():
        spec = specs[name]
        row: dict[str, Any] = {
            "student": name,
            "kind": spec.kind,
            "router": spec.router if spec.kind == "moe" else None,
            "active_neurons": spec.active_neurons,
            "experts": spec.experts,
            "lr": lr,
            "seed": seed,
            "chosen": chosen.get(name) == lr,
            "status": job.status,
            "validation": float("nan") if job.diverged else job.validation,
        }
        curves += [{"student": name, "lr": lr, "seed": seed, **point} for point in job.curve]
        if row["chosen"] and not job.diverged:  # the test split is looked at once, after the choice
            found = evaluate(job.student, pairs, "test")
            row |= {
                "fvu": found.fvu,
                "dead": found.dead,
                "load_entropy": found.load_entropy,
                **asdict(cost(job.student, found)),
            }
            documents += [(name, seed, document, *part) for document, part in found.documents.items()]
            if seed == 0:
                best[name], loads[name] = job.student.cpu(), found
        rows.append(row)
    frame = pd.DataFrame(rows)
    for column in ("fvu", "dead", "load_entropy"):
        if column in frame:
            frame[column] = frame[column].astype(float)
    by_document = pd.DataFrame(documents, columns=["student", "seed", "document", "vectors", "error"])
    return Runs(frame, pd.DataFrame(curves), best, loads, by_document, untrained, scaling)
