"""Expert counts without the tokens: enough for signatures and load, and of a size that does not grow with the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.capture.activations import Progress
from moescope.errors import InputError
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.routing.capture import PromptLike, trace_prompts
from moescope.routing.trace import Part, RoutingTrace, TracedSequence

if TYPE_CHECKING:
    from moescope.models import LoadedModel

FORMAT = "moescope-routing-counts-1"


@dataclass(frozen=True, eq=False)
class RoutingCounts:
    """How often the tokens of each of S sequences were sent to each expert of each of L layers."""

    layers: tuple[int, ...]
    n_experts: tuple[int, ...]
    counts: np.ndarray
    """int64 (S, L, max(n_experts))"""
    mass: np.ndarray | None
    """float64 (S, L, max(n_experts)): sum of the weights. None: not recorded."""
    tokens: np.ndarray
    """int64 (S,): tokens counted"""
    sequences: tuple[TracedSequence, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: RoutingTrace, part: Part = "all") -> RoutingCounts:
        """The counts of a trace."""
        return cls(
            trace.layers,
            trace.n_experts,
            trace.counts(part=part).astype(np.int64),
            None if trace.weights is None else trace.counts(weighted=True, part=part),
            np.bincount(trace.sequence[trace.mask(part)], minlength=len(trace.sequences)).astype(np.int64),
            trace.sequences,
            trace.meta,
        )

    def merge(self, other: RoutingCounts) -> RoutingCounts:
        """The counts of both: a sequence of the same id is added up, others are appended. Associative.

        Raises:
            InputError: they are of different models.
        """
        if (self.layers, self.n_experts) != (other.layers, other.n_experts):
            raise InputError(f"counts of layers {list(self.layers)} and {list(other.layers)} are of different models")
        known = {sequence.id: number for number, sequence in enumerate(self.sequences)}
        fresh = [sequence for sequence in other.sequences if sequence.id not in known]
        known |= {sequence.id: len(self.sequences) + number for number, sequence in enumerate(fresh)}
        at = [known[sequence.id] for sequence in other.sequences]

        def added(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            total = np.concatenate([mine, np.zeros((len(fresh), *mine.shape[1:]), mine.dtype)])
            np.add.at(total, at, theirs)
            return total

        return RoutingCounts(
            self.layers,
            self.n_experts,
            added(self.counts, other.counts),
            None if self.mass is None or other.mass is None else added(self.mass, other.mass),
            added(self.tokens, other.tokens),
            (*self.sequences, *fresh),
            self.meta,
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        arrays = {"counts": self.counts, "tokens": self.tokens} | ({} if self.mass is None else {"mass": self.mass})
        note = {"layers": self.layers, "n_experts": self.n_experts, "sequences": [asdict(s) for s in self.sequences]}
        save_arrays(Path(path), arrays, {"format": FORMAT, "meta": self.meta, **note})

    @classmethod
    def load(cls, path: str | Path) -> RoutingCounts:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, damaged or something else.
        """
        arrays, note = load_arrays(Path(path), FORMAT)
        names = tuple(TracedSequence(**sequence) for sequence in note["sequences"])
        layers, n_experts = tuple(note["layers"]), tuple(note["n_experts"])
        return cls(layers, n_experts, arrays["counts"], arrays.get("mass"), arrays["tokens"], names, note["meta"])


def count_prompts(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    *,
    part: Part = "all",
    chunk: int = 256,
    progress: Progress | None = None,
    **options: Any,
) -> RoutingCounts:
    """Counts of prompts, and with ``max_new_tokens`` of what follows them, holding the trace of ``chunk`` prompts at a time.

    Args:
        part: count the prompts' tokens, the generated ones, or all.
        options: those of :func:`~moescope.routing.trace_prompts`.

    Raises:
        InputError: as :func:`~moescope.routing.trace_prompts`; no prompt; two prompts of the same id.
    """
    if not prompts:
        raise InputError("prompts: none were given")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise InputError("prompts: two have the same id; give each its own")
    parts = []
    for start in range(0, len(prompts), chunk):
        some = prompts[start : start + chunk]
        parts.append(RoutingCounts.of(trace_prompts(model, some, tokens=False, **options), part))
        if progress is not None:
            progress(start + len(some), len(prompts))
    total = parts[0]
    for counts in parts[1:]:
        total = total.merge(counts)
    return total
