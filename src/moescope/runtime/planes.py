"""Modules on the kernels of :mod:`moescope.kernels.planes`, on a GPU :mod:`moescope.kernels.triton_planes`, and a decoder whose
matrices are replaced by them. ::

    replace(model, bits=8)              # every matrix of every layer, and the head, in eight bits
    replace(model, bits=8, share=0.5)   # the MLPs with half of their neurons, chosen for each token
    execute(load_model("DIR").module)   # what `moescope sparsify -o DIR` wrote, its choice as it is at any batch

What the chosen neurons save shrinks when tokens are computed together, since they choose differently and what any of them
chose is read. Computing all neurons reads no more than that and is nearer to the model; so it is done for as many tokens as
it takes no longer, which is measured with the layer's own weights (:meth:`SparseMlp.count`), and for more than 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.kernels import planes
from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.planes_loop import GROUP
from moescope.models.rounding import nested
from moescope.models.sparse import reference, sparse_mlps

AT_ONCE = 16  # tokens; more are computed in parts
_whole: dict[tuple[Any, ...], bool] = {}


class Linear(nn.Module):
    """A matrix in few bits, without a bias."""

    def __init__(self, rows: Any, bytes_each: int = 2) -> None:
        super().__init__()
        self.rows, self.bytes_each = rows, bytes_each

    def forward(self, x: Tensor) -> Tensor:
        return _in_parts(x, self.rows.outputs, self._run)

    def _run(self, x: Tensor) -> Tensor:
        made: Tensor = _kernels(x.device).linear(x, self.rows, bytes_each=self.bytes_each)
        return made


class DenseMlp(nn.Module):
    """A gated MLP in few bits, all of it computed."""

    def __init__(self, rows: Any, activation: str, bytes_each: int = 2) -> None:
        super().__init__()
        self.rows, self.activation, self.bytes_each = rows, activation, bytes_each

    def forward(self, x: Tensor) -> Tensor:
        return _in_parts(x, self.rows.outputs, self._run)

    def _run(self, x: Tensor) -> Tensor:
        made: Tensor = _kernels(x.device).dense_mlp(x, self.rows, self.activation, bytes_each=self.bytes_each)
        return made


class SparseMlp(nn.Module):
    """A gated MLP of which each token has the ``share`` of neurons that a copy of four bits finds to matter most."""

    def __init__(self, packed: Any, share: float, activation: str, bytes_each: int = 2) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise InputError(f"must be from 0 to 1, got {share}", "share")
        self.planes, self.share, self.activation, self.bytes_each = packed, share, activation, bytes_each

    def count(self, tokens: int) -> int:
        """How many neurons each of so many tokens has: those of the share, or all where that takes no longer."""
        every = int(self.planes.neurons)
        few = round(self.share * every)
        if tokens <= 1 or few == every:
            return few
        if tokens > AT_ONCE:
            return every
        bucket = 1 << (tokens - 1).bit_length()
        place = self.planes.norm.device
        key = (
            self.planes.neurons,
            self.planes.width,
            few,
            self.activation,
            self.bytes_each,
            torch.get_num_threads(),
            bucket,
            place,
        )
        if key not in _whole:
            x = torch.randn(bucket, self.planes.width, generator=torch.Generator().manual_seed(0)).to(place)
            seconds = {few: float("inf"), every: float("inf")}
            for turn in range(6):  # the first compiles
                for neurons in seconds:
                    began = time.perf_counter()
                    self._run(x, neurons)
                    if place.type == "cuda":
                        torch.cuda.synchronize(place)
                    if turn:
                        seconds[neurons] = min(seconds[neurons], time.perf_counter() - began)
            _whole[key] = seconds[every] <= seconds[few]
        return every if _whole[key] else few

    def forward(self, x: Tensor) -> Tensor:
        count = self.count(x.numel() // self.planes.width)
        return _in_parts(x, self.planes.width, lambda part: self._run(part, count))

    def _run(self, x: Tensor, count: int) -> Tensor:
        made: Tensor = _kernels(x.device).sparse_mlp(x, self.planes, count, self.activation, bytes_each=self.bytes_each)
        return made


def _kernels(device: torch.device) -> Any:
    if device.type != "cuda":
        return planes
    from moescope.kernels import triton_planes  # needs Triton

    return triton_planes


def _in_parts(x: Tensor, outputs: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens (..., d) to (..., outputs), so many at once."""
    flat = x.reshape(-1, x.shape[-1])
    made = run(flat) if len(flat) <= AT_ONCE else torch.cat([run(part) for part in flat.split(AT_ONCE)])
    return made.view(*x.shape[:-1], outputs)


