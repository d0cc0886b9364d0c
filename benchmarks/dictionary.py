"""Data whose sparsity is known: inputs made of few of many atoms, and a teacher with one neuron per atom.

Here the right answer is known: with ``active`` atoms in an input, a student of single-neuron experts needs about ``active``
of them, and its error collapses there. Gaussian inputs of the same covariance, labelled by the same teacher, have no such
number, and no knee.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.data import SPLITS, ArrayPairs, Block, Split


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """``active`` of ``atoms`` random unit vectors in ``width`` dimensions, each with a coefficient in [1, 2].

    The vectors are orthogonal where ``width`` has room for that; where there are more of them, they are as drawn.
    """

    atoms: int = 256
    active: int = 4
    width: int = 128
    threshold: float = 0.75
    """of the teacher's neurons: above what other atoms leak into a neuron (nothing where they are orthogonal), below the
    least coefficient"""
    tokens: int = 40_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.atoms:
            raise InputError(f"{self.active} of {self.atoms} atoms cannot be active; give 1 to {self.atoms}")


class DictionaryTeacher:
    """``y = Σ_i relu(a_i · x − threshold) · b_i``: neuron i fires when atom i is in x."""

    def __init__(self, settings: DictionarySettings) -> None:
        draw = torch.Generator().manual_seed(settings.seed)
        self.settings = settings
        atoms = torch.randn(settings.atoms, settings.width, generator=draw)
        fits = settings.atoms <= settings.width
        self.atoms = torch.linalg.qr(atoms.T).Q.T.contiguous() if fits else F.normalize(atoms, dim=1)
        self.outputs = F.normalize(torch.randn(settings.atoms, settings.width, generator=draw), dim=1)

    def __call__(self, x: Tensor, largest: int | None = None) -> Tensor:
        """Outputs (n, width), of every neuron or of the ``largest`` most active ones of each input.

        The latter is what a student with that many features could do that knew the teacher.
        """
        hidden = torch.relu(x @ self.atoms.T - self.settings.threshold)
        if largest is not None:
            kept = hidden.topk(largest, dim=1)
            hidden = torch.zeros_like(hidden).scatter(1, kept.indices, kept.values)
        return hidden @ self.outputs

    def firing(self, x: Tensor) -> float:
        """Mean number of neurons that fire."""
        return float((x @ self.atoms.T > self.settings.threshold).sum(1).float().mean())

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Inputs (n, width)."""
        which = torch.rand(n, self.settings.atoms, generator=rng).topk(self.settings.active, dim=1).indices
        z = 1 + torch.rand(n, self.settings.active, generator=rng)
        return torch.einsum("nk,nkd->nd", z, self.atoms[which])


def dictionary_pairs(teacher: DictionaryTeacher) -> ArrayPairs:
    """Dictionary-sparse inputs and their labels: 80 % train, 10 % validation, 10 % test."""
    rng = torch.Generator().manual_seed(teacher.settings.seed + 1)
    made: dict[Split, Block] = {}
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        x = teacher.sample(int(teacher.settings.tokens * share), rng)
        made[split] = Block(x, teacher(x), None)
    return ArrayPairs(f"{teacher.settings.active} of {teacher.settings.atoms} atoms", made)
