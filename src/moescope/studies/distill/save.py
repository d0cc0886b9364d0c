"""A student on disk: one safetensors file with its spec, shape and scaling."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from moescope.errors import InputError
from moescope.files.checkpoint import Damaged, check_array, load_arrays, save_arrays
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Scaling, Student
from moescope.study.settings import between, read_record

FORMAT = "moescope-student-1"


@dataclasses.dataclass(frozen=True, eq=False)
class DistilledStudent:
    """A student, and the layer that it stands for."""

    student: Student
    fingerprint: str
    layer: int | str
    """its number, or a module's name"""

    def write(self, folder: Path, /) -> None:
        """Write ``student.safetensors``."""
        save_student(self.student, folder / "student.safetensors", fingerprint=self.fingerprint, layer=self.layer)


def save_student(student: Student, path: str | Path, *, fingerprint: str | None = None, layer: int | str | None = None) -> Path:
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
    if fingerprint is not None and meta.get("fingerprint") != fingerprint:
        raise InputError(
            f"{path}: distilled from a model of fingerprint {meta.get('fingerprint')}, not {fingerprint}; use that model"
        )
    try:
        for name, array in arrays.items():
            check_array(name, array, np.float32)
            if np.abs(array).max(initial=0) > _LARGEST:
                raise ValueError(f"{name} has numbers beyond {_LARGEST:g}")
    except ValueError as error:
        raise Damaged(Path(path), str(error)) from error
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        spec, shape = read_record(StudentSpec, meta["spec"]), read_record(LayerShape, meta["shape"])
        x_scale, y_scale = read_record(_Scales, dict(zip(("x", "y"), meta["scale"], strict=True))).both
        means = [tensors.pop(f"scaling/{name}") for name in ("x_mean", "y_mean")]
        if [tuple(mean.shape) for mean in means] != [(shape.d_in,), (shape.d_out,)]:
            raise ValueError("the means are of another width")
        with torch.device("meta"):  # what it would take, before any of it is taken
            wanted = {name: tensor.shape for name, tensor in Student(spec, shape).state_dict().items()}
        if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("its arrays are not those of its spec")
        student = Student(spec, shape, Scaling(means[0], x_scale, means[1], y_scale))
        student.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: not a student that this version knows ({error}); distil it again") from error
    return student.eval()


_LARGEST = 1e10  # what is larger is damage, and its products would be infinite


@dataclasses.dataclass(frozen=True)
class _Scales:
    x: Annotated[float, between(1 / _LARGEST, _LARGEST)]
    y: Annotated[float, between(1 / _LARGEST, _LARGEST)]

    @property
    def both(self) -> tuple[float, float]:
        return float(self.x), float(self.y)