def replace(model: Any, *, bits: int = 8, share: float | None = None, bytes_each: int = 2) -> int:
    """Round the matrices of a decoder's layers and its head to nested codes, in place; the number of layers.

    Layers need an ``mlp`` with gate_proj, up_proj and down_proj, as in Llama, Qwen, Mistral and Gemma; matrices with a bias,
    and those whose inputs are no multiple of 32, stay as they are.

    Args:
        bits: 4 or 8.
        share: of the neurons that a token has, with 8 bits; None: no choice, all computed.
        bytes_each: of a token's numbers, see :mod:`moescope.kernels.planes`.

    Raises:
        InputError: no layer has such an MLP, an activation is not known, or the bits do not fit.
    """
    if bits not in (4, 8) or (share is not None and bits != 8):
        raise InputError(f"must be 8, or 4 without a share, got {bits}", "bits")
    mlps = [
        m for m in model.modules() if all(isinstance(getattr(m, f"{p}_proj", None), nn.Linear) for p in ("gate", "up", "down"))
    ]
    if not mlps:
        raise InputError(f"{type(model).__name__} has no MLP with gate_proj, up_proj and down_proj", "model")
    activation = getattr(model.config, "hidden_activation", None) or model.config.hidden_act
    if activation not in ACTIVATIONS:
        raise InputError(f"has the activation {activation}; known are {', '.join(ACTIVATIONS)}", "model")
    for owner in list(model.modules()):
        for name, module in list(owner.named_children()):
            if any(module is mlp for mlp in mlps):
                setattr(owner, name, _mlp(module, bits, share, activation, bytes_each))
            elif _is_plain(module) and not any(owner is mlp for mlp in mlps):
                packed = _kernels(module.weight.device).pack_rows(nested(module.weight, bits))
                setattr(owner, name, Linear(packed, bytes_each))
    return len(mlps)


def execute(model: nn.Module) -> int:
    """Let the sparse MLPs of a model that ``moescope sparsify`` wrote run on these loops; how many do. Others stay as they are.

    Each token has its own number of neurons whatever is computed beside it. The codes are laid out once more, which takes as
    much memory again as they do.

    Raises:
        InputError: none can: of 8 bits 4 must choose, on the CPU or on a GPU with Triton, in rows of a multiple of 32, with an
            activation of ``moescope.kernels.activations.ACTIVATIONS``; or the model has no sparse MLP.
    """
    activation = getattr(model.config, "hidden_activation", None) or getattr(model.config, "hidden_act", None)
    covered = [mlp for mlp in sparse_mlps(model) if _is_covered(mlp) and activation in ACTIVATIONS]
    if not covered:
        raise InputError(
            "has no sparse MLP that these kernels run; they run those of `moescope sparsify --choose 4 --bits 8`, on the CPU "
            "or, with pip install 'moescope[gpu]', on a GPU",
            "model",
        )
    for mlp in covered:
        codes = (mlp.gate_proj.nested, mlp.up_proj.nested, mlp.down_proj.nested)
        mlp.execute = partial(_execute, _kernels(codes[0].codes.device).pack(*codes, mlp.choose), str(activation))
    return len(covered)


def _is_covered(mlp: Any) -> bool:
    codes = mlp.gate_proj.codes
    there = codes.device.type == "cpu" or (codes.device.type == "cuda" and find_spec("triton") is not None)
    return (mlp.gate_proj.bits, mlp.choose) == (8, planes.CHOOSING) and there and codes.shape[1] % GROUP == 0


def _execute(packed: Any, activation: str, mlp: Any, x: Tensor) -> Tensor:
    if x.device.type == "cuda" and len(x) > AT_ONCE:
        return reference(mlp, x)  # of many tokens matrix products are the faster
    return torch.cat([_kernels(x.device).sparse_mlp(part, packed, mlp.neurons, activation) for part in x.split(AT_ONCE)])


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.bias is None and module.in_features % GROUP == 0


def _mlp(mlp: Any, bits: int, share: float | None, activation: str, bytes_each: int) -> nn.Module:
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    kernels = _kernels(gate.device)
    if share is None:
        return DenseMlp(kernels.pack_gated(*(nested(w, bits) for w in (gate, up, down))), activation, bytes_each)
    return SparseMlp(kernels.pack(nested(gate), nested(up), nested(down.T)), share, activation, bytes_each)
