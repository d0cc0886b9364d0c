"""Interventions do what they say, at the tokens they name, and leave no trace."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from moescope.errors import InputError
from moescope.intervene import editing, intervene, resumed
from moescope.intervene.neuron_sets import NeuronSets
from moescope.models import LoadedModel
from moescope.types import Neuron, Site
from tests.architectures import tiny_model

FAMILIES = ("llama", "gpt2", "opt", "bert", "mixtral")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_model(request.param, head=True)


@pytest.fixture
def llama() -> LoadedModel:
    return tiny_model("llama", head=True)


def neurons_of(model: LoadedModel, count: int = 6, seed: int = 0) -> list[Neuron]:
    """Neurons at every kind of site, more than one at some."""
    rng = np.random.default_rng(seed)
    sites = [site for site in model.sites() if site.kind != "router"]
    picked = {Neuron(sites[i], int(rng.integers(model.width(sites[i])))) for i in rng.choice(len(sites), count)}
    return sorted(picked | {Neuron(Site("resid", 1), 3), Neuron(Site("resid", 1), 5)})


def ids_of(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(5, 60, size=(rows, length)))


@torch.no_grad()
def logits(model: LoadedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    extra = {} if model.config.model_type == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return model.module(input_ids=ids, attention_mask=mask, **extra).logits


def seen(model: LoadedModel, site: Site, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The site's tensor after whatever interventions are open."""
    found: list[torch.Tensor] = []
    handle = model.tap_point(site).attach(lambda x: found.append(x.clone()))
    try:
        logits(model, ids, mask)
    finally:
        handle.remove()
    return found[0]


def hook_count(model: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def test_own_values_change_nothing_and_others_do(model: LoadedModel) -> None:
    neurons, ids = neurons_of(model), ids_of(3, 7)
    own = torch.stack([seen(model, n.site, ids)[..., n.index] for n in neurons], dim=-1)  # (B, T, M)
    clean = logits(model, ids)
    with intervene(model, neurons, "patch", values=own):
        assert (logits(model, ids) - clean).abs().max() <= 1e-6
    with intervene(model, neurons, "patch", values=own + 1):
        assert (logits(model, ids) - clean).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["all", "final"])
