"""Train many students of one layer in one pass over its data; checkpoint, resume, and stop what diverges."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.studies.distill.captured import Captured, on_gpu
from moescope.studies.distill.data import Pairs, batches, batches_per_epoch, count, whole
from moescope.studies.distill.evaluate import evaluate
from moescope.studies.distill.optimizer import RowAdam
from moescope.studies.distill.revive import revive
from moescope.studies.distill.students import Student
from moescope.study.settings import Settings, at_least

Progress = Callable[[int, int], None]
Precision = Literal["fp32", "tf32", "bf16"]
FORMAT = "moescope-distill-1"
_EXPLODED = 1e3  # scaled losses are FVUs: a start is of order 1


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """One schedule for all students of a run: Adam, cosine to zero."""

    steps: Annotated[int | None, at_least(1)] = None
    """updates; None: ``epochs`` passes over the training split"""
    epochs: Annotated[int, at_least(1)] = 1
    batch: Annotated[int, at_least(1)] = 1024
    """vectors in a step"""
    precision: Precision = "fp32"
    """``"bf16"`` computes dense products and router scores in bfloat16, ``"tf32"`` on a GPU in TensorFloat-32; weights and
    updates stay float32"""
    every: Annotated[int | None, at_least(1)] = None
    """steps between points of the curve, where a checkpoint is written; None: a twelfth of the run"""
    checkpoint: Path | None = None
    """file to resume from and to keep up to date"""
    validation_tokens: Annotated[int, at_least(1)] = 8192
    """vectors of the validation split used for the curve"""
    revive: bool = False
    """give experts that no token chose since the last point of the curve a new start, the last fifth of the run excepted"""
    seed: Annotated[int, at_least(0)] = 0
    """of the order of the data"""


@dataclass(eq=False)
class Trained:
    """A student and what its training was. ``status`` is ``"training"``, ``"trained"`` or ``"diverged at step N"``."""

    student: Student
    lr: float
    status: str = "training"
    curve: list[dict[str, float]] = field(default_factory=list)
    """step, train loss since the last point, validation FVU"""

    @property
    def diverged(self) -> bool:
        return self.status.startswith("diverged")

    @property
    def validation(self) -> float:
        """FVU on the validation split at the end; infinite where training diverged."""
        return float("inf") if self.diverged or not self.curve else self.curve[-1]["validation"]


@dataclass(eq=False)
class Job(Trained):
    """A student in training."""

    optimizer: RowAdam = field(init=False)
    _losses: list[float] = field(default_factory=list, init=False)
    used: Tensor | None = field(default=None, init=False)
    """bool (experts,): chosen since the last point of the curve"""

    def __post_init__(self) -> None:
        self.optimizer = RowAdam(self.student.parameters())
        if self.student.spec.experts:
            self.used = torch.zeros(self.student.spec.experts, dtype=torch.bool)


def train(pairs: Pairs, jobs: Mapping[str, Job], settings: TrainSettings, progress: Progress | None = None) -> None:
    """Train every job in place. All students see the same batches, and the data are read once for all of them.

    A student whose loss stops being a number, or explodes, is stopped and says so in its ``status``; the others go on. With
    ``settings.checkpoint`` a run that was cut off goes on from its last curve point to the same end.

    Raises:
        InputError: too little data for a batch, or the checkpoint is of another run.
    """
    if not jobs:
        return
    first = batches_per_epoch(pairs, settings.batch, seed=settings.seed, epoch=0)
    if not first:
        raise InputError(
            f"{pairs.name}: {count(pairs, 'train')} training vectors (buffer {pairs.buffer}) do not fill a batch of "
            f"{settings.batch}; use more text or a smaller one",
            "batch",
        )
    total = settings.steps or first * settings.epochs  # epochs differ by what does not fill a batch
    every = settings.every or max(1, total // 12)
    identity = _identity(pairs, jobs, settings, total)
    done = 0
    if settings.checkpoint is not None and settings.checkpoint.exists():
        done = _resume(settings.checkpoint, jobs, identity)
    for job in jobs.values():
        job.student.rough_routing = settings.precision == "bf16"
        job.student.train()
    with _products(settings.precision):
        for step in _steps(pairs, jobs, settings, done, total, every):
            if step % every == 0 or step == total:
                _point(jobs, pairs, settings, step, total)
                if settings.checkpoint is not None:
                    _save(settings.checkpoint, jobs, identity, step)
            if progress is not None:
                progress(step, total)
    for job in jobs.values():
        job.student.eval()
        job.student.rough_routing = False
        if not job.diverged:
            job.status = "trained"


def _steps(pairs: Pairs, jobs: Mapping[str, Job], settings: TrainSettings, done: int, total: int, every: int) -> Iterator[int]:
    """Make the steps after ``done``, giving the number of each once it is made."""
    epoch, into = 0, done
    while into and into >= (n := batches_per_epoch(pairs, settings.batch, seed=settings.seed, epoch=epoch)):
        epoch, into = epoch + 1, into - n
    held = on_gpu(pairs, next(iter(jobs.values())).student.bias.device, settings.batch)
    captured = (
        {}
        if held is None
        else {name: Captured(job, held.x, held.y, rough=settings.precision == "bf16") for name, job in jobs.items()}
    )
    step = done
    while step < total:
        order = {"seed": settings.seed, "epoch": epoch, "skip": into}
        for block in batches(pairs, settings.batch, **order) if held is None else held.batches(**order):
            factor = 0.5 * (1 + math.cos(math.pi * step / total))
            for name, job in jobs.items():
                if job.diverged:
                    continue
                if captured:
                    captured[name].step(job.lr * factor)
                else:
                    _step(job, block.x, block.y, job.lr * factor, settings.precision, step)
            step += 1
            if captured and (step % every == 0 or step == total):
                for name, job in jobs.items():
                    _look(job, captured[name], step)
            yield step
            if step == total:
                return
        epoch, into = epoch + 1, 0


@contextlib.contextmanager
def _products(precision: Precision) -> Iterator[None]:
    """How a GPU forms products of float32 matrices in the body."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _look(job: Job, captured: Captured, step: int) -> None:
    """Take over what captured steps have gathered."""
    total, worst, steps = captured.losses()
    if job.diverged:
        return
    if not worst < _EXPLODED:  # also true of NaN
        job.status = f"diverged by step {step}"
        return
    job._losses.append(total / steps)
    if job.used is not None and captured.used is not None:
        job.used |= captured.used.cpu()
        captured.used.zero_()


