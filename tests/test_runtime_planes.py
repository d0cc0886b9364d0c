"""Decoders whose matrices are in few bits, and whose MLPs compute some neurons of each token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from moescope.errors import InputError
from moescope.models.rounding import nested
from moescope.models.sparse import put_sparse
from moescope.runtime import planes as runtime
from tests.architectures import build


def decoder(**changes: Any) -> Any:
    return build("llama", head=True, hidden_size=64, intermediate_size=96, **changes).requires_grad_(False)


def rounded(model: Any, bits: int, by_neuron: bool) -> Any:
    """The same weights, as plain matrices."""
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        if isinstance(module, torch.nn.Linear):
            turned = by_neuron and name.endswith("down_proj")
            weight = module.weight.data.T if turned else module.weight.data
            values = nested(weight, bits).prefix()
            module.weight = torch.nn.Parameter((values.T if turned else values).contiguous(), requires_grad=False)
    return made


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("bits", "share"), [(8, None), (4, None), (8, 1.0)])
def test_a_replaced_model_has_the_rounded_weights(bits: int, share: float | None) -> None:
    model = decoder()
    ids = torch.randint(0, 250, (2, 11), generator=torch.Generator().manual_seed(0))
    expected = rounded(model, bits, by_neuron=share is not None)(ids).logits
    assert runtime.replace(model, bits=bits, share=share) == model.config.num_hidden_layers
    assert difference(model(ids).logits, expected) < 1e-3
    one = model.generate(ids[:1], max_new_tokens=3, do_sample=False)
    assert one.shape == (1, 14)


def test_a_token_has_its_share_of_neurons() -> None:
    draw = torch.Generator().manual_seed(0)
    model = decoder()
    mlp = model.model.layers[0].mlp
    x = torch.randn(1, 1, 64, generator=draw)
    hidden = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
    best = (hidden[0, 0].abs() * mlp.down_proj.weight.norm(dim=0)).topk(24).indices
    kept = torch.zeros(96).index_fill(0, best, 1.0)
    expected, whole = mlp.down_proj(hidden * kept), mlp.down_proj(hidden)
    runtime.replace(model, share=0.25)
    found = model.model.layers[0].mlp(x)
    assert difference(found, expected) < 0.1 < 0.15 < difference(whole, expected)


def test_tokens_together_have_all_neurons_where_that_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    runtime.replace(model, share=0.5)
    mlp = model.model.layers[0].mlp
    clock, slow = [0.0], {48: 1.0, 96: 2.0}
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])
    run = runtime.SparseMlp._run

    def timed(self: Any, x: torch.Tensor, count: int) -> torch.Tensor:
        clock[0] += slow[count] * (1 if count == 96 else len(x))  # of the few the time grows with the tokens
        return run(self, x, count)

    monkeypatch.setattr(runtime.SparseMlp, "_run", timed)
    monkeypatch.setattr(runtime, "_whole", {})
    assert [mlp.count(tokens) for tokens in (1, 2, 4, 17)] == [48, 96, 96, 96]
    slow[96] = 3.0
    monkeypatch.setattr(runtime, "_whole", {})
    assert [mlp.count(tokens) for tokens in (1, 2, 3, 4)] == [48, 48, 96, 96]


def test_what_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(InputError, match="bits: must be 8, or 4 without a share, got 4"):
        runtime.replace(decoder(), bits=4, share=0.5)
    with pytest.raises(InputError, match="has no MLP with gate_proj"):
        runtime.replace(build("gpt2", head=True))
    with pytest.raises(InputError, match="share: must be from 0 to 1"):
        runtime.replace(decoder(), share=1.5)
    with pytest.raises(InputError, match="has the activation tanh"):
        runtime.replace(decoder(hidden_act="tanh"))


def sparse(bits: int = 8, neurons: int = 40) -> Any:
    """A decoder as ``moescope sparsify`` writes it."""
    model = decoder()
    dense = [[part.weight.data for part in (m.gate_proj, m.up_proj, m.down_proj)] for m in mlps(model)]
    made = put_sparse(model, [neurons] * len(dense), bits, 4)
    for mlp, (gate, up, down) in zip(made, dense, strict=True):
        for part, weight in ((mlp.gate_proj, gate), (mlp.up_proj, up), (mlp.down_proj, down.T)):
            part.take(nested(weight, bits))
    return model


def mlps(model: Any) -> list[Any]:
    return [layer.mlp for layer in model.model.layers]


def test_a_written_model_gives_the_same_on_the_loops_at_any_batch() -> None:
    model = sparse()
    ids = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = model(ids).logits
    assert runtime.execute(model) == model.config.num_hidden_layers
    found = model(ids).logits
    assert difference(found, expected) < 1e-3
    one_by_one = torch.cat([model(row[None]).logits for row in ids])
    assert difference(one_by_one, found) < 3e-4  # a token's numbers are rounded to 16 bits, so that 1e-7 can be a step of them


@pytest.mark.parametrize("model", [sparse(bits=6), decoder()], ids=["6 bits", "dense"])
def test_a_model_that_the_loops_do_not_run_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="kernels run"):
        runtime.execute(model)
