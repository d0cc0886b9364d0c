"""How an image becomes what a model is given, in the place where a text model has its tokenizer.

An image is a row of as many ids as the model has places for it (class token, registers, patches). The ids say nothing of the
places: they are the digest of the image's file, so that the row names its image, in this run and in any other; the body finds
the pixels by it (:class:`moescope.models.vision.body.ImageBody`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from moescope.errors import InputError
from moescope.files.image import Picture, read_image
from moescope.models.source import PROCESSOR_FILE

_DIGITS = 8  # ids of a row by which its image is found, of 31 bits each
_KEPT_BYTES = 1 << 28  # of prepared images


class ImageReader:
    """Of one model: its image processor, and the images that were read with it.

    ``places`` is how many vectors the model has for an image, ``before`` how many of them stand before the patches (class
    token, registers). ``blank`` is a grey image, which is made without a file.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.places, self.before = 0, 0
        self._files: dict[bytes, tuple[str, str]] = {}  # by the first ids of a row: path and SHA-256
        self._ready: OrderedDict[bytes, Tensor] = OrderedDict()
        self._held = 0

    def rows(self, paths: Sequence[str], first_row: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each image int32 ids (T,) and bool (T,): no patch.

        Raises:
            InputError: a path is no text, or its image cannot be decoded; names the file.
        """
        special = np.arange(self.places) < self.before
        found = []
        for row, path in enumerate(paths, first_row):
            if not isinstance(path, str):
                raise InputError(f"image {row}: a {type(path).__name__} is no path of an image; give its path")
            picture = read_image(path)
            ids = self._ids(picture.sha256)
            key = ids[:_DIGITS].tobytes()
            self._files.setdefault(key, (path, picture.sha256))
            self._keep(key, self.prepared(picture))
            found.append((ids, special))
        return found

    def pixels(self, ids: Tensor) -> Tensor:
        """float32 (B, C, H, W), as the processor makes them, of the images whose rows these are, int64 (B, T)."""
        keys = [row[:_DIGITS].astype(np.int32).tobytes() for row in ids.cpu().numpy()]
        return torch.stack([self._pixels(key) for key in keys])

    def prepared(self, picture: Picture) -> Tensor:
        """float32 (C, H, W)."""
        return self._prepared(picture.image)

    def blank(self, shade: int = 128) -> Tensor:
        """float32 (1, C, H, W) of one grey."""
        return self._prepared(Image.new("RGB", (32, 32), (shade,) * 3))[None]

    def place(self, number: int) -> str:
        """What stands at a place, in words: a class token or register, or the row and column of a patch."""
        if number < self.before:
            return "[class]" if number == 0 else f"[register {number}]"
        side = round((self.places - self.before) ** 0.5)
        row, column = divmod(number - self.before, side)
        return f"{row + 1},{column + 1}"

    def _prepared(self, image: Image.Image) -> Tensor:
        try:
            made = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        except Exception as error:  # of a garbled preprocessor_config.json anything
            why = " ".join(str(error).split())[:160]
            raise InputError(f"the model's image processor cannot be used ({type(error).__name__}: {why})") from error
        if not isinstance(made, Tensor) or made.dim() != 4 or len(made) != 1:
            raise InputError("the model's image processor does not make one picture of an image: it is not supported")
        return made[0].float()

    def _ids(self, digest: str) -> np.ndarray:
        words = np.frombuffer(bytes.fromhex(digest), np.uint32) & 0x7FFFFFFF
        return np.resize(words.astype(np.int32), self.places)

    def _pixels(self, key: bytes) -> Tensor:
        if key in self._ready:
            self._ready.move_to_end(key)
            return self._ready[key]
        if key not in self._files:
            raise InputError("these ids are of no image that was read with this model; give the paths of images", "ids")
        path, digest = self._files[key]
        picture = read_image(path)
        if picture.sha256 != digest:
            raise InputError(f"{path}: changed while it was studied; begin again")
        return self._keep(key, self.prepared(picture))

    def _keep(self, key: bytes, pixels: Tensor) -> Tensor:
        """In memory, as long as there is room."""
        if key not in self._ready:
            self._ready[key] = pixels
            self._held += pixels.nbytes
            while self._held > _KEPT_BYTES and len(self._ready) > 1:
                self._held -= self._ready.popitem(last=False)[1].nbytes
        return pixels


def read_processor(folder: Path, trust_remote_code: bool) -> ImageReader:
    """The image processor that lies beside a model's weights, by Pillow alone.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    if not (folder / PROCESSOR_FILE).is_file():
        raise InputError(
            f"model folder {str(folder)!r} has no {PROCESSOR_FILE}: save the model's image processor beside its weights"
        )
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust_remote_code)
    except Exception as error:  # what transformers throws for a garbled file has no one base
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{folder / PROCESSOR_FILE} cannot be used: {why}") from error
    return ImageReader(processor)
