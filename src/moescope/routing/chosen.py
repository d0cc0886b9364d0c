"""The neurons that few bits choose for a token, read as routing: every neuron of an MLP is an expert.

The rule is that of `moescope sparsify` (:mod:`moescope.models.sparse`): the first bits of gate and up say how much each neuron
would write, and those that would write most work. A sparse model's trace is what it does. In a dense model the same rule is
read beside it, and every neuron still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.models.gated import gated_mlps
from moescope.models.rounding import nested
from moescope.models.sparse import sparse_mlps, write_scores
from moescope.routing.dense import is_dense, run_sites, trace_of_dense
from moescope.routing.trace import RoutingTrace, id_dtype
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.routing.capture import PromptLike

Progress = Callable[[int, int], None]
Scores = Callable[[Tensor], Tensor]
"""MLP inputs (T, d) to how much each neuron is expected to write (T, I)."""


@dataclass(frozen=True)
class NeuronChoice:
    """How many neurons of each layer work on a token, and how many first bits, of how many, choose them."""

    neurons: tuple[int, ...]
    choose: int = 4
    bits: int = 8

    def __str__(self) -> str:
        return f"single MLP neurons, chosen for each token by the first {self.choose} of {self.bits} bits of gate and up"


def choice_of(model: LoadedModel, share: float | None = None) -> NeuronChoice | None:
    """How a model chooses neurons; of a dense one that ``share`` of each layer's, by four of eight bits.

    Returns:
        None for a model with experts, and for a dense one without a ``share``.

    Raises:
        InputError: ``share`` is given for a model that chooses neurons or experts itself, or its MLPs are not gated.
    """
    sparse = sparse_mlps(model.module)
    if share is not None and (sparse or not is_dense(model)):
        what = "chooses its neurons" if sparse else "routes to experts"
        raise InputError(f"{model.name} {what} itself, and that is what is read; leave it out", "neuron_share")
    if sparse:
        return NeuronChoice(tuple(mlp.neurons for mlp in sparse), sparse[0].choose, sparse[0].gate_proj.bits)
    if share is None:
        return None
    return NeuronChoice(tuple(max(1, round(share * mlp.neurons)) for mlp in gated_mlps(model)))


def chosen_trace(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    choice: NeuronChoice,
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> RoutingTrace:
    """A routing trace of the neurons that are chosen on the prompts' tokens, in order of their numbers, without weights.

    A chat template's tokens have no row.

    Args:
        choice: as the model's own (:func:`choice_of`), or another's of as many layers.
        max_tokens: keep at most this many tokens of a prompt, its last.

    Raises:
        InputError: the model has no gated MLPs.
    """
    encoded = encode(model, [p.text for p in prompts], max_tokens=max_tokens)
    layers = _layers(model, choice)
    sites = [Site("mlp_in", number) for number in range(len(layers))]
    widths = [neurons for neurons, _ in layers]
    ids = np.zeros((int(encoded.lengths.sum()), len(sites), max(choice.neurons)), id_dtype(max(widths)))
    ids[:] = np.iinfo(ids.dtype).max  # of layers in which fewer are chosen

    def read(site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = layers[site.layer][1](x.float().flatten(0, 1)).view(*x.shape[:2], -1)
        top = scores.topk(choice.neurons[site.layer], dim=-1).indices.sort(-1).values
        return top, top

    said = {"experts": str(choice), "neurons": list(choice.neurons)}
    run = run_sites(model, encoded, sites, read, batch_tokens)
    return trace_of_dense(model, prompts, encoded, sites, widths, run, ids, None, said, progress)


def _layers(model: LoadedModel, choice: NeuronChoice) -> list[tuple[int, Scores]]:
    """Of each layer its neurons, and what says how much they would write."""
    found: list[tuple[int, Scores]] = []
    for mlp in sparse_mlps(model.module):
        codes: dict[str, Any] = {"gate": mlp.gate_proj.nested, "up": mlp.up_proj.nested, "norms": mlp.norms}
        found.append((mlp.gate_proj.out_features, partial(write_scores, bits=mlp.choose, activation=mlp.act_fn, **codes)))
    for dense in [] if found else gated_mlps(model):
        gate, up, down = (nested(weight, choice.bits) for weight in (dense.gate, dense.up, dense.down.T))
        codes = {"gate": gate, "up": up, "norms": down.prefix().norm(dim=1)}
        found.append((dense.neurons, partial(write_scores, bits=choice.choose, activation=dense.activation, **codes)))
    return found
