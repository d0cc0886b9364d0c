"""Saliency by its definition, prune masks as files, and what pruning costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.models.layered import open_layered
from moescope.routing.counts import routing_counts
from moescope.runtime.mask import PruneMask, prune_mask
from moescope.studies.prune.cut import banks_of
from moescope.studies.prune.saliency import Saliency, expert_saliency
from moescope.studies.prune.settings import PruneSettings
from moescope.studies.prune.study import prune
from moescope.tasks.passages import Passage
from tests.architectures import EXPERT_LAYERS, tiny_model


def texts(lengths: tuple[int, ...] = (12, 5, 9), seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    return Encoded.from_ids([rng.integers(5, 200, size=n) for n in lengths])


def saliency(model: LoadedModel, encoded: Encoded, **options: Any) -> Saliency:
    layered = open_layered(model)
    return expert_saliency(layered, banks_of(layered), encoded, **options)


@pytest.mark.parametrize("name", sorted(EXPERT_LAYERS))
def test_saliency_is_the_mean_of_weight_times_output_norm_over_the_experts_own_tokens(name: str) -> None:
    """Each chosen expert's output is taken from the experts module itself, called with that expert alone."""
    model, encoded = tiny_model(name, head=True), texts()
    found = saliency(model, encoded)
    layer = EXPERT_LAYERS[name][-1]
    experts = model.body.layers[layer].mlp.experts
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        for row in range(len(encoded)):
            model.body(torch.from_numpy(encoded[row].astype(np.int64))[None])
    handle.remove()
    total, count, norm, most = (np.zeros(len(found.chosen[layer])) for _ in range(4))
    written = np.zeros((len(total), model.d_model))
    for hidden, ids, weights in seen:
        for slot in range(ids.shape[1]):
            with torch.no_grad():
                out = experts(hidden, ids[:, [slot]], torch.ones_like(weights[:, [slot]]))
            for token, expert in enumerate(ids[:, slot].tolist()):
                total[expert] += float(weights[token, slot] * out[token].norm())
                norm[expert] += float(out[token].norm())
                most[expert] = max(most[expert], float(out[token].abs().max()))
                written[expert] += (weights[token, slot] * out[token]).numpy()
                count[expert] += 1
    assert found.chosen[layer].tolist() == count.tolist()
    assert np.allclose(found.by("reap")[layer], total / np.maximum(count, 1), rtol=1e-4)
    assert np.allclose(found.by("mass")[layer], total / encoded.lengths.sum(), rtol=1e-4)
    assert np.allclose(found.by("norm")[layer], norm / encoded.lengths.sum(), rtol=1e-4)
    assert np.allclose(found.by("frequency")[layer], count / encoded.lengths.sum())
    assert np.allclose(found.largest[layer], most, rtol=1e-4)
    assert np.allclose(found.written[layer], written, atol=1e-4)
    assert np.allclose(found.mean_output(layer) * found.weight[layer][:, None], written, atol=1e-4)


def test_texts_beside_each_other_do_not_count() -> None:
    model, encoded = tiny_model("olmoe", head=True), texts((9, 5, 9, 9))
    together, alone = saliency(model, encoded), saliency(model, encoded, batch_tokens=1)
    for layer in (0, 1, 2):
        assert together.chosen[layer].sum() == 2 * encoded.lengths.sum()
        assert np.allclose(together.output[layer], alone.output[layer], rtol=1e-4)
    assert np.array_equal(routing_counts(model, encoded), routing_counts(model, encoded, batch_tokens=1))


def test_a_rare_expert_that_writes_much_ranks_by_reap_and_not_by_frequency() -> None:
    model, encoded = tiny_model("olmoe", head=True), texts((60, 60))
    chosen = saliency(model, encoded).chosen[1]
    rare = int(np.argsort(np.where(chosen > 0, chosen, np.inf))[0])
    with torch.no_grad():
        model.body.layers[1].mlp.experts.down_proj[rare] *= 100
    after = saliency(model, encoded)
    assert after.super_experts() == {(1, rare)}
    assert int(after.by("reap")[1].argmax()) == rare
    assert int(after.by("frequency")[1].argmax()) != rare


