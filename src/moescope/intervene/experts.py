"""Steer a mixture of experts: ban, force, boost or scale chosen experts while the model runs.

What each intervention means is fixed by where it acts; the router's own code does the rest, so probabilities are
normalised as this architecture normalises them:

========  ==============================================  ===========================================================
``ban``   the expert's router logit is -inf (its choice    softmax-then-top-k: the rest share its probability;
          too, where a bias joins the choice)              top-k-then-softmax: the next expert takes its slot
``force`` the expert is always among the chosen            its weight is its own score, normalised with the others'
``boost`` a number is added to the router's logit          changes choice and weight; ±inf means force and ban
``scale`` the expert's output weight is multiplied         after every normalisation; the others' weights stay
========  ==============================================  ===========================================================

Where scores are sigmoids with a bias for the choice (DeepSeek-V3's family), a boost can add no more than a sigmoid's 1, so
even a large one may not outweigh a low bias; ``force`` does.

SteerMoE (Fayyaz et al. 2025, arXiv 2509.09660) activates an expert by giving it the largest score of the token; here
that is ``force`` together with ``boost``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from moescope.errors import InputError
from moescope.intervene.experts_hooks import LayerEdit, attach
from moescope.models.experts import expert_layers

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class Expert(NamedTuple):
    """One routed expert: true layer number and number within the layer, both from 0."""

    layer: int
    number: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.number}"


@dataclass(frozen=True)
class ExpertEdits:
    """What is done to which experts. ``boost`` is in the units of the router's logits, ``scale`` a factor.

    A boost of +inf is kept as ``force`` and of -inf as ``ban``. An expert may be both boosted, scaled and forced.

    Raises:
        InputError: an expert both banned and something else, a NaN, or a scale that is not finite.
    """

    ban: frozenset[Expert] = frozenset()
    force: frozenset[Expert] = frozenset()
    boost: Mapping[Expert, float] = field(default_factory=dict)
    scale: Mapping[Expert, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        boost = {Expert(*e): float(b) for e, b in self.boost.items()}
        scale = {Expert(*e): float(s) for e, s in self.scale.items()}
        for name, values in (("boost", boost), ("scale", scale)):
            for expert, value in values.items():
                if math.isnan(value) or (name == "scale" and math.isinf(value)):
                    raise InputError(f"{expert}={value}: give a number", name)
        ban = _experts(self.ban) | {e for e, b in boost.items() if b == -math.inf}
        force = _experts(self.force) | {e for e, b in boost.items() if b == math.inf}
        object.__setattr__(self, "ban", ban)
        object.__setattr__(self, "force", force)
        object.__setattr__(self, "boost", {e: b for e, b in boost.items() if math.isfinite(b)})
        object.__setattr__(self, "scale", scale)
        both = sorted(ban & (force | self.boost.keys() | scale.keys()))
        if both:
            raise InputError(f"expert {both[0]} is banned and also forced, boosted or scaled: choose one")

    @property
    def experts(self) -> tuple[Expert, ...]:
        """All that are touched, by layer and number."""
        return tuple(sorted(self.ban | self.force | self.boost.keys() | self.scale.keys()))

    def __bool__(self) -> bool:
        return bool(self.experts)

    def __str__(self) -> str:
        parts = [f"ban {e}" for e in sorted(self.ban)] + [f"force {e}" for e in sorted(self.force)]
        parts += [f"boost {e}={b:+g}" for e, b in sorted(self.boost.items())]
        parts += [f"scale {e}={s:g}" for e, s in sorted(self.scale.items())]
        return ", ".join(parts) or "no edits"

    def moved(self, to: Mapping[Expert, Expert]) -> ExpertEdits:
        """The same interventions on other experts: each expert e is replaced by ``to[e]``."""
        return ExpertEdits(
            frozenset(to[e] for e in self.ban),
            frozenset(to[e] for e in self.force),
            {to[e]: b for e, b in self.boost.items()},
            {to[e]: s for e, s in self.scale.items()},
        )


@contextmanager
def steer_experts(model: LoadedModel, edits: ExpertEdits) -> Iterator[None]:
    """Apply ``edits`` to every token of every forward pass inside the block, those of ``generate`` included.

    Blocks may be nested; their edits add up. Layers without an edit are not touched at all, so no edits give the
    model's own output bit for bit. On leaving, in whatever way, the model is as it was.

    Works where a router's logits come from a linear map in the router module, and the chosen experts reach a module of
    experts as (hidden states, indices, weights): what really arrives there is checked on every forward pass.

    Raises:
        InputError: an expert or layer that is not there, so many bans that fewer than top-k experts are left, more
            forced experts than top-k; on running, an architecture whose routing does not obey.
    """
    layers = edits_by_layer(model, edits)
    with ExitStack() as stack:
        for layer, edit in layers.items():
            stack.enter_context(attach(model, layer, edit))
        yield


def expert_counts(model: LoadedModel) -> dict[int, int]:
    """True layer number -> number of routed experts.

    Raises:
        InputError: the model is dense.
    """
    return {layer.layer: layer.n_experts for layer in expert_layers(model)}


def _experts(experts: Iterable[tuple[int, int]]) -> frozenset[Expert]:
    return frozenset(Expert(*e) for e in experts)


def edits_by_layer(model: LoadedModel, edits: ExpertEdits) -> dict[int, LayerEdit]:
    """The edits of each layer that has any, ascending.

    Raises:
        InputError: the model is dense, or lacks an edited layer or expert.
    """
    counts = expert_counts(model)
    for expert in edits.experts:
        if expert.layer not in counts:
            raise InputError(f"expert {expert}: layer {expert.layer} has no experts; those with are {_list(counts)}")
        if not 0 <= expert.number < counts[expert.layer]:
            raise InputError(f"expert {expert}: layer {expert.layer} has experts 0 to {counts[expert.layer] - 1}")
    return {
        layer: LayerEdit(
            ban=tuple(sorted(e.number for e in edits.ban if e.layer == layer)),
            force=tuple(sorted(e.number for e in edits.force if e.layer == layer)),
            boost={e.number: b for e, b in edits.boost.items() if e.layer == layer and b != 0},
            scale={e.number: s for e, s in edits.scale.items() if e.layer == layer and s != 1},
        )
        for layer in sorted({e.layer for e in edits.experts})
    }


def _list(layers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(layers)))
