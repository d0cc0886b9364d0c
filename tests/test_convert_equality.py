"""With every expert active a converted model is the dense one; and plain transformers loads it, moescope out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moescope.models import load
from moescope.studies.convert.target import layer_tensors, set_active
from tests.made_conversions import SOURCES, converted, source, windows

IDS = windows(3, 48, seed=1).ids

# Run with -I, so that neither the working directory nor PYTHONPATH helps; what is installed is blocked by name.
FRESH = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "moescope":
            raise ImportError("moescope is out of reach")
sys.meta_path.insert(0, Blocked())
try:
    import moescope
except ImportError:
    pass
else:
    raise SystemExit("moescope could be imported")
import torch, transformers
from safetensors.torch import save_file
ids = torch.tensor(json.loads(sys.argv[1]))
out = {}
for folder in sys.argv[3:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("transformers.models."), type(model)
    with torch.no_grad():
        out[folder + " as saved"] = model(ids).logits.contiguous()
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_experts_per_tok = config.num_local_experts
    if hasattr(config, "routed_scaling_factor"):
        config.routed_scaling_factor = float(config.num_local_experts)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
    with torch.no_grad():
        out[folder + " all active"] = model(ids).logits.contiguous()
assert "moescope" not in sys.modules
save_file(out, sys.argv[2])
"""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, Path]]:
    """Source type -> dense model, converted model, folder it was saved to."""
    out = {}
    for name in SOURCES:
        model = source(name)
        folder = tmp_path_factory.mktemp("converted") / name.replace(" ", "-")
        built, *_ = converted(model)
        built.save_pretrained(folder)
        out[name] = (model.module, built, folder)
    return out


@pytest.fixture(scope="module")
def fresh(made: dict[str, tuple[Any, Any, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The logits that a process without moescope gets from the saved folders."""
    from safetensors.torch import load_file

    result = tmp_path_factory.mktemp("fresh") / "logits.safetensors"
    folders = [str(folder) for _, _, folder in made.values()]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", FRESH, json.dumps(IDS.tolist()), str(result), *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_file(result)


@pytest.mark.parametrize("name", SOURCES)
def test_all_experts_active_is_the_dense_model(name: str, made: dict[str, tuple[Any, Any, Path]]) -> None:
    dense, built, _ = made[name]
    expected = dense(IDS).logits
    for implementation in ("eager", "grouped_mm", "moescope"):
        built.set_experts_implementation(implementation)
        set_active(built, 8)
        assert relative(built(IDS).logits, expected) <= 1e-4
        set_active(built, 3)
        assert relative(built(IDS).logits, expected) > 0.05  # or the bound above would hold for any model


@pytest.mark.parametrize("name", SOURCES)
def test_a_fresh_process_without_moescope_loads_it(
    name: str, made: dict[str, tuple[Any, Any, Path]], fresh: dict[str, torch.Tensor]
) -> None:
    dense, built, folder = made[name]
    built.set_experts_implementation("grouped_mm")
    set_active(built, 3)
    assert relative(fresh[f"{folder} all active"], dense(IDS).logits) <= 1e-4
    assert relative(fresh[f"{folder} as saved"], built(IDS).logits) <= 1e-5


def test_every_neuron_has_one_place_and_its_weights() -> None:
    model = source("llama")
    built, counts, target, found = converted(model)
    for number, (split, _) in enumerate(found.chosen):
        assert sorted([*split.shared, *split.routed.ravel()]) == list(range(64))
        assert split.routed.shape == (counts.experts - counts.shared, 8)
        gate, up, down = layer_tensors(target, model.module.model.layers[number].mlp)
        experts = built.model.layers[number].mlp.experts
        neuron = split.routed[4, 2]
        assert torch.equal(experts.gate_up_proj[4, 2], gate[neuron])
        assert torch.equal(experts.gate_up_proj[4, 8 + 2], up[neuron])
        assert torch.equal(experts.down_proj[4, :, 2], down[:, neuron])


def test_gates_are_one_and_the_fitted_router_decides() -> None:
    """Scores that differ by little give gates of one; their order is the fitted one."""
    model = source("llama")
    built, counts, _, found = converted(model)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    router = found.chosen[0][1]
    _, gates, chosen = built.model.layers[0].mlp.gate(x)
    assert (gates - 1).abs().max() < 1e-3
    fitted = (x @ router.weight.T + router.bias).topk(counts.active - counts.shared, 1).indices
    same = (chosen.sort(1).values == fitted.sort(1).values).float().mean()
    assert same > 0.99


def test_dense_tiny_is_itself_with_every_expert_active() -> None:
    model = load("dense-tiny", head=True)
    built, *_ = converted(model, experts=40, active=10, shared=2)
    set_active(built, 40)
    ids = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    assert relative(built(ids).logits, model.module(ids).logits) <= 1e-4
    set_active(built, 10)
    assert relative(built(ids).logits, model.module(ids).logits) > 0.05


def test_neurons_without_a_gate() -> None:
    """Arcee's relu² MLP has no gate: relu(x)·x says the same."""
    import transformers

    from moescope.models import from_model
    from tests.architectures import COMMON, GROUPED, from_config, tiny_tokenizer

    config = transformers.ArceeConfig(**(COMMON | GROUPED | {"num_hidden_layers": 2, "intermediate_size": 64}))
    model = from_model(from_config(config, head=True), tiny_tokenizer(), name="arcee")
    built, *_ = converted(model)
    set_active(built, 8)
    assert relative(built(IDS).logits, model.module(IDS).logits) <= 1e-4