def _step(job: Job, x: Tensor, y: Tensor, lr: float, precision: str, step: int) -> None:
    student = job.student
    device = student.bias.device
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = student.run(student.scaling.inputs(x.to(device)))
        loss = (out.y.float() - student.scaling.outputs(y.to(device))).square().mean()
        value = float(loss.detach())
    except FloatingPointError:  # a router that has no numbers left to choose by
        value = float("nan")
    if not value < _EXPLODED:  # also true of NaN
        job.status = f"diverged at step {step + 1}"
        return
    loss.backward()
    job.optimizer.step(lr)
    job._losses.append(value)
    if job.used is not None and out.routed is not None:
        job.used[out.routed.index.reshape(-1).cpu()] = True


def _point(jobs: Mapping[str, Job], pairs: Pairs, settings: TrainSettings, step: int, total: int) -> None:
    for name, job in jobs.items():
        if job.diverged:
            continue
        try:
            found = evaluate(job.student, pairs, "validation", settings.validation_tokens).fvu
        except FloatingPointError:
            found = float("nan")
        if not np.isfinite(found):
            job.status = f"diverged at step {step}"
            continue
        job.curve.append({"step": step, "train": float(np.mean(job._losses)), "validation": found})
        job._losses.clear()
        if job.used is None:
            continue
        job.curve[-1]["unused"] = float((~job.used).float().mean())
        if settings.revive and step < 0.8 * total:
            draw = int.from_bytes(hashlib.sha256(f"{name} {step} {settings.seed}".encode()).digest()[:4], "big")
            revive(job.student, job.optimizer, ~job.used, whole(pairs, "train", pairs.buffer), seed=draw)
        job.used.zero_()


def _identity(pairs: Pairs, jobs: Mapping[str, Job], settings: TrainSettings, total: int) -> dict[str, str]:
    """What must be equal for a checkpoint to be of this run, by the words in which a difference is reported."""
    plan = {k: v for k, v in asdict(settings).items() if k != "checkpoint"} | {"total": total}
    probe = whole(pairs, "train", 64)
    digest = hashlib.sha256(probe.x.numpy().tobytes() + probe.y.numpy().tobytes()).hexdigest()
    return {
        "settings": json.dumps(plan, sort_keys=True),
        "students": json.dumps([[name, job.student.spec.json(), job.lr] for name, job in jobs.items()]),
        "data": f"{count(pairs, 'train')} {digest}",
    }


def _save(path: Path, jobs: Mapping[str, Job], identity: dict[str, str], step: int) -> None:
    arrays: dict[str, np.ndarray] = {}
    for number, job in enumerate(jobs.values()):
        arrays |= {f"{number}/{name}": tensor.detach().cpu().numpy() for name, tensor in _tensors(job)}
    state = [{"status": j.status, "curve": j.curve, "steps": j.optimizer.steps} for j in jobs.values()]
    save_arrays(path, arrays, {"format": FORMAT, **identity, "step": step, "jobs": state})


def _resume(path: Path, jobs: Mapping[str, Job], identity: dict[str, str]) -> int:
    arrays, meta = load_arrays(path, FORMAT, expected=dict(identity))
    state: list[dict[str, Any]] = meta["jobs"]
    with torch.no_grad():
        for number, (job, kept) in enumerate(zip(jobs.values(), state, strict=True)):
            for name, tensor in _tensors(job):
                tensor.copy_(torch.from_numpy(arrays[f"{number}/{name}"]))
            job.status, job.curve, job.optimizer.steps = kept["status"], kept["curve"], kept["steps"]
    return int(meta["step"])


def _tensors(job: Job) -> Iterator[tuple[str, Tensor]]:
    """Weights and Adam moments."""
    for i, parameter in enumerate(job.optimizer.parameters):
        yield f"weight/{i}", parameter.data
        yield f"first/{i}", job.optimizer.first[i]
        yield f"second/{i}", job.optimizer.second[i]
