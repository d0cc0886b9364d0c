"""What holds for a run of any study: where its result goes, its seed, its device, its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from moescope.errors import InputError
from moescope.study.settings import Settings, at_least, between
from moescope.types import Precision

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
Counter = Callable[[int, int], None]
"""Called with (done, total) of one stage."""


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """How a study is run, the same for every verb."""

    out: Path | None = None
    """Folder for the result (default: moescope-out/COMMAND-MODEL, numbered where one stands; in Python: nothing is written)."""
    overwrite: bool = False
    """Replace a moescope result that stands in the folder."""
    seed: Annotated[int, between(0, 2**32, open_low=False)] = 0
    """Seed of folds, permutations and random draws."""
    dtype: Precision = "auto"
    """Precision of the model's weights; auto: the checkpoint's, but fp32 for 16-bit ones of at most 2^30 weights; int8 and
    int4 need bitsandbytes."""
    device: str | None = None
    """cpu, cuda, cuda:1 … (default: cuda where there is one)."""
    device_map: str | None = None
    """Passed to transformers, e.g. auto."""
    batch_tokens: Annotated[int, at_least(1)] = 8192
    """Padded tokens in one batch."""
    max_tokens: Annotated[int | None, at_least(1)] = None
    """Cut longer texts, from the left."""
    special_tokens: Literal["default", "all", "none"] = "default"
    """Around a text: what the tokenizer puts before it (and an encoder's after it), all that it puts, or none."""
    chat: bool | None = None
    """Put tasks and prompts into the model's chat template (default: where it has one; reproduce never)."""
    limit: Annotated[int | None, at_least(1)] = None
    """Use at most this many examples of each task, or prompts."""
    engine: Literal["local", "ray"] = "local"
    """What spreads the work: this process (the ranks, where torchrun started it), or the tasks of a Ray cluster."""
    address: str | None = None
    """Of the Ray cluster, e.g. auto or ray://head:10001 (default: one on this machine)."""
    progress: Progress | None = field(default=None, compare=False, repr=False)
    """Called with (stage, done, total) instead of showing it; not an option of the command line."""
    quiet: bool = field(default=False, compare=False)
    """Show no progress: else a bar in a terminal or notebook, and now and then a line with the time left elsewhere."""
    work: Path | None = field(default=None, compare=False, repr=False)
    """Folder for finished stages, from which a run that was cut off goes on (default: beside ``out`` until the result is
    saved; without ``out`` none); not an option of the command line."""

    def check(self) -> None:
        if self.progress is not None and not callable(self.progress):
            raise InputError("is called with (stage, done, total); give a function, or leave it out", "progress")

    def load_options(self) -> dict[str, Any]:
        """What :func:`moescope.models.load` is told."""
        return {"dtype": self.dtype, "device": self.device, "device_map": self.device_map}

    def as_published(self) -> Run:
        """The same without a chat template unless one is asked for: what the sources do."""
        return replace(self, chat=bool(self.chat))


def check_given(settings: object, kind: type[Settings], run: object) -> None:
    """That a verb was given settings of its own kind, and how to run.

    Raises:
        InputError: something else was given; names the parameter, and what belongs there.
    """
    for name, value, wanted in (("settings", settings, kind), ("run", run, Run)):
        if not isinstance(value, wanted):
            what = f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__}"
            raise InputError(f"{what} was given; give moescope.{wanted.__name__}(…)", name)
