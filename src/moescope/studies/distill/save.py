"""A student on disk: one safetensors file with its spec, shape and scaling."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from moescope.errors import InputError
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Scaling, Student

FORMAT = "moescope-student-1"


@dataclasses.dataclass(frozen=True, eq=False)
class DistilledStudent:
    """A student, and the layer that it stands for."""

    student: Student
    fingerprint: str
    layer: int

    def write(self, folder: Path, /) -> None:
        """Write ``student.safetensors``."""
        save_student(self.student, folder / "student.safetensors", fingerprint=self.fingerprint, layer=self.layer)


def save_student(student: Student, path: str | Path, *, fingerprint: str | None = None, layer: int | None = None) -> Path:
    """Write a student, whole or not at all. ``fingerprint`` and ``layer`` name the model and layer that it stands for.

    Raises:
        InputError: the file cannot be written.
    """
    scaling = student.scaling
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in student.state_dict().items()}
    arrays |= {"scaling/x_mean": scaling.x_mean.numpy(), "scaling/y_mean": scaling.y_mean.numpy()}
    meta = {
        "format": FORMAT,
        "spec": student.spec.json(),
        "shape": dataclasses.asdict(student.shape),
        "scale": [scaling.x_scale, scaling.y_scale],
        "fingerprint": fingerprint,
        "layer": layer,
    }
    save_arrays(Path(path), arrays, meta)
    return Path(path)


def load_student(path: str | Path, *, fingerprint: str | None = None) -> Student:
    """Read what :func:`save_student` wrote.

    Raises:
        InputError: the file is missing, damaged or something else, or was distilled from a model of another fingerprint.
    """
    arrays, meta = load_arrays(Path(path), FORMAT)
    if fingerprint is not None and meta["fingerprint"] != fingerprint:
        raise InputError(
            f"{path}: distilled from a model of fingerprint {meta['fingerprint']}, not {fingerprint}; use that model"
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x_scale, y_scale = meta["scale"]
    scaling = Scaling(tensors.pop("scaling/x_mean"), x_scale, tensors.pop("scaling/y_mean"), y_scale)
    try:
        student = Student(StudentSpec(**meta["spec"]), LayerShape(**meta["shape"]), scaling)
        student.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: not a student that this version knows ({error}); distil it again") from error
    return student.eval()
