"""Students trained on one source of data by one rule: the learning rate chosen on validation, every seed reported on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.studies.distill.accounting import cost
from moescope.studies.distill.data import Pairs, scaling_of, whole
from moescope.studies.distill.evaluate import Evaluation, evaluate
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.start import start_from_teacher
from moescope.studies.distill.students import LayerShape, Scaling, Student
from moescope.studies.distill.teacher import Teacher
from moescope.studies.distill.training import Job, TrainSettings, train

Progress = Callable[[int, int], None]


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

    All runs of a seed share each pass over the data, in an order of its own. A student whose every learning rate diverged has
    no further seed.

    Args:
        seed: of the students' starts and of the order of the data.
        teacher: students train on its device; needed by those that start from its neurons.
        checkpoint: file name to keep a checkpoint for each seed at.
    """
    scaling = scaling_of(pairs)
    sample = whole(pairs, "train", 8192).x if any(s.start == "teacher" for s in specs.values()) else None

    def job(spec: StudentSpec, lr: float, number: int) -> Job:
        student = Student(spec, shape, scaling, seed=1000 * seed + number)
        if spec.start == "teacher" and teacher is not None and sample is not None:
            start_from_teacher(student, teacher.neurons, sample, seed=number)
        return Job(student if teacher is None else student.to(teacher.model.device), lr)

    plan = TrainSettings(
        steps=settings.steps,
        epochs=settings.epochs,
        batch=settings.batch,
        precision=settings.precision,
        revive=settings.revive,
        seed=1000 * seed,
        checkpoint=_file(checkpoint, 0),
    )
    first = {(name, lr, 0): job(spec, lr, 0) for name, spec in specs.items() for lr in settings.lr}
    train(pairs, {str(key): j for key, j in first.items()}, plan, _part(progress, 0, settings.seeds))
    chosen: dict[str, float] = {}
    for name in specs:
        lr = min(settings.lr, key=lambda rate: first[name, rate, 0].validation)
        if not first[name, lr, 0].diverged:
            chosen[name] = lr
    jobs = first
    for n in range(1, settings.seeds):
        later = {(name, lr, n): job(specs[name], lr, n) for name, lr in chosen.items()}
        plan = replace(plan, seed=1000 * seed + n, checkpoint=_file(checkpoint, n))
        train(pairs, {str(key): j for key, j in later.items()}, plan, _part(progress, n, settings.seeds))
        jobs = {**jobs, **later}
    begun = next((name for name in chosen if specs[name].kind != "dense"), None)
    untrained = {} if begun is None else {begun: job(specs[begun], chosen[begun], 0).student.cpu()}
    return _collect(jobs, specs, chosen, pairs, untrained, scaling)


def _file(checkpoint: Path | None, seed: int) -> Path | None:
    return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}-seed-{seed}.safetensors")


def _part(progress: Progress | None, part: int, parts: int) -> Progress | None:
    return None if progress is None else lambda done, total: progress(part * total + done, parts * total)


def _collect(
    jobs: Mapping[tuple[str, float, int], Job],
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
