"""What :func:`moescope.record` keeps of a module, and what ``distill`` makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import moescope
from moescope.capture import encode
from moescope.capture.record import Recorded
from moescope.errors import InputError
from moescope.models.vision.denoiser import Denoiser, DenoiserShape, load_denoiser
from moescope.studies.distill.save import load_student
from moescope.study.result import StudyResult

QUICK = {"experts": 32, "active": (2,), "rank": 8, "steps": 60, "lr": (3e-3,), "batch": 128, "n_permutations": 199, "seeds": 3}


@pytest.fixture(scope="module")
def net() -> Denoiser:
    torch.manual_seed(0)
    made = Denoiser(DenoiserShape(width=32, layers=2, heads=2, inner=64)).eval()
    for block in made.blocks:
        nn.init.normal_(block.modulate.bias, 0, 0.3)  # type: ignore[union-attr, arg-type]
    nn.init.normal_(made.out.weight, 0, 0.3)
    return made


def recorded(net: Denoiser, **options: int) -> Recorded:
    with moescope.record(net, "blocks.1.mlp", **options) as store:
        for number in range(4):
            store.of(torch.arange(10) + 10 * number)
            net.sample(torch.arange(10), steps=3, seed=number)
    return store


@pytest.fixture(scope="module")
def result(net: Denoiser) -> StudyResult:
    return moescope.distill(recorded(net), settings=moescope.DistillSettings(**QUICK))  # type: ignore[arg-type]


def test_all_that_passes_is_kept_with_its_document(net: Denoiser) -> None:
    store = recorded(net)
    assert len(store) == store.seen == 4 * 10 * 16 * 6  # Heun's method calls twice a step
    assert store.x.shape == store.y.shape == (len(store), 32)
    assert torch.equal(store.documents.unique(), torch.arange(40))
    assert bool((store.documents.bincount() == 16 * 6).all())
    torch.testing.assert_close(store(store.x[:50]), store.y[:50])


def test_memory_is_bounded_and_the_sample_uniform(net: Denoiser) -> None:
    store = recorded(net, most=500)
    assert 200 < len(store) <= 500
    assert store.seen == 3840
    assert len(store.documents.unique()) > 35
    early = float((store.documents < 20).float().mean())
    assert 0.4 < early < 0.6  # neither the first nor the last win
    assert torch.equal(recorded(net, most=500).x, store.x)


def test_padding_and_unnamed_rows(net: Denoiser) -> None:
    layer = nn.Sequential(nn.Linear(3, 4))
    with moescope.record(layer, "0") as store:
        keep = torch.tensor([[True, False], [True, True]])
        store.of([7, 9], keep)
        layer(torch.randn(2, 2, 3))
    assert store.documents.tolist() == [7, 9, 9]
    names, means = store.means()
    assert names.tolist() == [7, 9]
    np.testing.assert_allclose(means[1], store.y[1:].mean(0).numpy(), atol=1e-6)
    with moescope.record(layer, "0") as store:
        layer(torch.randn(2, 2, 3))
        layer(torch.randn(2, 2, 3))
    assert store.documents.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    layer(torch.randn(2, 2, 3))
    assert len(store) == 8  # not after the block


def test_neurons_of_any_module_are_chosen_by_class() -> None:
    torch.manual_seed(0)
    layer, y = nn.Sequential(nn.Linear(6, 12), nn.ReLU()), np.repeat([0, 1], 40)
    with torch.no_grad():
        layer[0].weight[5] = torch.tensor([3.0, 0, 0, 0, 0, 0])
    x = torch.randn(80, 4, 6)
    x[40:, :, 0] += 1.5
    with moescope.record(layer, "1") as store:
        layer(x)
    _, means = store.means()
    assert moescope.DivergenceSelector(k=1).fit(means, y).get_support(indices=True).tolist() == [5]


def test_what_cannot_be_distilled_is_refused_by_name(net: Denoiser) -> None:
    with (
        pytest.raises(InputError, match=r"no 'blocks\.1\.mpl'; near are blocks\.1\.mlp"),
        moescope.record(net, "blocks.1.mpl"),
    ):
        pass
    with moescope.record(net, "blocks.1.attn") as store:
        net.sample(torch.arange(4), steps=1)
    with pytest.raises(InputError, match=r"blocks\.1\.attn of Denoiser is no function of one vector"):
        moescope.distill(store)
    with moescope.record(net, "blocks.1.mlp") as store:
        pass
    with pytest.raises(InputError, match="was not run while it was recorded"):
        moescope.distill(store)
    with pytest.raises(InputError, match=r"layer: a module is named"):
        moescope.distill(recorded(net), settings=moescope.DistillSettings(layer=1))
    with pytest.raises(InputError, match=r"control: twin needs a layer of a language model"):
        moescope.distill(recorded(net), settings=moescope.DistillSettings(control=("twin",)))
    with moescope.record(net, "blocks.1.mlp") as store:
        store.of([1, 2, 3])
        with pytest.raises(InputError, match="3 were given for a batch of 10 rows"):
            net.sample(torch.arange(10), steps=1)


def test_a_module_of_a_diffusion_transformer_is_distilled(result: StudyResult, tmp_path: Path) -> None:
    summary = result.tables["summary"].set_index(["data", "student"])["fvu"]
    assert set(result.tables["summary"]["data"]) == {"activations", "gaussian"}
    assert 0 < summary.min() < summary.max() < 1.2
    control = next(c for c in result.meta["controls"] if c["control"] == "gaussian")
    assert "inputs differ by" in control["evidence"]
    artifact = next(iter(result.artifacts.values()))
    artifact.write(tmp_path)
    assert load_student(tmp_path / "student.safetensors", fingerprint=result.meta["fingerprint"]).shape.d_in == 32


def test_no_image_is_in_two_splits(net: Denoiser) -> None:
    store = recorded(net)
    found = moescope.distill(store, settings=moescope.DistillSettings(**{**QUICK, "steps": 2, "control": ()}))  # type: ignore[arg-type]
    judged = set(found.tables["documents"]["document"])
    assert 0 < len(judged) < 12
    counts = found.meta["data"]
    assert counts["train"] + counts["validation"] + counts["test"] == len(store)
    assert counts["test"] == 96 * len(judged)  # whole images


def test_a_replaced_module_gives_what_it_is_told(net: Denoiser) -> None:
    store, x = recorded(net), torch.randn(2, 1, 8, 8)
    given = (x, torch.rand(2), torch.tensor([1, 2]))
    before = net(*given)
    with store.replaced(store.module):  # by itself
        torch.testing.assert_close(net(*given), before)
    with store.replaced(lambda v: torch.zeros_like(v)):
        assert not torch.allclose(net(*given), before, atol=1e-4)
    torch.testing.assert_close(net(*given), before)


def test_a_module_of_a_language_model_is_the_layer_that_it_holds() -> None:
    settings = moescope.DistillSettings(
        module="layers.2.mlp", tokens=3000, **{**QUICK, "steps": 2, "control": (), "equal_cost": False}
    )  # type: ignore[arg-type]
    texts = [f"The {word} stood by the river and waited for the {word} of the north." for word in "abcdefghijklmnopqrst"]
    found = moescope.distill("dense-tiny", texts, settings)
    model = moescope.load_model("dense-tiny")
    assert found.meta["teacher"] == {"d_in": 256, "d_out": 256, "activation": "silu", "glu": True, "width": 640}
    wanted = sum(len(ids) - 1 for ids in encode(model, texts, chat=False))
    assert found.meta["data"]["seen"] == wanted


def test_a_damaged_denoiser_is_named(tmp_path: Path) -> None:
    Denoiser(DenoiserShape(width=16, layers=1, heads=2, inner=16)).save(tmp_path)
    assert load_denoiser(tmp_path).shape.width == 16
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="write the denoiser again"):
        load_denoiser(tmp_path)
    with pytest.raises(InputError, match=r"holds no denoiser\.json"):
        load_denoiser(tmp_path / "none")