def test_padding_side_does_not_matter(model: LoadedModel, side: str, positions: str) -> None:
    neurons, lengths = neurons_of(model), (8, 5, 2)
    values = np.linspace(-1, 1, len(neurons))
    texts = [ids_of(1, length, seed=length) for length in lengths]
    padded, mask = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    for row, text in enumerate(texts):
        where = slice(8 - text.shape[1], 8) if side == "left" else slice(0, text.shape[1])
        padded[row, where], mask[row, where] = text[0], 1
    with intervene(model, neurons, "patch", values=values, positions=positions):  # type: ignore[arg-type]
        together = logits(model, padded, mask)
        alone = [logits(model, text)[0] for text in texts]
    for row in range(3):
        assert (together[row][mask[row].bool()] - alone[row]).abs().max() <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_exactly_the_named_tokens_change(llama: LoadedModel, side: str) -> None:
    neuron = Neuron(Site("resid", 1), 4)
    ids, mask = ids_of(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    last = [5, 5 if side == "left" else 3]
    clean = seen(llama, neuron.site, ids, mask)
    for positions in ("all", "final", "prompt"):
        with intervene(llama, [neuron], "patch", values=[9.0], positions=positions):  # type: ignore[arg-type]
            now = seen(llama, neuron.site, ids, mask)
        expected = clean.clone()
        if positions == "final":
            expected[[0, 1], last, 4] = 9.0
        else:
            expected[..., 4] = torch.where(mask.bool(), torch.tensor(9.0), clean[..., 4])
        assert torch.equal(now, expected)


def test_modes(llama: LoadedModel) -> None:
    ids, neurons = ids_of(2, 5), [Neuron(Site("mlp_act", 2), 7), Neuron(Site("mlp_act", 2), 1)]
    clean = seen(llama, neurons[0].site, ids)[..., [7, 1]]

    def under(mode: str, values: object = None) -> torch.Tensor:
        with intervene(llama, neurons, mode, values=values):  # type: ignore[arg-type]
            return seen(llama, neurons[0].site, ids)[..., [7, 1]]

    assert torch.equal(under("zero"), torch.zeros_like(clean))
    assert torch.equal(under("mean", [0.5, -2.0]), torch.tensor([0.5, -2.0]).expand_as(clean))
    assert torch.allclose(under("scale", 3.0), 3 * clean)
    assert torch.allclose(under("scale", [0.0, 2.0]), clean * torch.tensor([0.0, 2.0]))
    assert torch.equal(under("patch", [[1.0, 2.0], [3.0, 4.0]])[1, 2], torch.tensor([3.0, 4.0]))


def test_resample_never_gives_a_row_its_own_values(llama: LoadedModel) -> None:
    site, count = Site("resid", 2), 7
    values = np.arange(count, dtype=np.float32)[:, None]  # the value names its donor
    order: list[list[float]] = []
    for seed in (0, 0, 1):
        with intervene(llama, [Neuron(site, 0)], "resample", values=values, seed=seed):
            batches = [ids_of(3, 4), ids_of(2, 6), ids_of(2, 3)]
            rows = [seen(llama, site, ids)[..., 0] for ids in batches]
        assert all(bool((row == row[:, :1]).all()) for row in rows)  # one donor a text
        order.append([float(v) for row in rows for v in row[:, 0]])
    assert order[0] == order[1] != order[2]
    for donors_of in order:
        assert sorted(donors_of) == list(range(count))
        assert all(donor != row for row, donor in enumerate(donors_of))


def test_many_sets_at_once_equal_one_by_one(model: LoadedModel) -> None:
    ids = ids_of(3, 6)
    sets = [[], *(neurons_of(model, seed=seed) for seed in range(4))]
    rng = np.random.default_rng(5)
    sites = {n.site for members in sets for n in members}
    replacement = {site: torch.from_numpy(rng.normal(size=model.width(site))).float() for site in sites}
    edits = NeuronSets(model, sets, replacement).edits(np.arange(len(sets)), np.arange(3))
    with editing(model, edits, positions="final"):
        together = logits(model, ids.repeat_interleave(len(sets), 0)).view(3, len(sets), 6, -1)
    clean = logits(model, ids)
    for place, members in enumerate(sets):
        values = [float(replacement[n.site][n.index]) for n in members]
        with intervene(model, members, "patch", values=values, positions="final") if members else nullcontext():
            alone = logits(model, ids)
        assert (together[:, place] - alone).abs().max() <= 1e-5
        assert bool(members) == bool((alone - clean).abs().max() > 1e-4)


def test_hooks_are_gone_after_an_exception(model: LoadedModel) -> None:
    ids, before = ids_of(2, 4), hook_count(model)
    clean = logits(model, ids)
    with intervene(model, neurons_of(model), "zero"):
        during = hook_count(model)
    with pytest.raises(ZeroDivisionError), intervene(model, neurons_of(model), "zero"):
        raise ZeroDivisionError
    three_rows = intervene(model, neurons_of(model), "patch", values=np.zeros((3, len(neurons_of(model)))))
    with pytest.raises(InputError, match="one row of values per row"), three_rows:
        logits(model, ids)  # raised inside a hook
    with pytest.raises(InputError), intervene(model, [Neuron(Site("resid", 99), 0)], "zero"):
        pass
    assert during > before == hook_count(model)
    assert torch.equal(logits(model, ids), clean)


def test_nested_interventions_add_up_and_the_inner_wins(llama: LoadedModel) -> None:
    ids, (a, b) = ids_of(2, 5), (Neuron(Site("resid", 1), 2), Neuron(Site("mlp_out", 2), 3))
    with intervene(llama, [a, b], "patch", values=[2.0, -3.0]):
        joint = logits(llama, ids)
    with intervene(llama, [a], "mean", values=[2.0]):
        with intervene(llama, [b], "mean", values=[-3.0]):
            assert torch.equal(logits(llama, ids), joint)
        with intervene(llama, [a], "zero"):
            assert bool((seen(llama, a.site, ids)[..., 2] == 0).all())
        assert bool((seen(llama, a.site, ids)[..., 2] == 2).all())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral"])
def test_generate_with_cache_equals_generate_without(family: str) -> None:
    model = tiny_model(family, head=True)
    neurons = [Neuron(Site("resid", 2), i) for i in range(8)]
    ids, mask = ids_of(2, 5), torch.ones(2, 5, dtype=torch.long)
    ids[1, :2], mask[1, :2] = 0, 0  # left padding, as generate wants it

    def generate(use_cache: bool) -> torch.Tensor:
        return model.module.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
        )

    clean = generate(True)
    with intervene(model, neurons, "mean", values=np.linspace(-4, 4, 8)):
        cached, whole = generate(True), generate(False)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, clean)


