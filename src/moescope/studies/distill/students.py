"""Students of an MLP layer behind one interface: dense, mixture of experts, transcoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from moescope.kernels import Routed, gathered_dot, gathered_sum, top_rows
from moescope.studies.distill.routers import build_router
from moescope.studies.distill.spec import StudentSpec
from moescope.study.settings import at_least


@dataclass(frozen=True)
class LayerShape:
    """What a student must know of its teacher: input and output width, the activation's name in transformers, and whether
    a second, linear factor multiplies it (GLU)."""

    d_in: Annotated[int, at_least(1)]
    d_out: Annotated[int, at_least(1)]
    activation: str = "relu"
    glu: bool = False


@dataclass(frozen=True, eq=False)
class Scaling:
    """Centre and one scale for inputs and for outputs. Students see inputs of mean 0 and mean variance 1, and their loss
    on outputs scaled so is the fraction of variance unexplained itself."""

    x_mean: Tensor
    """float32 (d_in,)"""
    x_scale: float
    y_mean: Tensor
    """float32 (d_out,)"""
    y_scale: float

    @classmethod
    def identity(cls, shape: LayerShape) -> Scaling:
        return cls(torch.zeros(shape.d_in), 1.0, torch.zeros(shape.d_out), 1.0)

    def inputs(self, x: Tensor) -> Tensor:
        return (x - self.x_mean.to(x.device)) / self.x_scale

    def outputs(self, y: Tensor) -> Tensor:
        return (y - self.y_mean.to(y.device)) / self.y_scale


class Output(NamedTuple):
    """What a student makes of scaled inputs."""

    y: Tensor
    """(B, d_out), scaled"""
    routed: Routed | None
    """the chosen experts; None for a dense student"""
    gates: Tensor | None
    """(B, k): the factor on each chosen expert; for a transcoder, its activation"""


class Student(nn.Module):
    """A student by its :class:`StudentSpec`; calling it maps raw inputs (..., d_in) to raw outputs (..., d_out).

    Weights are drawn from ``seed`` alone, on the CPU; raw inputs may lie on another device than the weights.
    ``rough_routing`` lets the router score in bfloat16.
    """

    def __init__(self, spec: StudentSpec, shape: LayerShape, scaling: Scaling | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.shape = spec, shape
        self.scaling = scaling or Scaling.identity(shape)
        self.rough_routing = False
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.shared = Neurons(spec.shared, shape, shape.activation, shape.glu) if spec.shared else None
            self.experts: Neurons | None = None
            self.router = None
            if spec.kind == "moe":
                name, glu = (shape.activation, shape.glu) if spec.activation == "model" else ("linear", False)
                self.experts = Neurons(spec.experts * spec.width, shape, name, glu, drawn=spec.active * spec.width)
                self.router = build_router(spec, shape.d_in)
            elif spec.kind != "dense":
                self.experts = Neurons(spec.experts, shape, "relu", False, drawn=spec.active)
            skip = torch.zeros(shape.d_out, shape.d_in) if spec.kind == "skip-transcoder" else None
            self.skip = None if skip is None else nn.Parameter(skip)
            self.bias = nn.Parameter(torch.zeros(shape.d_out))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(self.bias)
        y = self.run(self.scaling.inputs(flat)).y * self.scaling.y_scale + self.scaling.y_mean.to(flat.device)
        return y.to(x).reshape(*x.shape[:-1], -1)

    def run(self, x: Tensor) -> Output:
        """Scaled inputs (B, d_in) to scaled outputs, with what was chosen on the way.

        Raises:
            FloatingPointError: weights or inputs are not finite, so that no expert can be chosen.
        """
        y: Tensor = self.bias
        if self.shared is not None:
            y = y + self.shared.all(x)
        if self.skip is not None:
            y = y + F.linear(x, self.skip)
        if self.experts is None:
            return Output(y.expand(len(x), -1), None, None)
        if self.router is None:
            part, routed, gates = self._transcode(x)
        else:
            routed, scores = self.router.choose(x, self.spec.active, self.rough_routing)
            gates = torch.softmax(self.spec.beta * scores, dim=1)  # over the chosen only
            wide = gates if self.spec.width == 1 else gates.repeat_interleave(self.spec.width, dim=1)
            part = self.experts.chosen(x, self._neurons(routed), wide)
        return Output(y + part, routed, gates)

    def _transcode(self, x: Tensor) -> tuple[Tensor, Routed, Tensor]:
        assert self.experts is not None
        encoder, bias = self.experts.w_in, self.experts.bias
        routed = Routed(top_rows(x, encoder, self.spec.active, bias, half=self.rough_routing)[1], self.spec.experts)
        gates = torch.relu(gathered_dot(x, encoder, routed) + bias[routed.index])
        return gathered_sum(gates, self.experts.w_out, routed), routed, gates

    def _neurons(self, routed: Routed) -> Routed:
        """The neurons of the chosen experts, (B, k · width)."""
        h = self.spec.width
        if h == 1:
            return routed
        index = routed.index[:, :, None] * h + torch.arange(h, device=routed.index.device)  # (B, k, h)
        return Routed(index.flatten(1), routed.experts * h)


class Neurons(nn.Module):
    """A bank of neurons: ``Σ_i g_i · w_out[i] · act(w_in[i] · x + bias[i]) [· (w_lin[i] · x + bias_lin[i])]`` over all or some.

    ``drawn`` neurons are summed for a token; it sets the start's scale, so that outputs have variance of about 1.
    """

    def __init__(self, n: int, shape: LayerShape, activation: str, glu: bool, drawn: int | None = None) -> None:
        super().__init__()
        self.activation = nn.Identity() if activation == "linear" else ACT2FN[activation]
        self.w_in = nn.Parameter(torch.randn(n, shape.d_in) / shape.d_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n))
        self.w_lin = nn.Parameter(torch.randn(n, shape.d_in) / shape.d_in**0.5) if glu else None
        # inputs come centred, so even a teacher without biases needs one here
        self.bias_lin = nn.Parameter(torch.zeros(n)) if glu else None
        self.w_out = nn.Parameter(torch.randn(n, shape.d_out) / (n if drawn is None else drawn) ** 0.5)

    def all(self, x: Tensor) -> Tensor:
        """(B, d_out) from every neuron."""
        hidden = self.activation(F.linear(x, self.w_in, self.bias))
        if self.w_lin is not None:
            hidden = hidden * F.linear(x, self.w_lin, self.bias_lin)
        return F.linear(hidden, self.w_out.T)

    def chosen(self, x: Tensor, routed: Routed, gates: Tensor) -> Tensor:
        """(B, d_out) from the chosen neurons, each with its gate (B, chosen)."""
        x, index = x.to(self.w_in.dtype), routed.index
        hidden = self.activation(gathered_dot(x, self.w_in, routed) + _at(self.bias, index))
        if self.w_lin is not None and self.bias_lin is not None:
            hidden = hidden * (gathered_dot(x, self.w_lin, routed) + _at(self.bias_lin, index))
        return gathered_sum(gates.to(hidden.dtype) * hidden, self.w_out, routed)


def _at(bias: Tensor, index: Tensor) -> Tensor:
    """``bias[index]``, whose gradient sorts nothing."""
    return bias.index_select(0, index.reshape(-1)).reshape(index.shape)
