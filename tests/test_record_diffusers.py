"""A diffusion transformer of ``diffusers``, in the user's own loop; left out where that is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moescope
from moescope.capture.record import Recorded
from moescope.errors import InputError

QUICK: dict[str, Any] = {"experts": 16, "active": (2,), "rank": 4, "steps": 20, "lr": (3e-3,), "batch": 64, "seeds": 3}


def looped(name: str, *, seed: int = 0) -> Recorded:
    """Forty images of two classes, each through three steps of a sampler."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=4,
    ).eval()
    sampler = diffusers.DDIMScheduler(num_train_timesteps=100)
    sampler.set_timesteps(3)
    with moescope.record(model, name) as store, torch.no_grad():
        for batch in range(4):
            images = torch.arange(10) + 10 * batch
            store.of(images)
            x = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(batch))
            for step in sampler.timesteps:
                noise = model(x, timestep=step.expand(10), class_labels=images % 2).sample
                x = sampler.step(noise, step, x).prev_sample
    return store


def test_an_mlp_of_diffusers_is_distilled() -> None:
    store = looped("transformer_blocks.1.ff")
    assert len(store) == 40 * 3 * 16
    settings = moescope.DistillSettings(n_permutations=199, **QUICK)
    result = moescope.distill(store, settings=settings)
    assert result.meta["teacher"] == {
        "d_in": 32,
        "d_out": 32,
        "activation": "gelu_pytorch_tanh",
        "glu": False,
        "width": 128,
    }
    assert {"activations", "gaussian"} <= set(result.tables["summary"]["data"])
    with pytest.raises(InputError, match="no function of one vector"):
        moescope.distill(looped("transformer_blocks.1.attn1"), settings=settings)


def test_neurons_of_diffusers_are_chosen_by_class() -> None:
    store = looped("transformer_blocks.1.ff.net.0")
    settings = moescope.CircuitSettings(k=2, ks=(1, 2), n_permutations=199, n_label_permutations=99, n_folds=3)
    result = moescope.circuits(store, {"class": np.arange(40) % 2}, settings)
    told = next(c for c in result.claims if c.id == "H2")
    assert "an untrained twin (none was recorded: store.twin)" in told.words
    assert str(result.circuits["class"].neurons[0].site) == "module:transformer_blocks.1.ff.net.0:0"


class GEGLU(nn.Module):
    """As ``diffusers`` has it: gate and map up in one matrix, the activation no module."""

    def __init__(self, d: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.proj(x).chunk(2, -1)
        return up * nn.functional.gelu(gate)


def test_a_gate_in_one_matrix_with_its_map_up_is_seen() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(GEGLU(8, 24), nn.Dropout(0.0), nn.Linear(24, 8)))
    with moescope.record(net, "0") as store:
        net(torch.randn(40, 12, 8))
    result = moescope.distill(store, settings=moescope.DistillSettings(n_permutations=199, control=(), **QUICK))
    assert result.meta["teacher"] == {"d_in": 8, "d_out": 8, "activation": "gelu", "glu": True, "width": 24}
