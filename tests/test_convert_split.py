"""Splits, routers and the measure of quality, on MLPs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.intervene.quality import Contender, compare, neurons_off
from moescope.studies.convert.calibration import activations, expert_masses
from moescope.studies.convert.layers import kept_neurons
from moescope.studies.convert.router import LinearRouter, captured_share, fit_router
from moescope.studies.convert.split import Coactivation, split_neurons
from tests.made_conversions import source, windows

GROUPS, WIDTH, D, TOKENS = 10, 4, 24, 3000


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """An MLP of 10 groups of 4 neurons; each token wakes the neurons of one group (x, gate, up, down, group of a neuron)."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(D, D, generator=draw)).Q[:GROUPS]
    group = torch.randperm(GROUPS * WIDTH, generator=draw) % GROUPS
    gate = 4 * directions[group] + 0.05 * torch.randn(GROUPS * WIDTH, D, generator=draw)
    up = directions[group] + 0.05 * torch.randn(GROUPS * WIDTH, D, generator=draw)
    down = torch.randn(D, GROUPS * WIDTH, generator=draw)
    which = torch.randint(GROUPS, (TOKENS,), generator=draw)
    x = directions[which] + 0.02 * torch.randn(TOKENS, D, generator=draw)
    return x, gate, up, down, group.numpy()


def seen(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> Coactivation:
    found = Coactivation(down, 1 / GROUPS)
    for h in activations(x, gate, up, F.silu, tokens=512):
        found.add(h)
    return found


def test_neurons_that_work_together_become_one_expert() -> None:
    x, gate, up, down, group = planted()
    split = split_neurons(seen(x, gate, up, down), experts=GROUPS, shared=0, method="coactivation")
    assert all(len(set(group[members])) == 1 for members in split.routed)
    mixed = split_neurons(seen(x, gate, up, down), experts=GROUPS, shared=0, method="random")
    assert any(len(set(group[members])) > 1 for members in mixed.routed)


def test_the_neurons_that_contribute_most_are_shared() -> None:
    x, gate, up, down, _ = planted()
    down[:, [3, 9, 17, 21]] *= 4
    found = seen(x, gate, up, down)
    split = split_neurons(found, experts=GROUPS, shared=1, method="coactivation")
    assert list(split.shared) == [3, 9, 17, 21]
    assert sorted(split.routed.ravel()) == sorted(set(range(40)) - {3, 9, 17, 21})


def test_circuits_stay_together_against_coactivation() -> None:
    """One neuron from each of four groups: nothing but the circuit would seat them together."""
    x, gate, up, down, group = planted()
    found = seen(x, gate, up, down)
    circuit = [int(np.flatnonzero(group == g)[0]) for g in range(4)]
    split = split_neurons(found, experts=GROUPS, shared=0, method="circuits", circuits=[circuit])
    assert any(set(circuit) == set(members) for members in split.routed)
    apart = split_neurons(found, experts=GROUPS, shared=0, method="coactivation")
    assert not any(len(set(circuit) & set(members)) > 1 for members in apart.routed)
    with pytest.raises(InputError, match="need more than the 10 routed experts"):
        split_neurons(found, experts=GROUPS, shared=0, method="circuits", circuits=[[n] for n in range(11)])


def test_masses_are_the_norms_of_the_experts_outputs() -> None:
    draw = torch.Generator().manual_seed(0)
    h, down = torch.randn(7, 12, generator=draw), torch.randn(5, 12, generator=draw)
    members = torch.randperm(12, generator=draw).view(4, 3)
    expected = torch.stack([(h[:, m] @ down[:, m].T).norm(dim=1) for m in members], 1)
    assert torch.allclose(expert_masses(h, down, members), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ridge", "centroid", "distilled"])
def test_routers_find_the_expert_that_matters(kind: str) -> None:
    x, gate, up, down, _ = planted()
    split = split_neurons(seen(x, gate, up, down), experts=GROUPS, shared=0, method="coactivation")
    members = torch.from_numpy(split.routed)
    mass = torch.cat([expert_masses(h, down, members) for h in activations(x, gate, up, F.silu)])
    router = fit_router(x, mass, 1, kind, gate=gate, members=members)  # type: ignore[arg-type]
    assert router.captured > 0.97 * router.oracle
    assert router.chance == 1 / GROUPS
    shuffled = captured_share(x @ router.weight.roll(1, 0).T + router.bias, mass, 1)
    assert shuffled < 0.3


def test_distillation_is_never_worse_than_where_it_began() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 16, generator=draw)
    mass = (x @ torch.randn(16, 10, generator=draw)).abs()  # even in x: no linear score can follow it
    fits = {
        kind: fit_router(x, mass, 3, kind, gate=mass.new_zeros(10, 16), members=torch.arange(10)[:, None])  # type: ignore[arg-type]
        for kind in ("ridge", "distilled")
    }
    assert fits["distilled"].captured >= fits["ridge"].captured


def test_the_scale_sets_the_spread() -> None:
    router = LinearRouter(torch.zeros(2, 2), torch.zeros(2), 1.0, 1.0, 0.5, spread=4.0)
    assert router.scale(1e-2) * router.spread == pytest.approx(1e-2)


def test_quality_of_the_original_itself_and_of_pruning() -> None:
    model = source("llama")
    text = windows(6, 32, seed=3)
    module = model.module
    everything = [torch.ones(64, dtype=torch.bool)] * 4
    nothing = [torch.zeros(64, dtype=torch.bool)] * 4
    contenders = [
        Contender("all", module, lambda: neurons_off(list(module.model.layers), everything)),
        Contender("none", module, lambda: neurons_off(list(module.model.layers), nothing)),
    ]
    original, kept, dropped = compare(module, contenders, text)
    loss = float(module(input_ids=text.ids, labels=text.ids).loss)
    assert original.loss == pytest.approx(loss, rel=1e-5)
    assert original.perplexity == pytest.approx(np.exp(loss), rel=1e-5)
    assert (kept.loss, kept.agreement) == (pytest.approx(loss), 1.0)
    assert kept.kl == pytest.approx(0, abs=1e-6)
    assert dropped.kl > 0.1
    assert dropped.low <= dropped.rise <= dropped.high
    logits = [module(text.ids).logits[:, :-1].log_softmax(-1)]
    with neurons_off(list(module.model.layers), nothing):
        logits.append(module(text.ids).logits[:, :-1].log_softmax(-1))
    expected = F.kl_div(logits[1], logits[0], log_target=True, reduction="sum") / text.ids[:, 1:].numel()
    assert dropped.kl == pytest.approx(float(expected), rel=1e-4)


def test_static_pruning_keeps_what_contributes_most() -> None:
    (mask,) = kept_neurons([torch.tensor([0.1, 3.0, 0.2, 2.0])], 0.5)
    assert mask.tolist() == [False, True, False, True]
