"""Down projections refitted: what can be mended is, the rest is left, and each layer reads what those below really give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import moescope.studies.convert.refit as refit_module
from moescope.intervene.held_out import Windows
from moescope.intervene.quality import neurons_off
from moescope.models import LoadedModel
from moescope.studies.convert.build import build_model
from moescope.studies.convert.layers import Converted
from moescope.studies.convert.refit import REFIT, Refitted, refit_all, refit_windows
from moescope.studies.convert.settings import ConvertSettings
from moescope.studies.convert.student import Fixed, TopK, route, students_of, twin_of
from moescope.studies.convert.target import target_of
from moescope.study.protocol import Context
from moescope.study.run import Run
from tests.made_conversions import SOURCES, converted, source, windows

IDS = windows(4, 64, seed=9).ids  # judged on, and never fitted


def texts(n: int = 30) -> tuple[Windows, Windows]:
    return windows(n, 64, seed=1), windows(8, 64, seed=2)


def refitted(model: LoadedModel, masks: Sequence[torch.Tensor], out: Path | None = None) -> Refitted:
    target = target_of(model.module, model.config)
    context = Context("convert", ConvertSettings(), Run(out=out), of=ConvertSettings, spread=True)
    return refit_all(model, target, {"static refit": [Fixed(mask) for mask in masks]}, *texts(), context)


def doubled(name: str = "llama") -> tuple[LoadedModel, list[torch.Tensor]]:
    """Every neuron of the first half has a twin in the second that reads the same and writes something else; the first stay."""
    model = source(name)
    with torch.no_grad():
        for layer in model.module.model.layers:
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight[32:] = part.weight[:32]
    return model, [torch.arange(64) < 32] * model.n_layers


def distance(model: LoadedModel, found: Any, masks: Sequence[torch.Tensor]) -> float:
    """Of the logits with only these neurons, over the norm of the original's."""
    expected = model.module(IDS).logits
    with neurons_off(list(found.model.layers), masks):
        return float((found(IDS).logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_what_others_can_say_is_not_lost(name: str) -> None:
    """All that is switched off is a linear function of what is left: nothing is lost, on text that was not fitted."""
    model, masks = doubled(name)
    made = refitted(model, masks).models["static refit"]
    assert distance(model, model.module, masks) > 0.1
    assert distance(model, made, masks) < 2e-3


def test_what_no_other_says_stays_lost() -> None:
    """Neurons that read directions of their own, on inputs that say nothing about each other: there is little to mend."""
    model = source("llama")
    masks = [torch.arange(64) < 4] * model.n_layers
    rows = refitted(model, masks).table
    assert (rows["after"] <= rows["before"]).all()
    assert rows["after"].iloc[0] > 0.3


def test_a_layer_reads_what_the_converted_layers_below_give() -> None:
    """Nothing is switched off in the second layer; what is missing there is the first one's loss, and it is mended in part."""
    model = source("llama")
    everything = torch.ones(64, dtype=torch.bool)
    rows = refitted(model, [torch.arange(64) < 16, *[everything] * (model.n_layers - 1)]).table
    second = rows[rows["layer"] == 1].iloc[0]
    assert second["before"] > 1e-3
    assert second["after"] < 0.95 * second["before"]


def test_blocks_of_neurons_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an MLP is too wide for one system of equations: never worse than before, and no better than at once."""
    model, masks = doubled()
    whole = refitted(model, masks).models["static refit"]
    monkeypatch.setattr(refit_module, "_BLOCK", 16)
    parts = refitted(model, masks).models["static refit"]
    assert distance(model, whole, masks) < distance(model, parts, masks) < 0.7 * distance(model, model.module, masks)


def test_the_original_is_untouched_and_the_seed_decides_nothing_else() -> None:
    model, masks = doubled()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    first, second = (refitted(model, masks).models["static refit"].state_dict() for _ in range(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {name for name in before if not torch.equal(before[name], first[name])} == {
        f"model.layers.{n}.mlp.down_proj.weight" for n in range(model.n_layers)
    }


def test_an_interrupted_run_goes_on_from_the_layer_it_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = doubled()
    whole = refitted(model, masks).models["static refit"].state_dict()
    solve, solved = refit_module._solve, []

    def dies(*arguments: Any) -> Any:
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(*arguments)

    monkeypatch.setattr(refit_module, "_solve", dies)
    with pytest.raises(KeyboardInterrupt):
        refitted(model, masks, tmp_path / "out")
    assert len(solved) == 2
    solved.clear()
    again = []
    monkeypatch.setattr(refit_module, "_solve", lambda *arguments: (again.append(1), solve(*arguments))[1])
    found = refitted(model, masks, tmp_path / "out").models["static refit"].state_dict()
    assert len(again) == model.n_layers - 2
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


def test_fitting_and_choosing_are_apart() -> None:
    text = windows(20, 16)
    fit, select = refit_windows(text, 0)
    assert (len(fit), len(select)) == (16, 4)
    assert not {tuple(row.tolist()) for row in fit.ids} & {tuple(row.tolist()) for row in select.ids}


@pytest.mark.parametrize("name", SOURCES)
def test_what_was_refitted_is_what_is_written(name: str) -> None:
    """The dense form with its switched neurons, and the mixture of experts cut from it, give the same logits."""
    model = source(name)
    _, counts, target, found = converted(model)
    students = {kind: choices() for kind, choices in students_of(Converted(chosen=found.chosen), counts, REFIT).items()}
    context = Context("convert", ConvertSettings(), Run(), of=ConvertSettings, spread=True)
    dense = refit_all(model, target, students, *texts(20), context).models[REFIT]
    built, unfitted = (build_model(model, target, counts, found.chosen, module=module) for module in (dense, None))
    twin = twin_of(dense)
    route(twin, target, [TopK(split, router, counts.active - counts.shared) for split, router in found.chosen])
    with torch.no_grad():
        expected = twin(IDS).logits
        apart = [(made(IDS).logits - expected).norm(dim=-1) / expected.norm(dim=-1) for made in (built, unfitted)]
    # of most tokens; one whose scores are all but equal may go to either expert
    assert float(apart[0].median()) < 1e-3 < 0.05 < float(apart[1].median())
