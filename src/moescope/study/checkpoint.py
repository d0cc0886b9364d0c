"""A model that a study leaves for others to run."""

from __future__ import annotations

import shutil
from pathlib import Path


class Checkpoint:
    """A folder that plain transformers loads: weights, configuration, tokenizer, card.

    Its files are copied as they are, since a model that transformers has read and writes again loses parts of its
    configuration and changes the precision of its routers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """where the files lie: a temporary folder until the result has one"""
        self.draft: object = None
        """what keeps the temporary folder for as long as this object lives"""
        self._files = [f.relative_to(folder) for f in folder.rglob("*") if f.is_file()]

    def write(self, folder: Path, /) -> None:
        """Copy the files."""
        for file in self._files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / file, folder / file)
