"""What the calibration text says of every MLP: sizes, averages, axes, and what leaving neurons out would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.models.sparse import largest
from moescope.studies.sparsify.methods import (
    ANOTHER,
    CHANCE,
    Layer,
    Scores,
    Way,
    by_another_token,
    by_chance,
    by_planes,
    replaced,
)
from moescope.types import Site

_SAMPLE = 1 << 16  # values of a layer's activations from which a threshold is read
_LOOKED = 256  # tokens of a batch on which choices are compared
_STEPS = 16  # numbers of neurons that a budget can be: sixteenths of all
SIZES = ("x", "h", "gate", "up")


@dataclass(eq=False)
class Seen:
    """One layer on the calibration text."""

    sizes: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in SIZES})
    """samples of |x|, |h|, |act(gate x)| and |up x|"""
    importance: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(I,): sum of squares of what each neuron writes"""
    moments: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(d, d): sum of x xᵀ"""
    captured: dict[str, float] = field(default_factory=dict)
    """of the looked-at tokens: squared contributions of all neurons, of the oracle's choice, the planes' and the average's;
    how many neurons the planes choose, and of these how many are the oracle's, another token's, and those of a random choice"""
    lost: Tensor = field(default_factory=lambda: torch.zeros(_STEPS, dtype=torch.float64))
    """squared norm of what is left out where 0, 1/16, … of the neurons work, over the looked-at tokens"""

    def threshold(self, name: str, share: float) -> float:
        """The size that ``share`` of the values reach."""
        return float(np.quantile(torch.cat(self.sizes[name]).numpy(), 1 - share))

    @property
    def axes(self) -> Tensor:
        """(d, d): the principal axes of the layer's input about nought, the largest first, as columns."""
        vectors: Tensor = torch.linalg.eigh(self.moments).eigenvectors
        return vectors.flip(1).float()


@dataclass(eq=False)
class Calibrated:
    """Every layer, and the mean squared norm of what leaves it."""

    layers: list[Seen]
    stream: list[float]

    def importance(self) -> list[Tensor]:
        return [seen.importance for seen in self.layers]

    def table(self, layers: Sequence[Layer], budgets: Sequence[int]) -> pd.DataFrame:
        """Table ``layers``."""
        rows = []
        for number, (layer, seen, count) in enumerate(zip(layers, self.layers, budgets, strict=True)):
            every = seen.captured["every"] or 1.0
            rows.append(
                {
                    "layer": number,
                    "neurons": count,
                    "share": count / layer.mlp.neurons,
                    "captured": seen.captured["planes"] / every,
                    "oracle": seen.captured["oracle"] / every,
                    "static": seen.captured["static"] / every,
                    "agree": seen.captured["agree"] / max(1.0, seen.captured["chosen"]),
                }
            )
        return pd.DataFrame(rows)


