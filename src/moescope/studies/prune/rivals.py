"""Everything that is judged: the checkpoint's mask, those of the other criteria, random ones, and other ways to save bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.errors import InputError
from moescope.models.layered import Edit, Layered
from moescope.models.rounding import share_of_bytes
from moescope.runtime.mask import PruneMask, prune_mask
from moescope.studies.prune.cut import Banks, Cut
from moescope.studies.prune.saliency import Saliency
from moescope.studies.prune.settings import CRITERIA, PruneSettings
from moescope.studies.prune.variants import mean_output, rounded_experts, same_bytes


@dataclass(frozen=True, eq=False)
class Rival:
    """One row of the table of pruning."""

    criterion: str
    ratio: float
    edits: tuple[Edit, ...]
    saved: float
    """share of the experts' bytes"""
    masks: tuple[PruneMask, ...] = ()
    bits: int = 0
    """of rounded weights; 0: none are"""

    @property
    def key(self) -> tuple[str, float]:
        return self.criterion, self.ratio

    @property
    def alone(self) -> bool:
        """Whether its edits change the weights, so that a sweep is theirs alone."""
        return bool(self.bits)


class Rivals:
    """Makes them. What cannot be is refused, or left out with a note, before anything is read.

    Raises:
        InputError: of the checkpoint's own ratio.
    """

    def __init__(self, layered: Layered, banks: Banks, settings: PruneSettings, seed: int) -> None:
        self._layered, self._banks, self._settings, self._seed = layered, banks, settings, seed
        self._cuts: dict[int, Cut] = {}
        self.notes: list[str] = []
        self.ratios: list[float] = []
        self.mask: PruneMask
        """of the checkpoint, once there is a plan"""
        for ratio in sorted({*settings.ratios, settings.ratio}):
            kept = banks.n_experts - round(ratio * banks.n_experts)
            try:
                banks.check(kept, f"{ratio:g}")
            except InputError as error:
                if ratio == settings.ratio or banks.groups == 1:
                    raise
                self.notes.append(f"not measured at {ratio:g}: {error}")
                continue
            self.ratios.append(ratio)
        self.cut(banks.n_experts - round(settings.ratio * banks.n_experts))

    def cut(self, kept: int) -> Cut:
        """The model with so many experts a layer."""
        if kept not in self._cuts:
            self._cuts[kept] = Cut(self._layered, self._banks, kept)
        return self._cuts[kept]

    def plan(self, found: Saliency) -> list[Rival]:
        """All of them, ratio by ratio."""
        settings, rng = self._settings, np.random.default_rng(self._seed)
        spared = found.super_experts() if settings.guard else frozenset()
        rivals: list[Rival] = []
        for ratio in self.ratios:
            scores = {name: found.by(name) for name in CRITERIA}
            own = self._mask(scores[settings.by], ratio, spared)
            if ratio == settings.ratio:
                self.mask = own
            rivals += [self._of(name, ratio, self._mask(values, ratio, spared)) for name, values in scores.items()]
            unguarded = self._mask(scores[settings.by], ratio, frozenset())
            if ratio == settings.ratio and unguarded.pruned != own.pruned:
                rivals.append(self._of("unguarded", ratio, unguarded))
            if own.pruned:
                rivals.append(Rival("mean output", ratio, (mean_output(self._banks, found, own),), own.ratio))
            bits, which, saved = same_bytes(scores[settings.by], ratio)
            rivals.append(Rival(f"{bits}-bit", ratio, (rounded_experts(self._banks, which, bits),), saved, bits=bits))
            shuffled = [{layer: rng.random(len(v)) for layer, v in found.chosen.items()} for _ in range(settings.n_random)]
            rivals.append(self._of("random", ratio, *(self._mask(values, ratio, spared) for values in shuffled)))
        every = {layer: np.ones(len(v), dtype=bool) for layer, v in found.chosen.items()}
        for bits in (8, 4):
            saved = 1 - share_of_bytes(bits)
            rivals.append(Rival(f"{bits}-bit", saved, (rounded_experts(self._banks, every, bits),), saved, bits=bits))
        return rivals

    def _mask(self, values: dict[int, np.ndarray], ratio: float, spared: frozenset[tuple[int, int]]) -> PruneMask:
        return prune_mask(values, ratio, top_k=self._banks.top_k, groups=self._banks.groups, spared=spared)

    def _of(self, criterion: str, ratio: float, *masks: PruneMask) -> Rival:
        edits = tuple(self.cut(mask.kept).edit(mask.keep) for mask in masks)
        return Rival(criterion, ratio, edits, masks[0].ratio, masks)
