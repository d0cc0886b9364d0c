"""Circuits of images switched off, and kept alone, where they are read: at the class token, a place, or every patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moescope
from moescope.capture import encode
from moescope.errors import InputError
from moescope.intervene.gradients import gradients
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.replicas import Reading, Replicas
from moescope.models import from_model
from moescope.studies.circuits.images import edited_places, off_task
from moescope.study.result import StudyResult
from moescope.tasks import load_task
from moescope.types import Claim, Neuron, Site
from tests.made_images import PLANTED, needed, noisy, striped, tiny

QUICK: dict[str, Any] = {
    "n_permutations": 199,
    "n_label_permutations": 0,
    "ks": (1, 2),
    "k": 2,
    "n_folds": 3,
    "examples": 0,
    "twin": False,
    "n_random": 20,
    "ablate_random": 119,
    "keep_random": 119,
    "ablate_rows": 60,
}


def claim(result: StudyResult, part: str) -> Claim:
    return next(c for c in result.claims if part in c.statement)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = striped(tmp_path_factory.mktemp("stripes") / "stripes", 60, noise=20.0)
    settings = moescope.CircuitSettings(site="mlp_act:0", position="mean", ablate="mean", keep_only="mean", **QUICK)
    return moescope.circuits(needed(), folder, settings)


def test_neurons_that_alone_carry_a_class_are_needed_and_enough(found: StudyResult) -> None:
    assert {n.index for n in found.circuits["stripes"].neurons} == {PLANTED, PLANTED + 1}
    harm = claim(found, "switching its 2 neurons off harms a probe downstream more")
    assert harm.outcome == "holds"
    assert harm.measured == pytest.approx(-0.5, abs=0.1)
    assert "by mean ablation at every patch" in harm.words
    assert claim(found, "harms this task more than shipped digits").outcome == "holds"
    alone = claim(found, "2 neurons alone keep 90% of the effect")
    assert alone.outcome == "holds"
    assert "everything else set by mean at every patch" in alone.words
    assert "final token" not in " ".join(c.words for c in found.claims)


def test_where_nothing_tells_the_classes_apart_nothing_is_harmed(tmp_path: Path) -> None:
    settings = moescope.CircuitSettings(site="mlp_act:0", ablate="resample", **QUICK)
    result = moescope.circuits(tiny("vit"), noisy(tmp_path / "set", 30), settings)
    harm = claim(result, "switching its 2 neurons off harms a probe downstream more")
    assert harm.outcome != "holds"
    assert "class token" in harm.words or harm.outcome == "not tested"
    assert claim(result, "harms this task more than shipped digits").outcome != "holds"


@pytest.mark.parametrize("position", ["cls", "mean", 5, -1])
def test_an_image_is_changed_and_read_at_its_places_alone(position: Any, tmp_path: Path) -> None:
    model, site = from_model(*tiny("vit")), Site("mlp_act", 0)
    ids = encode(model, [e.text for e in load_task(noisy(tmp_path / "set", 2)).examples])
    places = edited_places(model, moescope.CircuitSettings(position=position))
    wanted = {"cls": [0], "mean": list(range(1, 17)), 5: [5], -1: [16]}[position]
    assert np.flatnonzero(places).tolist() == wanted
    read = {"cls": (lambda x: x[:, 0]), "mean": (lambda x: x[:, 1:].mean(1))}.get(position, lambda x: x[:, wanted[0]])

    def plain(edited: bool) -> Tensor:
        """The same by hooks alone."""
        seen: list[Tensor] = []

        def change(x: Tensor) -> Tensor:
            new = x.clone()
            new[:, wanted, 3] = 9.0
            return new

        handles = [model.tap_point(Site("resid", 1)).attach(lambda x: seen.append(x.clone()))]
        handles += [model.tap_point(site).attach(change)] if edited else []
        try:
            with torch.no_grad():
                model.body(torch.from_numpy(np.stack([ids[i] for i in range(4)]).astype(np.int64)))
        finally:
            for handle in handles:
                handle.remove()
        return read(seen[0])

    def by_replicas(neurons: list[Neuron]) -> Tensor:
        held: dict[int, Tensor] = {}

        def readout(reading: Reading) -> dict[str, Tensor]:
            held.update({int(example): reading.hidden[row, 0] for row, example in enumerate(reading.examples)})
            return {"nothing": reading.hidden[..., 0]}

        sets = NeuronSets(model, [neurons], {site: torch.full((64,), 9.0)})
        Replicas(model, [ids[i] for i in range(4)], places=places).run(sets, readout)
        return torch.stack([held[i] for i in range(4)])

    clean, changed = by_replicas([]), by_replicas([Neuron(site, 3)])
    torch.testing.assert_close(clean, plain(False), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(changed, plain(True), atol=1e-5, rtol=1e-5)
    assert float((changed - clean).abs().max()) > 1e-3


def test_a_gradient_is_that_of_a_change_at_every_place(tmp_path: Path) -> None:
    model, site = from_model(*tiny("vit")), Site("mlp_act", 1)
    ids = encode(model, [e.text for e in load_task(noisy(tmp_path / "set", 1)).examples])
    places = edited_places(model, moescope.CircuitSettings(position="mean"))
    replicas = Replicas(model, [ids[0]], places=places)
    (slope,) = gradients(replicas, [site], lambda reading: reading.hidden[..., 2])[site]
    weight = model.structure.layers[1].mlp.fc2.weight  # of the last layer: what it writes is what is read
    np.testing.assert_allclose(slope, weight[2].detach().numpy(), atol=1e-5)


def test_off_task_images_are_asked_another_question(tmp_path: Path) -> None:
    assert off_task(load_task("digits-made", limit=20)) == "digits"
    assert off_task(load_task("threes=digits?positive=3", limit=20)) == "digits-made"
    assert off_task(load_task(noisy(tmp_path / "set", 2))) == "digits-made"


def test_what_follows_words_alone_is_refused(tmp_path: Path) -> None:
    folder, model = noisy(tmp_path / "set", 8), tiny("vit")
    for asked, why in (
        ({"paths": "mean"}, "paths: ViTModel reads images, and paths are followed to a final token"),
        ({"crossed": "tone-certainty"}, "crossed: ViTModel reads images, and crossed labels are of texts"),
    ):
        with pytest.raises(InputError, match=why):
            moescope.circuits(model, folder, moescope.CircuitSettings(**asked, **QUICK))
