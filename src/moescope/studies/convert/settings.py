"""How a dense model is converted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from moescope.errors import InputError
from moescope.study.settings import Judged, at_least, between

Method = Literal["coactivation", "circuits", "random"]
Router = Literal["ridge", "centroid", "distilled"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(Judged):
    """How a dense model becomes a mixture of experts, and how that is judged."""

    experts: Annotated[int | None, at_least(2)] = None
    """Equal slices into which each MLP is cut, shared ones included (default: about 192, as the MLP's width allows)."""
    active: Annotated[int | None, at_least(1)] = None
    """Of these, active on each token, shared ones included (default: a quarter)."""
    shared: Annotated[int | None, at_least(0)] = None
    """Of these, active on every token (default: a quarter of the active; none where the target type has none)."""
    method: Method = "coactivation"
    """Together go neurons that work on the same tokens; also those of a circuit; or any, at random (the control)."""
    router: Router = "ridge"
    """Least squares of the norm of each expert's output; from the weights alone; least squares, then trained a little."""
    refit: bool = True
    """Refit the experts' down projections, layer after layer, to what the dense model has there; the controls alike."""
    calibration_tokens: Annotated[int, at_least(1)] = 32768
    """Tokens of the calibration text to read, at most."""
    heldout_tokens: Annotated[int, at_least(2)] = 8192
    """Tokens of the held-out text to read, at most."""
    window: Annotated[int, at_least(2)] = 512
    """Tokens of one sequence of either, at most; the model's context where that is shorter."""
    finetune: Annotated[int | None, at_least(1)] = None
    """Steps of training against the original before the experts are cut (LoRA; needs the extra `finetune`)."""
    finetune_rank: int | Literal["full"] = 32
    """Rank of the LoRA adapters, which are merged; full: the MLPs' weights themselves, held once more with Adam's moments."""
    finetune_lr: Annotated[float | None, between(0, math.inf)] = None
    """Largest learning rate (default: two are tried for a tenth of the steps each, and the one that validates better taken)."""
    tolerance: Annotated[float, at_least(0)] = 0.05
    """Relative rise in perplexity that may be recommended: the largest loss that counts as none."""
    margin: Annotated[float, at_least(0)] = 0.02
    """Smallest difference in loss from a control that counts, nats per token."""
    speed: bool = True
    """Measure tokens per second; without it nothing is recommended but to keep the dense model where too much is lost."""
    controls: bool = True
    """Compare with a random split and static pruning at the same active share, fine-tuned alike, and with 8-bit weights."""
    eval_task: tuple[str, ...] = ()
    """lm-evaluation-harness task to run on both models."""
    eval_include: Path | None = None
    """Folder with harness tasks of your own."""

    def check(self) -> None:
        if self.finetune_rank != "full" and self.finetune_rank < 1:
            raise InputError(f"must be at least 1 or full, got {self.finetune_rank}", "finetune_rank")
        if self.finetune is None and self.finetune_lr is not None:
            raise InputError("nothing is fine-tuned without finetune=STEPS", "finetune_lr")


@dataclass(frozen=True)
class Counts:
    """Experts of a conversion: all, those that work on each token, and of these those that work on every token."""

    experts: int
    active: int
    shared: int


# transformers' default implementation, grouped_mm, wants an expert's rows to be whole multiples of 16 bytes.
_MULTIPLE = 8
_AIM = 192


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
            f"{experts} does not cut the MLP's {width} neurons into equal experts of a multiple of {_MULTIPLE} neurons "
            f"(which transformers' grouped_mm needs); take {', '.join(map(str, near))}",
            "experts",
        )
    active = settings.active if settings.active is not None else max(1 + has_shared, round(experts / 4))
    if not 1 + has_shared <= active <= experts:
        raise InputError(f"{active} is not between {1 + has_shared} and the {experts} experts", "active")
    shared = settings.shared
    if shared is None:
        shared = min(max(1, active // 4), active - 1) if has_shared else 0
    if not has_shared and shared:
        raise InputError(f"{shared} cannot be: the target type has no shared experts; take 0", "shared")
    if has_shared and not 1 <= shared < active:
        raise InputError(f"{shared} is not between 1 and {active - 1} (one active expert must be routed)", "shared")
    return Counts(experts, active, shared)
