"""The options of a conversion, checked before any work begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from moescope.errors import InputError

Method = Literal["coactivation", "circuits", "random"]
Router = Literal["ridge", "centroid", "distilled"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """How a dense model becomes a mixture of experts.

    Attributes:
        experts: equal slices into which each MLP is cut, shared ones included; None takes about 64, as the MLP's width
            allows.
        active: slices that work on each token, shared ones included; None takes a quarter.
        shared: of these, how many work on every token; None takes a sixteenth of ``experts`` (none where the target type
            has no shared experts).
        method: which neurons go together. ``coactivation``: those that work on the same tokens; ``circuits``: also, the
            neurons of each given circuit in one expert; ``random``: the control.
        router: ``ridge``: least squares of the norm of each expert's output, closed form; ``centroid``: from the weights
            alone, the mean gate direction; ``distilled``: ridge, then trained to name the experts that matter most.
        calibration_tokens: tokens of the calibration text that are read, at most.
        heldout_tokens: tokens of held-out text on which quality is measured, at most.
        window: tokens of one sequence of either, at most; the model's context where that is shorter.
        tolerance: relative rise in perplexity up to which a conversion may be recommended.
        speed: measure tokens per second; without it no recommendation is given.
        controls: also convert at random and prune statically, at the same active share; where the conversion is fine-tuned,
            both are fine-tuned alike.
        finetune: steps of training against the original before the experts are cut; None trains nothing.
        finetune_rank: rank of the LoRA adapters on the MLPs' projections; ``full`` trains the projections' weights
            themselves, for which they are held once more, with gradients and Adam's two moments.
        finetune_lr: largest learning rate; None tries two rates for a tenth of the steps each, and takes what validates
            better.
    """

    experts: int | None = None
    active: int | None = None
    shared: int | None = None
    method: Method = "coactivation"
    router: Router = "ridge"
    calibration_tokens: int = 32768
    heldout_tokens: int = 8192
    window: int = 512
    tolerance: float = 0.05
    speed: bool = True
    controls: bool = True
    finetune: int | None = None
    finetune_rank: int | Literal["full"] = 32
    finetune_lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--calibration-tokens", self.calibration_tokens, 1),
            ("--heldout-tokens", self.heldout_tokens, 2),
            ("--window", self.window, 2),
            ("--finetune", self.finetune, 1),
            ("--finetune-rank", self.finetune_rank if self.finetune_rank != "full" else None, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"{option}: {value} is too few; take at least {least}")
        if self.tolerance < 0:
            raise InputError(f"--tolerance: {self.tolerance} is negative; 0.05 allows five percent")
        if self.finetune_lr is not None and not 0 < self.finetune_lr < math.inf:
            raise InputError(f"--finetune-lr: {self.finetune_lr} is no learning rate; take one above 0, such as 0.001")
        if self.finetune is None and self.finetune_lr is not None:
            raise InputError("--finetune-lr: nothing is fine-tuned without --finetune STEPS")


@dataclass(frozen=True)
class Counts:
    """Experts of a conversion: all, those that work on each token, and of these those that work on every token."""

    experts: int
    active: int
    shared: int


# transformers' default implementation, grouped_mm, wants an expert's rows to be whole multiples of 16 bytes.
_MULTIPLE = 8
_AIM = 64


def counts_of(settings: ConvertSettings, width: int, *, has_shared: bool) -> Counts:
    """The counts for an MLP of ``width`` neurons, with what the settings leave open filled in.

    Raises:
        InputError: the MLP cannot be cut so, or the counts contradict each other; names the option and what would do.
    """
    possible = [n for n in range(2, width + 1) if width % n == 0 and (width // n) % _MULTIPLE == 0]
    if not possible:
        raise InputError(f"the MLP's {width} neurons cannot be cut into equal experts of a multiple of {_MULTIPLE} neurons")
    experts = settings.experts
    if experts is None:
        experts = min(possible, key=lambda n: (max(n, _AIM) / min(n, _AIM), n))
    elif experts not in possible:
        near = sorted(sorted(possible, key=lambda n: abs(n - experts))[:3])
        raise InputError(
            f"--experts: {experts} does not cut the MLP's {width} neurons into equal experts of a multiple of {_MULTIPLE} "
            f"neurons (which transformers' grouped_mm needs); take {', '.join(map(str, near))}"
        )
    active = settings.active if settings.active is not None else max(1 + has_shared, round(experts / 4))
    if not 1 + has_shared <= active <= experts:
        raise InputError(f"--active: {active} is not between {1 + has_shared} and the {experts} experts")
    shared = settings.shared
    if shared is None:
        shared = min(max(1, experts // 16), active - 1) if has_shared else 0
    if not has_shared and shared:
        raise InputError(f"--shared: {shared} cannot be: the target type has no shared experts; take 0")
    if has_shared and not 1 <= shared < active:
        raise InputError(f"--shared: {shared} is not between 1 and {active - 1} (one active expert must be routed)")
    return Counts(experts, active, shared)
