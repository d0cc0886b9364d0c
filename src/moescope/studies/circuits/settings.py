"""The options of a circuits study, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moescope.errors import InputError

Sigma = Literal["pooled", "total", "negative"]


@dataclass(frozen=True, kw_only=True)
class CircuitSettings:
    """How task circuits are sought.

    Attributes:
        site: which sites enter, e.g. ``"resid"`` (the residual stream after every layer, as published), ``"mlp_act"``.
        position: ``"final"`` token (as published), ``"mean"``, or a token index.
        ks: circuit sizes of the sufficiency table.
        k: the headline circuit size, used by every control.
        sigma: denominator of the divergence; the source leaves it open. ``"total"`` reproduces its bound of 2.
        selection: ``"nested"`` selects inside the training folds; ``"global"`` is the published protocol, optimistic.
        classifier: ``"lda"`` as published, or ``"logistic"``.
        n_permutations: label permutations of the neuron ranking (max statistic) and of the projection.
        n_label_permutations: label permutations of the whole nested selection and cross-validation; 0 leaves them out.
        n_random: random circuits per control.
        twin: also study a randomly initialised model of the same architecture.
        control_half_width: controls that need the model to read texts anew (twin, fixed template) get as many rows as an
            accuracy's 95 % interval of ± this needs; 0 gives them all that ``control_cost`` pays for.
        control_cost: and no more than cost together this share of one pass over the texts, in forward tokens.
    """

    site: str = "resid"
    position: str | int = "final"
    ks: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50)
    k: int = 10
    sigma: Sigma = "pooled"
    selection: Literal["nested", "global"] = "nested"
    classifier: Literal["lda", "logistic"] = "lda"
    n_folds: int = 5
    n_permutations: int = 1000
    n_label_permutations: int = 100
    n_random: int = 100
    twin: bool = True
    control_half_width: float = 0.05
    control_cost: float = 0.5
    max_tokens: int | None = None
    batch_tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise InputError(f"--ks: circuit sizes must be at least 1, got {self.ks}")
        if self.k < 1:
            raise InputError(f"--k: the circuit size must be at least 1, got {self.k}")
        for option, low in (("n_folds", 2), ("n_permutations", 19), ("n_label_permutations", 19), ("n_random", 20)):
            if option == "n_label_permutations" and self.n_label_permutations == 0:
                continue
            if getattr(self, option) < low:
                name = option.removeprefix("n_").replace("_", "-")
                raise InputError(f"--{name}: must be at least {low}, got {getattr(self, option)}")
        if not 0 <= self.control_half_width < 0.5:
            raise InputError(f"control_half_width: must be from 0 up to 0.5, got {self.control_half_width}")
        if not self.control_cost > 0:
            raise InputError(f"control_cost: must be positive, got {self.control_cost}")
        if self.batch_tokens < 1:
            raise InputError(f"--batch-tokens: must be at least 1, got {self.batch_tokens}")
        if self.sigma not in ("pooled", "total", "negative"):
            raise InputError(f"--sigma: {self.sigma!r} is none of pooled, total, negative")
        if self.selection not in ("nested", "global"):
            raise InputError(f"--selection: {self.selection!r} is neither nested nor global")
        if self.classifier not in ("lda", "logistic"):
            raise InputError(f"--classifier: {self.classifier!r} is neither lda nor logistic")

    def all_ks(self) -> tuple[int, ...]:
        """Every circuit size that the study evaluates, ascending."""
        return tuple(sorted({*self.ks, self.k}))
