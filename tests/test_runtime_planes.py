"""Decoders whose matrices are in few bits, and whose MLPs compute some neurons of each token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from moescope.errors import InputError
from moescope.models.rounding import nested
from moescope.models.sparse import every_neuron, put_sparse, reference, sparse_mlps
from moescope.runtime import planes as runtime
from tests.architectures import build


def decoder(**changes: Any) -> Any:
    return build("llama", head=True, **{"hidden_size": 64, "intermediate_size": 96, **changes}).requires_grad_(False)


def rounded(model: Any, bits: int) -> Any:
    """The same weights, as plain matrices."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(nested(module.weight.data, bits).prefix(), requires_grad=False)
    return made


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_replaced_model_has_the_rounded_weights(bits: int) -> None:
    model = decoder()
    ids = torch.randint(0, 250, (2, 11), generator=torch.Generator().manual_seed(0))
    expected = rounded(model, bits)(ids).logits
    assert runtime.replace(model, bits=bits) == model.config.num_hidden_layers
    assert difference(model(ids).logits, expected) < 1e-3
    one = model.generate(ids[:1], max_new_tokens=3, do_sample=False)
    assert one.shape == (1, 14)


def test_tokens_together_have_all_neurons_where_that_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse(neurons=48)
    runtime.execute(model, switch=True)
    mlp = mlps(model)[0]
    clock, slow = [0.0], {48: 1.0, 96: 2.0}
    monkeypatch.setattr("moescope.study.clock.time.perf_counter", lambda: clock[0])
    run = runtime.Loops._run

    def timed(self: Any, x: torch.Tensor, count: int) -> torch.Tensor:
        clock[0] += slow[count] * (1 if count == 96 else len(x))  # of the few the time grows with the tokens
        return run(self, x, count)

    monkeypatch.setattr(runtime.Loops, "_run", timed)
    monkeypatch.setattr(runtime, "_whole", {})
    assert [mlp.execute.count(tokens, mlp.neurons) for tokens in (1, 2, 4, 17)] == [48, 96, 96, 96]
    slow[96] = 3.0
    monkeypatch.setattr(runtime, "_whole", {})
    assert [mlp.execute.count(tokens, mlp.neurons) for tokens in (1, 2, 3, 4)] == [48, 48, 96, 96]
    few, x = sparse(neurons=48), torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(2))
    with every_neuron(few):
        whole = mlps(few)[0](x)
    assert difference(mlp(x), whole) < 1e-3 < 0.05 < difference(mlps(few)[0](x), whole)


def test_what_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(InputError, match="bits: must be 4 or 8, got 6"):
        runtime.replace(decoder(), bits=6)
    with pytest.raises(InputError, match="has no MLP with gate_proj"):
        runtime.replace(build("gpt2", head=True))
    with pytest.raises(InputError, match="has the activation tanh"):
        runtime.replace(decoder(hidden_act="tanh"))


def sparse(bits: int = 8, neurons: int = 40, choose: int = 4, **changes: Any) -> Any:
    """A decoder as ``moescope sparsify`` writes it."""
    model = decoder(**changes)
    dense = [[part.weight.data for part in (m.gate_proj, m.up_proj, m.down_proj)] for m in mlps(model)]
    made = put_sparse(model, [neurons] * len(dense), bits, choose)
    for mlp, (gate, up, down) in zip(made, dense, strict=True):
        for part, weight in ((mlp.gate_proj, gate), (mlp.up_proj, up), (mlp.down_proj, down.T)):
            part.take(nested(weight, bits))
    return model


def mlps(model: Any) -> list[Any]:
    return [layer.mlp for layer in model.model.layers]


@pytest.mark.parametrize("bits", [8, 6, 5])
def test_a_written_model_gives_the_same_on_the_loops_at_any_batch(bits: int) -> None:
    model = sparse(bits)
    ids = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = model(ids).logits
    assert runtime.execute(model) == model.config.num_hidden_layers
    found = model(ids).logits
    assert difference(found, expected) < 1e-3
    one_by_one = torch.cat([model(row[None]).logits for row in ids])
    assert difference(one_by_one, found) < 3e-4  # a token's numbers are rounded to 16 bits, so that 1e-7 can be a step of them


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (sparse(bits=6, choose=3), "model: no kernel for 3 of 6 bits: on this device the loops choose by 4 bits of 4 to 8"),
        (sparse(choose=5), "model: no kernel for 5 of 8 bits"),
        (sparse(hidden_size=48), "model: no kernel for rows of 48: they must be a multiple of 32"),
        (sparse(hidden_act="tanh"), "model: no kernel for the activation tanh"),
        (decoder(), "model: has no sparse MLP"),
    ],
    ids=["3 of 6", "5 of 8", "width", "activation", "dense"],
)
def test_a_model_that_the_loops_do_not_run_is_refused(model: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        runtime.execute(model)
    assert all(mlp.execute is reference for mlp in sparse_mlps(model))


def test_on_a_gpu_other_codes_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: name)
    gpu = torch.device("cuda")
    assert runtime.no_kernel(4, 8, 64, "silu", gpu) is None
    assert (
        runtime.no_kernel(4, 6, 64, "silu", gpu) == "no kernel for 4 of 6 bits: on this device the loops choose by 4 bits of 8"
    )
