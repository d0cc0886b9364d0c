"""scikit-learn's digits, real and made: images that come with the installation."""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moescope.errors import InputError
from moescope.files.cache import cache as cache_folder
from moescope.tasks.sources import Rows

MADE = Path(__file__).parents[1] / "data" / "digits_made.npz"
"""600 digits made by ``dit-digits`` (training/digits.py), as many of each class as are held out"""
HELD_OUT = 600
_SEED = 20261128


def digits() -> tuple[np.ndarray, np.ndarray]:
    """float64 (1797, 8, 8), whole shades 0 to 16, and int64 (1797,) classes."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return np.asarray(found.images), np.asarray(found.target, np.int64)


def held_out() -> np.ndarray:
    """bool (1797,): the 600 that no embedded model was trained on."""
    chosen = np.zeros(1797, bool)
    chosen[np.random.default_rng(_SEED).permutation(1797)[:HELD_OUT]] = True
    return chosen


def to_grey(images: np.ndarray) -> np.ndarray:
    """uint8: the 17 shades as greys of 8 bits."""
    grey: np.ndarray = np.minimum(np.asarray(images) * 16, 255).astype(np.uint8)
    return grey


def from_grey(grey: np.ndarray) -> np.ndarray:
    """float: greys of 8 bits as shades."""
    return np.asarray(grey, np.float64) / 255 * 16


def shades(images: np.ndarray) -> np.ndarray:
    """uint8: rounded to the 17 shades that the real ones have, so that their number gives nothing away."""
    found: np.ndarray = np.clip(np.rint(images), 0, 16).astype(np.uint8)
    return found


def digit_rows() -> Rows:
    """The held-out digits with their class."""
    images, labels = digits()
    held = held_out()
    paths = _written("real", to_grey(images[held]))
    return _rows("digits", [{"image": p, "label": str(c), "group": p} for p, c in zip(paths, labels[held], strict=True)])


def made_rows() -> Rows:
    """The held-out digits as ``real``, and those of the diffusion transformer as ``made``."""
    images, _ = digits()
    real = _written("real", to_grey(images[held_out()]))
    made = _written("made", to_grey(made_digits()[0]))
    return _rows(
        "digits-made", [{"image": p, "label": n, "group": p} for n, ps in (("real", real), ("made", made)) for p in ps]
    )


@cache
def made_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (600, 8, 8) shades and uint8 (600,) classes that were asked for."""
    with np.load(MADE) as held:
        return held["images"], held["labels"]


def _rows(name: str, records: list[dict[str, str]]) -> Rows:
    return Rows([*records], ["image", "label", "group"], f"preset {name}", "image", list(range(1, len(records) + 1)))


def _written(kind: str, grey: np.ndarray) -> list[str]:
    """Paths of the images (N, 8, 8) as PNG files in moescope's cache, written where they are not there already."""
    folder = cache_folder() / "digits" / kind
    paths = [folder / f"{number:04d}.png" for number in range(1, len(grey) + 1)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in zip(paths, grey, strict=True):
            held = io.BytesIO()
            Image.fromarray(pixels).save(held, "PNG")
            if not path.is_file() or path.read_bytes() != held.getvalue():
                whole = path.with_suffix(f".{os.getpid()}.tmp")
                whole.write_bytes(held.getvalue())
                os.replace(whole, path)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error.strerror or error}); set MOESCOPE_CACHE to another folder") from error
    return [str(path) for path in paths]
