"""Capture: padding never leaks, the body stops at the last site, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture import ActivationStore, Encoded, activations, batches, capture
from moescope.capture.encode import PaddingSide, pad
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.models.inputs import padding_id
from moescope.types import Site
from tests.architectures import SETTINGS, VOCAB, tiny_model

LENGTHS = (9, 1, 20, 4, 13)


def some_texts(seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    return Encoded.from_ids([rng.integers(1, VOCAB - 4, n) for n in LENGTHS])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_batched_equals_one_by_one_at_every_site(name: str, side: PaddingSide) -> None:
    model, encoded = tiny_model(name), some_texts()
    with capture(model, model.sites()) as session:
        batch = pad(encoded, np.arange(len(LENGTHS)), pad_id=padding_id(model), side=side)
        together = session.run(batch.ids, batch.mask)
        for row, ids in enumerate(encoded):
            alone = session.run(torch.from_numpy(ids.astype(np.int64))[None])
            for site in model.sites():
                one = alone[site][0]
                difference = (together[site][row][batch.mask[row]] - one).abs().max()
                assert difference <= 1e-5 * max(1.0, float(one.abs().max())), (site, row)


@pytest.mark.parametrize("name", ["gpt2", "bert", "bloom"])
def test_columns_as_positions_would_be_wrong(name: str) -> None:
    """The naive way, no position ids and no mask, differs on the left-padded rows that the test above gets right."""
    model, encoded = tiny_model(name), some_texts()
    batch = pad(encoded, np.arange(len(LENGTHS)), pad_id=padding_id(model), side="left")
    site = model.sites("resid")[-1]
    with capture(model, [site]) as session:
        right = session.run(batch.ids, batch.mask)[site]
        naive = session.run(batch.ids)[site]
    assert (right - naive)[1][batch.mask[1]].abs().max() > 1e-2


@pytest.mark.parametrize("budget", [1, 24, 10_000])
def test_results_keep_the_order_of_the_texts(budget: int) -> None:
    model, encoded = tiny_model("llama"), some_texts()
    seen: list[tuple[int, int]] = []
    result = activations(
        model, encoded, model.sites("resid"), batch_tokens=budget, progress=lambda done, total: seen.append((done, total))
    )
    assert result.shape == (5, 4, 32)
    for row, ids in enumerate(encoded):
        alone = activations(model, Encoded.from_ids([ids]), model.sites("resid"))
        assert np.abs(result[row] - alone[0]).max() <= 1e-5
    assert seen[-1] == (5, 5)
    assert len(seen) == len(batches(LENGTHS, budget))


# --- what runs -----------------------------------------------------------------------------------------------------------


def count_layers(model: LoadedModel) -> list[int]:
    """Fills with the number of each layer that begins to run."""
    ran: list[int] = []
    for number, layer in enumerate(model.structure.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "olmoe"])
@pytest.mark.parametrize("kind", ["resid", "attn_out", "mlp_in", "mlp_out"])
def test_the_body_stops_at_the_last_site(name: str, kind: str) -> None:
    model = tiny_model(name)
    ran = count_layers(model)
    ids = torch.ones(1, 4, dtype=torch.long)
    with capture(model, [Site(kind, 1), Site("resid", 0)]) as session:  # type: ignore[arg-type]
        session.run(ids)
        assert ran == [0, 1]
        session.run(ids)
        assert ran == [0, 1, 0, 1]
    ran.clear()
    with capture(model, [Site("resid", 0)], stop=False) as session:
        session.run(ids)
    assert ran == list(range(model.n_layers))


AFTER_THE_LAYERS = ("norm", "lm_head", "cls", "decoder", "predictions")


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
def test_neither_head_nor_final_norm_runs(name: str) -> None:
    model = tiny_model(name, head=True)
    inside = {id(m) for layer in model.structure.layers for m in layer.modules()}

    def forbidden(module: Any, *_: Any) -> None:
        raise AssertionError(f"{type(module).__name__} ran")

    after = [m for path, m in model.module.named_modules() if id(m) not in inside and path.split(".")[-1] in AFTER_THE_LAYERS]
    assert len(after) >= 1
    for module in after:
        module.register_forward_pre_hook(forbidden)
    activations(model, some_texts(), model.sites("resid"))


def hook_count(model: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def test_hooks_and_mode_are_put_back_even_after_an_error() -> None:
    model = tiny_model("gpt2")
    model.body.train()
    model.structure.layers[1].eval()
    before, modes = hook_count(model), [module.training for module in model.body.modules()]

    def fail(site: Site, tensor: torch.Tensor) -> None:
        raise RuntimeError("in a hook")

    def run() -> None:
        with capture(model, model.sites()) as session:
            assert not any(module.training for module in model.body.modules())
            assert hook_count(model) > before
            session.run(torch.ones(1, 3, dtype=torch.long), reduce=fail)

    with pytest.raises(RuntimeError, match="in a hook"):
        run()
    assert hook_count(model) == before
    assert [module.training for module in model.body.modules()] == modes
    with torch.no_grad():  # a pass outside the context runs to its end
        assert model.body(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.shape == (1, 3, 32)


def test_a_kept_tensor_is_a_copy() -> None:
    """A layer may add to the stream in place; what was read must stay as it was."""
    model, ids = tiny_model("llama"), torch.ones(1, 4, dtype=torch.long)
    with capture(model, [Site("resid", 0), Site("resid", 1)], stop=False) as session:
        handle = model.structure.layers[1].register_forward_pre_hook(lambda _, args: args[0].add_(100.0))
        kept = session.run(ids)[Site("resid", 0)]
        handle.remove()
        assert torch.equal(kept, session.run(ids)[Site("resid", 0)])


def test_no_gradient_is_recorded() -> None:
    model = tiny_model("llama")
    model.module.requires_grad_(True)
    with capture(model, [Site("resid", 3)]) as session:
        assert not session.run(torch.ones(1, 3, dtype=torch.long))[Site("resid", 3)].requires_grad


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([], "sites: none were given"),
        ([Site("resid", 0), Site("resid", 0)], "one is listed twice"),
        ([Site("resid", 9)], "'resid:9' does not exist: tiny-llama has embed:0"),
        ([Site("router", 0)], "'router:0' does not exist"),
    ],
)
def test_sites_that_cannot_be_read(sites: list[Site], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match=message), capture(model, sites):
        pass


# --- values that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", ["final", "mean"])
def test_a_value_that_is_not_finite_is_named(value: float, position: Any) -> None:
    model = tiny_model("llama")
    model.body.get_input_embeddings().weight[ord("z"), 3] = value  # type: ignore[operator]
    fine = Encoded.from_ids([[65, 66], [67], [68, 69, 70]])
    sites = [Site("embed", 0), Site("resid", 1)]
    assert np.isfinite(activations(model, fine, sites, position=position)).all()
    bad = Encoded.from_ids([[65, 66], [67], [68, 69, ord("z")]])
    with pytest.raises(InputError, match=r"^site embed:0, text 2: an activation is not finite; check the model's weights$"):
        activations(model, bad, sites, position=position)


def test_overflow_of_float16_is_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weight = model.body.get_input_embeddings().weight  # type: ignore[operator]
    weight.mul_(1e6)
    encoded = Encoded.from_ids([[65], [66, 67]])
    assert activations(model, encoded, [Site("embed", 0)]).dtype == np.float32
    with pytest.raises(InputError, match=r"site embed:0, text \d: an activation overflows float16; store it as float32"):
        ActivationStore.collect(tmp_path / "store", model, encoded, [Site("embed", 0)], dtype="float16")
    model.dtype = torch.float16  # as if the model itself ran in it
    weight.fill_(float("inf"))
    with pytest.raises(InputError, match="float16 overflows in this model; load it in bf16 or fp32"):
        activations(model, encoded, [Site("embed", 0)])
