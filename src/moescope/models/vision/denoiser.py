"""A small diffusion transformer (DiT, Peebles and Xie 2023, arXiv 2212.09748) for grey images of a few pixels.

It is trained by flow matching (Lipman et al. 2023): between an image x and noise ε it sees x_t = (1 − t)·x + t·ε and is asked
for the velocity ε − x; an image is made by following the velocity from t = 1 to t = 0.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.files.parse import parse_object
from moescope.zoo import ZOO

SHAPE, WEIGHTS = "denoiser.json", "model.safetensors"


@dataclass(frozen=True)
class DenoiserShape:
    """Sizes of a :class:`Denoiser`."""

    image: int = 8
    """pixels along an edge"""
    patch: int = 2
    width: int = 64
    layers: int = 4
    heads: int = 4
    inner: int = 256
    """neurons of a block's MLP"""
    classes: int = 10


class Attention(nn.Module):
    """Self-attention over all patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        done: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return done


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by what is asked for (adaLN-Zero)."""

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        d = shape.width
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(d, shape.heads)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(d, shape.inner), nn.GELU(approximate="tanh"), nn.Linear(shape.inner, d))
        self.modulate = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(asked)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        moved: Tensor = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return moved


class Denoiser(nn.Module):
    """``forward(x, t, label)``: images (B, 1, H, W) in [−1, 1] with noise, times (B,) in [0, 1] and classes (B,) int64 give the
    velocity, of the images' shape."""

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.shape = shape
        side, d = shape.image // shape.patch, shape.width
        self.embed = nn.Conv2d(1, d, shape.patch, shape.patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, side * side, d))
        self.time = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.label = nn.Embedding(shape.classes, d)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.out = nn.Linear(d, shape.patch**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        half = self.shape.width // 2
        rates = torch.exp(-math.log(1000.0) * torch.arange(half, device=x.device) / half)
        waves = 1000.0 * t[:, None] * rates
        asked = nn.functional.silu(self.time(torch.cat([waves.cos(), waves.sin()], -1).to(x.dtype)) + self.label(label))
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            tokens = block(tokens, asked)
        found = self.out(self.norm(tokens))
        side, p = self.shape.image // self.shape.patch, self.shape.patch
        placed: Tensor = found.view(len(x), side, side, p, p).permute(0, 1, 3, 2, 4).reshape(x.shape)
        return placed

    @torch.no_grad()
    def sample(self, labels: Tensor, *, steps: int = 40, seed: int = 0) -> Tensor:
        """Images (B, 1, H, W) in [−1, 1] of the classes ``labels`` (B,), by Heun's method; a function of the seed alone."""
        edge = self.shape.image
        x = torch.randn(len(labels), 1, edge, edge, generator=torch.Generator().manual_seed(seed)).to(self.place)
        labels = labels.to(x.device)
        times = torch.linspace(1, 0, steps + 1).tolist()
        for now, then in pairwise(times):
            first = self(x, torch.full((len(x),), now, device=x.device), labels)
            ahead = x + (then - now) * first
            second = self(ahead, torch.full((len(x),), then, device=x.device), labels)
            x = x + (then - now) * (first + second) / 2
        return x.clamp(-1, 1)

    def save(self, folder: Path) -> None:
        """Write shape and weights (bf16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SHAPE).write_text(json.dumps(asdict(self.shape), indent=2) + "\n", encoding="utf-8")
        save_file({name: value.bfloat16().contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)


def load_denoiser(model: str | Path = "dit-digits") -> Denoiser:
    """A diffusion transformer that was written by :meth:`Denoiser.save`, in fp32 and evaluation mode: the embedded one by its
    name, or a folder.

    Raises:
        InputError: there is none, or its files are damaged.

    >>> import torch
    >>> load_denoiser("dit-digits").sample(torch.tensor([3, 8])).shape
    torch.Size([2, 1, 8, 8])
    """
    folder = ZOO / str(model) if (ZOO / str(model) / SHAPE).is_file() else Path(model)
    try:
        shape = DenoiserShape(**parse_object((folder / SHAPE).read_bytes()))
        denoiser = Denoiser(shape)
        denoiser.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no {SHAPE} with {WEIGHTS}: give dit-digits, or a folder with both", "model"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError, ZeroDivisionError, SafetensorError) as error:
        raise InputError(f"{folder}: {' '.join(str(error).split())[:200]}; write the denoiser again", "model") from error
    return denoiser.eval().requires_grad_(False)
