"""Files of named arrays, and those of them that are requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moescope.errors import InputError
from moescope.files.parse import parse_npy, parse_npz, parse_safetensors
from moescope.files.text import read_bytes
from moescope.routing.engines.build import Recorded

SUFFIXES = (".npy", ".npz", ".safetensors")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin")


def requests(path: Path, prompt_tokens: dict[str, int]) -> Iterator[Recorded]:
    """The arrays of a file, or of a folder of ``.npy``, as requests."""
    if path.is_dir():
        arrays = {file.stem: read_arrays(file)[file.stem] for file in sorted(path.glob("*.npy"))}
    else:
        arrays = read_arrays(path)
    for name, array in arrays.items():
        yield Recorded(name, array, prompt_tokens.get(name))


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file; never a pickle.

    Raises:
        InputError: it is a pickle, of another kind, or damaged.
    """
    if file.suffix in _PICKLES:
        raise InputError(
            f"{file}: is a pickle and is never read; convert it where it was written: python -c"
            " \"$(python -c 'from moescope.routing.engines import SGLANG_CONVERSION as c; print(c)')\" IN.pt OUT.npz"
        )
    if file.suffix not in SUFFIXES and os.path.exists(file):
        raise InputError(f"{file}: not .npy, .npz or .safetensors")
    data = read_bytes(file)
    try:
        if file.suffix == ".npy":
            return {file.stem: parse_npy(data)}
        return parse_npz(data) if file.suffix == ".npz" else parse_safetensors(data)
    except ValueError as error:
        raise InputError(f"{file}: truncated or not such a file ({error})") from error


def need(arrays: dict[str, np.ndarray], name: str, file: Path, axes: int) -> np.ndarray:
    """The array of that name, which has so many axes.

    Raises:
        InputError: there is none, or it has others.
    """
    if name not in arrays:
        raise InputError(f"{file}: has no array {name!r}, only {', '.join(sorted(arrays)) or 'none'}")
    found = arrays[name]
    if found.ndim != axes:
        raise InputError(f"{file}: {name} has shape {found.shape}, where {axes} axes are needed")
    return found