@dataclass(eq=False)
class _Looking(Way):
    """Runs every neuron, and keeps what it sees."""

    choose: int
    counts: Sequence[int]
    seen: list[Seen]
    generator: torch.Generator
    compare: bool
    controls: dict[str, Scores]

    def run(self, number: int, x: Tensor) -> Tensor:
        layer, seen = self.layers[number], self.seen[number]
        a, u = layer.parts(x)
        h = a * u
        if self.compare:
            self._compare(number, layer, seen, x, a, u)
        else:
            for name, values in zip(SIZES, (x, h, a, u), strict=True):
                seen.sizes[name].append(self._some(values))
            seen.importance = seen.importance + (h.abs() * layer.norms).square().sum(0).double().cpu()
            seen.moments = seen.moments + (x.T @ x).double().cpu()
        return layer.write(h)

    def _some(self, values: Tensor) -> Tensor:
        flat = values.reshape(-1)
        at = torch.randint(len(flat), (min(len(flat), _SAMPLE // 4),), generator=self.generator)
        return flat[at.to(flat.device)].abs().cpu()

    def _compare(self, number: int, layer: Layer, seen: Seen, x: Tensor, a: Tensor, u: Tensor) -> None:
        rows = torch.randperm(len(x), generator=self.generator)[:_LOOKED].to(x.device)
        x, a, u = x[rows], a[rows], u[rows]
        wrote = (a * u).abs() * layer.norms
        expected = by_planes(self.choose)(number, layer, x, a, u)
        count, square = self.counts[number], wrote.square()
        planes, oracle = largest(expected, count), largest(wrote, count)
        static = largest(seen.importance.to(x).expand(len(x), -1), count)
        found = {"every": square, "planes": square * planes, "oracle": square * oracle, "static": square * static}
        found |= {"agree": planes * oracle, "chosen": planes}
        for name, scores in self.controls.items():
            found[name] = planes * largest(scores(number, layer, x, a, u), count)
        for name, values in found.items():
            seen.captured[name] = seen.captured.get(name, 0.0) + float(values.sum(dtype=torch.float64))
        order = expected.argsort(dim=1).argsort(dim=1)  # 0 for the neuron that is left out first
        for step in range(_STEPS):
            out = (order < layer.mlp.neurons - round(step * layer.mlp.neurons / _STEPS)).float()
            seen.lost[step] += float(layer.write(a * u * out).square().sum(dtype=torch.float64))


@torch.no_grad()
def calibrate(
    model: LoadedModel,
    layers: Sequence[Layer],
    windows: Windows,
    counts: Sequence[int],
    choose: int,
    seed: int,
    report: Callable[[int, int], None] | None = None,
) -> Calibrated:
    """Read the calibration text twice: for sizes, averages and axes; then, those known, for choices side by side.

    Args:
        counts: neurons of each layer at which choices are compared.
    """
    seen = [Seen() for _ in layers]
    stream = np.zeros(len(layers))
    body = model.module
    batches = list(windows.batches(2048))
    another, chance = (torch.Generator().manual_seed(seed) for _ in range(2))
    controls = {ANOTHER: by_another_token(choose, another), CHANCE: by_chance(chance)}
    for turn in (False, True):
        way = _Looking(layers, choose, counts, seen, torch.Generator().manual_seed(seed + turn), turn, controls)

        def told(number: int) -> Callable[[Tensor], None]:
            def add(values: Tensor) -> None:
                stream[number] += float(values.float().square().sum(-1).mean()) / len(batches)

            return add

        handles = [model.tap_point(Site("resid", n)).attach(told(n)) for n in range(len(layers))] if turn else []
        try:
            with replaced(way):
                for done, ids in enumerate(batches):
                    body(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
                    if report is not None:
                        report(turn * len(batches) + done + 1, 2 * len(batches))
        finally:
            for handle in handles:
                handle.remove()
    return Calibrated(seen, stream.tolist())


def even(layers: Sequence[Layer], share: float) -> list[int]:
    """As many neurons in each layer as the share says, at least one."""
    return [max(1, round(share * layer.mlp.neurons)) for layer in layers]


def greedy(layers: Sequence[Layer], found: Calibrated, share: float) -> list[int]:
    """Neurons for each layer, ``share`` of them all on average, taken in sixteenths from where the next one left out adds least
    to the squared error of what leaves the layer, relative to the stream (the greedy of TEAL, arXiv:2408.14690, by layer).

    Layers may lose down to a sixteenth.
    """
    costs = []
    for seen, stream in zip(found.layers, found.stream, strict=True):
        # leaving out ever more costs ever more: what noise says else is taken back
        lost = np.maximum.accumulate(seen.lost.numpy()[::-1])[::-1]
        costs.append(np.append(lost, 0.0) / (stream or 1.0))  # by sixteenths that work, 0 to 16
    size = np.array([layer.mlp.neurons for layer in layers])
    steps = np.full(len(layers), _STEPS)
    while (size * steps).sum() / _STEPS > share * size.sum() and (steps > 1).any():
        added = [(c[k - 1] - c[k]) / n if k > 1 else np.inf for c, k, n in zip(costs, steps, size, strict=True)]
        steps[int(np.argmin(added))] -= 1
    return [max(1, round(int(k) * layer.mlp.neurons / _STEPS)) for k, layer in zip(steps, layers, strict=True)]
