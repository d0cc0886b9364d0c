"""What is done to a model: edits of experts, or neurons switched off."""

from __future__ import annotations

import dataclasses
from typing import Literal

from moescope.intervene.experts import ExpertEdits
from moescope.studies.steer.neurons_effect import AblateMode
from moescope.types import Neuron


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Neurons of a dense model that are set to their mean, or to zero, at every token."""

    neurons: tuple[Neuron, ...]
    mode: AblateMode = "mean"

    def __str__(self) -> str:
        return f"{self.mode}-ablate {', '.join(map(str, self.neurons))}"


@dataclasses.dataclass(frozen=True)
class Steering:
    """One thing to do: a name for it, what is done, and the category that it is meant to hurt or to help."""

    name: str
    edits: ExpertEdits | Ablation
    target: str | None = None
    aim: Literal["harm", "help"] = "harm"
