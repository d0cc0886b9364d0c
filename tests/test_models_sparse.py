"""The sparse MLP: what it computes, how it is written and read, and what of a file is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.models.gated import gated_mlps
from moescope.models.rounding import nested
from moescope.models.sparse import SparseMLP, every_neuron, largest, sparse_mlps
from moescope.studies.sparsify.build import checked_equality, read_sparse, write_sparse
from moescope.studies.sparsify.methods import coded
from moescope.studies.sparsify.settings import Format
from tests.architectures import tiny_model
from tests.made_conversions import source, windows

FORM = Format(0.5, 3, 6)


@pytest.fixture(scope="module")
def dense() -> LoadedModel:
    return source("llama, tied, scaled rotary")


@pytest.fixture(scope="module")
def folder(dense: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sparse")
    layers = coded(gated_mlps(dense), FORM.bits)
    write_sparse(dense, layers, [32] * len(layers), FORM, made)
    return made


def made_mlp(neurons: int, *, bits: int = 6, choose: int = 3) -> tuple[SparseMLP, Tensor, Tensor, Tensor]:
    """A sparse MLP of width 32 and 64 neurons; gate, up and down by all bits of their codes, down by neuron."""
    generator = torch.Generator().manual_seed(0)
    mlp = SparseMLP(32, 64, neurons, bits, choose, torch.nn.SiLU())
    parts = []
    for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        part.take(nested(torch.randn(64, 32, generator=generator), bits))
        parts.append(part.nested.prefix())
    return mlp, *parts


def test_a_sparse_mlp_computes_the_neurons_that_its_first_bits_expect_to_write_most() -> None:
    mlp, gate, up, down = made_mlp(20)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    found = mlp(x[None])[0]
    for token, out in zip(x, found, strict=True):
        coarse_gate, coarse_up = mlp.gate_proj.nested.prefix(3), mlp.up_proj.nested.prefix(3)
        score = (torch.nn.functional.silu(coarse_gate @ token) * (coarse_up @ token)).abs() * down.norm(dim=1)
        chosen = score.argsort(descending=True)[:20]
        h = torch.nn.functional.silu(gate[chosen] @ token) * (up[chosen] @ token)
        assert torch.allclose(out, h @ down[chosen], atol=1e-4)
        # by all bits others would be chosen
        fine = (torch.nn.functional.silu(gate @ token) * (up @ token)).abs() * down.norm(dim=1)
        assert set(fine.argsort(descending=True)[:20].tolist()) != set(chosen.tolist())


def test_with_every_neuron_it_is_the_dense_mlp_of_its_codes() -> None:
    mlp, gate, up, down = made_mlp(64)
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(mlp(x), (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down, atol=1e-4)


def test_the_largest_are_counted_exactly() -> None:
    found = largest(torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert found.sum(1).tolist() == [2, 2]
    assert found[0].tolist() == [0, 1, 1, 0]


def test_what_is_written_is_read_as_a_model_by_every_way_in(dense: LoadedModel, folder: Path) -> None:
    ids = torch.randint(0, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    loaded = load(folder, head=True)
    assert loaded.quantisation == "moescope-planes"
    assert {site.kind for site in loaded.sites()} == {site.kind for site in dense.sites()}
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(plain(ids).logits, loaded.module(ids).logits)
    assert [mlp.neurons for mlp in sparse_mlps(plain)] == [32] * dense.n_layers
    assert [(mlp.gate_proj.bits, mlp.choose) for mlp in sparse_mlps(plain)] == [(6, 3)] * dense.n_layers
    body = load(folder)
    assert len(sparse_mlps(body.module)) == dense.n_layers


def test_written_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    first = transformers.AutoModelForCausalLM.from_pretrained(folder)
    first.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert first.config.to_dict()["quantization_config"] == again.config.to_dict()["quantization_config"]
    for (name, a), (other, b) in zip(first.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_everything_but_the_mlps_is_as_it_was(dense: LoadedModel, folder: Path) -> None:
    made = load(folder, head=True).module.state_dict()
    kept = {name: t for name, t in dense.module.state_dict().items() if ".mlp." not in name}
    assert kept
    for name, tensor in kept.items():
        assert torch.equal(made[name], tensor)


def test_every_neuron_at_work_is_the_dense_model_of_the_codes_or_it_is_refused(dense: LoadedModel, folder: Path) -> None:
    layers = coded(gated_mlps(dense), FORM.bits)
    written = read_sparse(folder, dense)
    before = [mlp.neurons for mlp in sparse_mlps(written)]
    assert checked_equality(dense, layers, written, windows(4)) < 1e-5
    assert [mlp.neurons for mlp in sparse_mlps(written)] == before
    with torch.no_grad():
        written.model.layers[0].mlp.up_proj.codes[0] = 0
    with pytest.raises(InputError, match=r"is not .*nothing was written"):
        checked_equality(dense, layers, written, windows(4))


@pytest.mark.parametrize("kind", ["gemma3", "phi3", "qwen3"])
def test_other_gated_decoders_are_written_and_read(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, head=True)
    mlps = gated_mlps(model)
    layers = coded(mlps, 8)
    write_sparse(model, layers, [mlp.neurons // 2 for mlp in mlps], Format(0.5, 4, 8), tmp_path)
    written = read_sparse(tmp_path, model)
    assert checked_equality(model, layers, written, windows(4)) < 3e-5
    with every_neuron(written):
        ids = windows(1).ids
        close = (written(ids).logits - model.module(ids).logits).norm() / model.module(ids).logits.norm()
    assert close < 0.05


@pytest.mark.parametrize(
    ("kind", "why"),
    [("gpt2", "not gated"), ("olmoe", "has experts"), ("gpt_neox", "not gated")],
)
def test_other_mlps_are_refused_by_name(kind: str, why: str) -> None:
    with pytest.raises(InputError, match=f"model type .*layer 0.*{why}"):
        gated_mlps(tiny_model(kind, head=True))


def test_codes_are_not_coded_again(folder: Path) -> None:
    with pytest.raises(InputError, match=r"are codes \(moescope-planes\)"):
        gated_mlps(load(folder, head=True))


def _changed(folder: Path, to: Path, **fields: Any) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text())
    config["quantization_config"] |= fields
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"bits": 9}, "bits must be a whole number from 2 to 8"),
        ({"bits": "6"}, "bits must be a whole number"),
        ({"choose": 7}, "choose must be a whole number from 2 to 6"),
        ({"neurons": [32] * 3}, "gated MLPs, and numbers of neurons for 3"),
        ({"neurons": 32}, "neurons must be a list"),
        ({"neurons": [0] * 4}, "neurons must be a list of whole numbers above 0"),
        ({"neurons": [65] * 4}, "65 is not between 1 and its 64 neurons"),
        ({"bits": 3}, "its codes are not of 3 bits"),
        ({"quant_method": "moescope-plains"}, "lack 12 tensors"),
    ],
)
def test_a_config_that_is_not_of_these_weights_is_one_line(folder: Path, tmp_path: Path, fields: Any, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        load(_changed(folder, tmp_path, **fields), head=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tensor", "value", "why"),
    [
        ("gate_proj.codes", torch.full((64, 32), 64, dtype=torch.uint8), "layer 1, gate_proj: its codes are not of 6 bits"),
        (
            "up_proj.scale",
            torch.full((64, 1), float("nan"), dtype=torch.float16),
            "layer 1, up_proj: its scales are no numbers",
        ),
        ("down_proj.scale", torch.full((64, 1), -1.0, dtype=torch.float16), "layer 1, down_proj: its scales are no numbers"),
        ("gate_proj.codes", torch.zeros((32, 32), dtype=torch.uint8), "other shapes"),
        ("gate_proj.codes", None, "lack 1 tensors|are not of 6 bits"),
    ],
)
def test_damaged_weights_are_one_line(folder: Path, tmp_path: Path, tensor: str, value: Tensor | None, why: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.1.mlp.{tensor}"
    assert name in weights
    weights = {key: t for key, t in weights.items() if key != name} | ({} if value is None else {name: value})
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=why) as refused:
        load(tmp_path, head=True)
    assert "\n" not in str(refused.value)