def test_a_mask_leaves_out_the_least_salient_and_never_too_many() -> None:
    scores = {3: np.array([0.3, 0.1, 0.2, 0.1]), 5: np.array([1.0, 4.0, 3.0, 2.0])}
    assert prune_mask(scores, 0.25, top_k=2).pruned == {(3, 3), (5, 0)}  # a tie falls to the higher number
    assert prune_mask(scores, 0.5, top_k=2).pruned == {(3, 1), (3, 3), (5, 0), (5, 3)}
    assert prune_mask(scores, 0.5, top_k=2).ratio == 0.5
    assert prune_mask(scores, 0.5, top_k=2, spared={(3, 3)}).pruned == {(3, 1), (3, 2), (5, 0), (5, 3)}
    with pytest.raises(InputError, match="leaves no room for the 3 experts of layer 5"):
        prune_mask(scores, 0.5, top_k=2, spared={(5, e) for e in range(3)})
    with pytest.raises(InputError, match="leaves 1 of 4 experts, but each token needs 2"):
        prune_mask(scores, 0.75, top_k=2)
    for ratio in (-0.1, 1.0):
        with pytest.raises(InputError, match="give the share of experts"):
            prune_mask(scores, ratio, top_k=1)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_mask_survives_its_file(tmp_path: Path, suffix: str) -> None:
    mask = prune_mask({12: np.arange(8.0), 3: np.arange(5.0)}, 0.25, top_k=2, meta={"model": "m", "loss_after": 1.5})
    path = mask.save(tmp_path / f"mask.{suffix}")
    assert PruneMask.load(path) == mask
    assert PruneMask.load(path).pruned == {(12, 0), (12, 1), (3, 0)}
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a prune mask, or it is damaged"):
        PruneMask.load(path)


def test_a_file_that_is_no_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": "else", "meta": {}, "keep": {}, "prune": {}}))
    (tmp_path / "b.json").write_text(
        json.dumps({"format": "moescope-prune-mask-2", "meta": {}, "keep": {"0": [0, 1]}, "prune": {"0": [1]}})
    )
    for name in ("a.json", "b.json"):
        with pytest.raises(InputError, match=f"{name}: this is not a prune mask"):
            PruneMask.load(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        PruneMask.load(tmp_path / "c.json")
    with pytest.raises(InputError, match=r"written as .safetensors or .json"):
        prune_mask({0: np.arange(4.0)}, 0.25, top_k=1).save(tmp_path / "mask.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_leaving_out_experts_that_write_nothing_costs_least_by_reap() -> None:
    """Three of six experts of every layer write nothing; which is not to be seen from how often they are chosen."""
    model = tiny_model("olmoe", head=True)
    idle = {0: (0, 2, 4), 1: (1, 3, 5), 2: (0, 1, 2)}
    with torch.no_grad():
        for layer, experts in idle.items():
            model.body.layers[layer].mlp.experts.down_proj[list(experts)] *= 1e-6
    rng = np.random.default_rng(0)
    passages = [
        Passage("".join(rng.choice(list("abcdefgh "), 40)), category, str(i)) for category in ("a", "b") for i in range(6)
    ]
    settings = PruneSettings(ratio=0.5, ratios=(), n_random=39, text_tokens=400, guard=False)
    result = prune(model, passages, settings)
    mask = result.artifacts["mask"]
    assert isinstance(mask, PruneMask)
    assert mask.pruned == {(layer, e) for layer, experts in idle.items() for e in experts}
    # leaving out an idle expert hands its slot to another, so the cost is not nought; the saliency is what is sure
    table = result.table("pruning").set_index(["criterion", "ratio"])
    assert {name for name, _ in table.index} == {"reap", "frequency", "norm", "mass", "mean output", "random", "8-bit", "4-bit"}
    assert mask.meta["loss_after"] == pytest.approx(table.loc[("reap", 0.5), "loss"])
    assert mask.meta["loss_before"] == pytest.approx(result.meta["loss"])
    # what is idle writes its mean, which is nothing
    assert table.loc[("mean output", 0.5), "effect"] == pytest.approx(0, abs=1e-3)
    found = result.table("saliency").set_index(["layer", "expert"])
    assert all(found.loc[(layer, e), "reap"] < 1e-4 for layer, experts in idle.items() for e in experts)


def test_a_dense_model_has_no_saliency() -> None:
    with pytest.raises(InputError, match="dense"):
        saliency(tiny_model("llama", head=True), texts())