def test_positions_in_generate(llama: LoadedModel) -> None:
    site, ids = Site("resid", 1), ids_of(2, 5)
    for positions, expected in (("all", [5, 1, 1]), ("prompt", [5, 0, 0]), ("final", [1, 0, 0])):
        changed: list[int] = []
        with intervene(llama, [Neuron(site, 0)], "mean", values=[7.0], positions=positions) as state:  # type: ignore[arg-type]
            handle = llama.tap_point(site).attach(lambda x, c=changed: c.append(int((x[0, :, 0] == 7.0).sum())))
            llama.module.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=3,
                min_new_tokens=3,
                do_sample=False,
                pad_token_id=0,
            )
            handle.remove()
        assert changed == expected
        assert state.forwards == 3


def test_a_resampled_donor_stays_through_generation(llama: LoadedModel) -> None:
    site, ids = Site("resid", 1), ids_of(2, 4)
    values: list[list[float]] = []
    with intervene(llama, [Neuron(site, 0)], "resample", values=np.arange(5.0)[:, None]):
        handle = llama.tap_point(site).attach(lambda x: values.append(x[:, -1, 0].tolist()))
        for _ in range(2):
            llama.module.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=3,
                min_new_tokens=3,
                do_sample=False,
                pad_token_id=0,
            )
        handle.remove()
    first, second = values[:3], values[3:]
    assert first == [first[0]] * 3
    assert second == [second[0]] * 3
    assert len({*first[0], *second[0]}) == 4  # rows two and three of the cycle come next


def test_resumed_forward_is_the_whole_forward(model: LoadedModel) -> None:
    ids, layer = ids_of(2, 6), 2
    known, clean = seen(model, Site("resid", layer), ids), logits(model, ids)
    with resumed(model, layer, known):
        assert (logits(model, ids) - clean).abs().max() <= 1e-6
        with intervene(model, [Neuron(Site("resid", 0), 0)], "mean", values=[50.0]):  # a layer that is not computed
            assert torch.equal(seen(model, Site("resid", layer), ids), known)
    with pytest.raises(ZeroDivisionError), resumed(model, layer, known + 1):
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), clean)


def test_gradients_flow_past_an_intervention(llama: LoadedModel) -> None:
    inputs = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with intervene(llama, [Neuron(Site("embed", 0), 3)], "zero"):
        llama.module(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad is not None
    assert bool((inputs.grad[..., 3] == 0).all())
    assert float(inputs.grad[..., 4].abs().min()) > 0


@pytest.mark.parametrize(
    ("neurons", "mode", "values", "message"),
    [
        ([Neuron(Site("resid", 9), 0)], "zero", None, "resid:9"),
        ([Neuron(Site("resid", 0), 10**6)], "zero", None, "coordinates 0 to"),
        ([Neuron(Site("resid", 0), -1)], "zero", None, "coordinates 0 to"),
        ([Neuron(Site("router", 0), 0)], "zero", None, "router"),
        ([Neuron(Site("resid", 0), 0)] * 2, "zero", None, "twice"),
        ([Neuron(Site("resid", 0), 0)], "erase", None, "choose from"),
        ([Neuron(Site("resid", 0), 0)], "zero", [1.0], "takes none"),
        ([Neuron(Site("resid", 0), 0)], "mean", None, "needs them"),
        ([Neuron(Site("resid", 0), 0)], "mean", [1.0, 2.0], "shape"),
        ([Neuron(Site("resid", 0), 0)], "mean", [float("nan")], "finite"),
        ([Neuron(Site("resid", 0), 0)], "resample", [[1.0]], "two examples"),
    ],
)
def test_mistakes_are_named(llama: LoadedModel, neurons: list[Neuron], mode: str, values: object, message: str) -> None:
    with pytest.raises(InputError, match=message), intervene(llama, neurons, mode, values=values):  # type: ignore[arg-type]
        pass


def test_a_batch_that_does_not_fit_the_sets_is_refused(llama: LoadedModel) -> None:
    neuron = Neuron(Site("resid", 0), 0)
    sets = NeuronSets(llama, [[neuron], []], {neuron.site: torch.zeros(llama.d_model)})
    with pytest.raises(InputError, match="no multiple"), editing(llama, sets.edits(np.arange(2), np.arange(3))):
        logits(llama, ids_of(3, 4))
    with pytest.raises(InputError, match="positions"), intervene(llama, [neuron], "zero", positions="last"):  # type: ignore[arg-type]
        pass
