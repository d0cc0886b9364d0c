"""Modules on the kernels of :mod:`moescope.kernels.planes`, on a GPU :mod:`moescope.kernels.triton_planes`, and decoders that
run on them. ::

    execute(load_model("DIR").module)   # what `moescope sparsify -o DIR` wrote: the neurons that it chooses, and no others
    replace(model, bits=8)              # every matrix of every layer, and the head, in eight bits; what that must beat

What the chosen neurons save shrinks when tokens are computed together, since they choose differently and what any of them
chose is read. Computing all neurons reads no more than that and is nearer to the dense model; ``execute(…, switch=True)`` does
so for as many tokens as it takes no longer, which is measured with the layer's own weights, and for more than 16. What a token
gets then depends on how many are computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from moescope.models.sparse import SparseMLP, reference, sparse_mlps
from moescope.study.clock import in_turns, seconds_of

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


@dataclass(frozen=True, eq=False)
class Loops:
    """How a :class:`~moescope.models.sparse.SparseMLP` is computed here: its ``execute``."""

    planes: Any
    activation: str
    switch: bool = False
    """of several tokens together compute all neurons where that takes no longer"""
    bytes_each: int = 2

    def __call__(self, mlp: SparseMLP, x: Tensor) -> Tensor:
        count = self.count(len(x), mlp.neurons)
        if x.device.type == "cuda" and len(x) > AT_ONCE and not self.switch:
            return reference(mlp, x)  # of many tokens matrix products are the faster
        return _in_parts(x, self.planes.width, lambda part: self._run(part, count))

    def count(self, tokens: int, few: int) -> int:
        """How many neurons each of so many tokens has: ``few``, or all where that is allowed and takes no longer."""
        every = int(self.planes.neurons)
        if not self.switch or tokens <= 1 or few == every:
            return few
        if tokens > AT_ONCE:
            return every
        bucket = 1 << (tokens - 1).bit_length()
        place = self.planes.norm.device
        shape = self.planes.neurons, self.planes.width
        key = (*shape, few, self.activation, self.bytes_each, torch.get_num_threads(), bucket, place)
        if key not in _whole:
            x = torch.randn(bucket, self.planes.width, generator=torch.Generator().manual_seed(0)).to(place)
            calls = {str(n): partial(seconds_of, partial(self._run, x, n), place) for n in (few, every)}
            seconds = in_turns(calls, 5)  # the turn before them compiles
            _whole[key] = bool(seconds[str(every)].min() <= seconds[str(few)].min())
        return every if _whole[key] else few

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


def replace(model: Any, *, bits: int = 8, bytes_each: int = 2) -> int:
    """Round the matrices of a decoder's layers and its head to nested codes, in place; the number of layers.

    Layers need an ``mlp`` with gate_proj, up_proj and down_proj, as in Llama, Qwen, Mistral and Gemma; matrices with a bias,
    and those whose inputs are no multiple of 32, stay as they are.

    Args:
        bits: 4 or 8.
        bytes_each: of a token's numbers, see :mod:`moescope.kernels.planes`.

    Raises:
        InputError: no layer has such an MLP, an activation is not known, or the bits do not fit.
    """
    if bits not in (4, 8):
        raise InputError(f"must be 4 or 8, got {bits}", "bits")
    mlps = [
        m for m in model.modules() if all(isinstance(getattr(m, f"{p}_proj", None), nn.Linear) for p in ("gate", "up", "down"))
    ]
    if not mlps:
        raise InputError(f"{type(model).__name__} has no MLP with gate_proj, up_proj and down_proj", "model")
    activation = activation_name(model.config)
    if activation not in ACTIVATIONS:
        raise InputError(f"has the activation {activation}; known are {', '.join(ACTIVATIONS)}", "model")
    for owner in list(model.modules()):
        for name, module in list(owner.named_children()):
            if any(module is mlp for mlp in mlps):
                gate, up, down = (getattr(module, f"{part}_proj").weight for part in ("gate", "up", "down"))
                setattr(owner, name, dense_mlp(gate, up, down, bits, activation, bytes_each))
            elif _is_plain(module) and not any(owner is mlp for mlp in mlps):
                packed = _kernels(module.weight.device).pack_rows(nested(module.weight, bits))
                setattr(owner, name, Linear(packed, bytes_each))
    return len(mlps)


def dense_mlp(gate: Tensor, up: Tensor, down: Tensor, bits: int, activation: str, bytes_each: int = 2) -> DenseMlp:
    """An MLP with gate and up (N, d) and down (d, N) rounded to nested codes of 4 or 8 bits, N and d multiples of 32."""
    packed = _kernels(gate.device).pack_gated(*(nested(weight, bits) for weight in (gate, up, down)))
    return DenseMlp(packed, activation, bytes_each)


def execute(model: nn.Module, *, switch: bool = False) -> int:
    """Let the sparse MLPs of a model that ``moescope sparsify`` wrote run on these loops; how many do.

    Each token has its own number of neurons whatever is computed beside it, unless ``switch`` allows all of them where that
    takes no longer. The codes are laid out once more, which takes as much memory again as they do (more, for codes of fewer
    than eight bits).

    Raises:
        InputError: they cannot (:func:`no_kernel` says why), or the model has no sparse MLP.
    """
    mlps = sparse_mlps(model)
    if not mlps:
        raise InputError("has no sparse MLP: give a model that `moescope sparsify` wrote", "model")
    activation = activation_name(model.config)
    for mlp in mlps:
        codes = mlp.gate_proj.codes
        if why := no_kernel(mlp.choose, mlp.gate_proj.bits, codes.shape[1], activation, codes.device):
            raise InputError(why, "model")
    for mlp in mlps:
        parts = (mlp.gate_proj.nested, mlp.up_proj.nested, mlp.down_proj.nested)
        mlp.execute = Loops(_kernels(parts[0].codes.device).pack(*parts, mlp.choose), activation, switch)
    return len(mlps)


def no_kernel(choose: int, bits: int, width: int, activation: str, device: torch.device) -> str | None:
    """Why no loop runs MLPs of which ``choose`` of ``bits`` bits choose the neurons; None where one does.

    Four bits choose, since the first bits lie two codes to a byte: fewer would be read with the others, and more are in two
    places. Codes of four to eight bits run, on a GPU of eight.
    """
    if (why := no_dense_kernel(width, activation, device)) is not None:
        return why
    running = planes.RUNNING if device.type == "cpu" else (8,)
    if choose != planes.CHOOSING or bits not in running:
        known = "8" if len(running) == 1 else f"{min(running)} to {max(running)}"
        return f"no kernel for {choose} of {bits} bits: on this device the loops choose by {planes.CHOOSING} bits of {known}"
    return None


def no_dense_kernel(width: int, activation: str, device: torch.device) -> str | None:
    """Why no loop runs MLPs of 4 or 8 bits in rows of ``width``; None where one does."""
    if activation not in ACTIVATIONS:
        return f"no kernel for the activation {activation}: known are {', '.join(ACTIVATIONS)}"
    if width % GROUP:
        return f"no kernel for rows of {width}: they must be a multiple of {GROUP}"
    if device.type not in ("cpu", "cuda"):
        return f"no kernel for the device {device.type}"
    if device.type == "cuda" and find_spec("triton") is None:
        return "no kernel on this GPU without Triton: pip install 'moescope[gpu]'"
    return None


def activation_name(config: Any) -> str:
    """Of the MLPs' gates, as a config has it."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return str(getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None))


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.bias is None and module.in_features % GROUP == 0
