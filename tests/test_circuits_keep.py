"""The parts of keeping a circuit alone: areas by hand, everything else replaced one hook at a time, slopes by differences."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from moescope.capture import activations, encode
from moescope.errors import InputError
from moescope.intervene import intervene
from moescope.intervene.gradients import gradients
from moescope.intervene.kept_sets import KeptSets
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.replicas import Replicas
from moescope.intervene.watched_sets import WatchedSets
from moescope.studies.circuits import CircuitSettings
from moescope.studies.circuits.causal_values import Split
from moescope.studies.circuits.features import columns_of
from moescope.studies.circuits.keep import Units, areas, balanced_donors, kept_sizes, share_that_keeps
from moescope.types import Neuron, Site
from tests.planted_llama import planted_llama, planted_task


def test_areas_are_those_of_the_benchmark() -> None:
    """Trapezoids over the share, by hand: a straight line, all at once, and a curve that rises above 1."""
    assert areas(np.array([0.2, 0.5]), (2, 5), 10) == (pytest.approx(0.5), pytest.approx(0.5))
    cpr, cmd = areas(np.array([[1.0, 1.0], [1.5, 1.5]]), (2, 5), 10)
    assert cpr == pytest.approx([0.9, 0.15 + 0.45 + 0.625])
    assert cmd == pytest.approx([0.1, 0.15 + 0.15 + 0.125])


def test_the_share_that_keeps_is_the_last_that_is_crossed() -> None:
    sizes, n = (1, 10, 50), 100
    assert share_that_keeps(np.array([0.95, 0.95, 0.95]), sizes, n) == 0.01
    assert share_that_keeps(np.array([0.95, 0.80, 1.00]), sizes, n) == 0.30  # kept at one, lost at ten, kept again
    assert share_that_keeps(np.array([0.0, 0.0, 0.0]), sizes, n) == 0.95
    assert share_that_keeps(np.array([4.0, 2.0, 1.0]), sizes, n) == 0.01  # never less than one
    assert np.isnan(share_that_keeps(np.full(3, np.nan), sizes, n))


def test_sizes_are_those_of_a_series_and_the_studys_own() -> None:
    assert kept_sizes(12, 64) == (1, 2, 5, 10, 12, 20, 50)
    assert kept_sizes(10, 100) == (1, 2, 5, 10, 20, 50)


def test_units_are_coordinates_of_the_stream_and_neurons_elsewhere() -> None:
    model = planted_llama()
    stream = Units.of(columns_of(model, "resid"))
    assert (stream.n, set(stream.neurons)) == (32, {4})
    assert list(stream.first_met(np.array([35, 3, 67, 1]))) == [3, 1]
    mlp = Units.of(columns_of(model, "mlp_act:1-2"))
    assert (mlp.n, set(mlp.neurons)) == (96, {1})
    order = np.random.default_rng(0).permutation(96)
    drawn = mlp.alike(order, np.random.default_rng(1))
    assert sorted(drawn) == list(range(96))
    np.testing.assert_array_equal(mlp.space[drawn], mlp.space[order])  # of one layer at every place
    assert (drawn != order).any()


def test_donors_tell_nothing_of_the_class() -> None:
    labels, fit_labels = np.repeat([0, 1], [40, 20]), np.arange(50) % 2
    donors = balanced_donors(Split(np.arange(50), np.arange(60), fit_labels, labels, 2), np.random.default_rng(0))
    for c in (0, 1):
        assert fit_labels[donors[labels == c]].mean() == 0.5


@pytest.mark.parametrize("site", ["resid", "mlp_act:1-2"])
def test_keeping_is_replacing_all_the_rest(site: str) -> None:
    """Brute force: each text alone, one hook a site, no cache."""
    model, task = planted_llama(), planted_task(rows=8)
    columns = columns_of(model, site)
    units = Units.of(columns)
    encoded = encode(model, [e.text for e in task.examples])
    values = {s: activations(model, encoded, [s])[:, 0] for s in columns.sites}
    given = {s: torch.from_numpy(x[::-1].copy()) for s, x in values.items()}  # of another text
    order = np.random.default_rng(0).permutation(units.n)
    sets = KeptSets(model, units.by_site(), np.argsort(order)[None], [(0, units.n), (0, 0), (0, 5)], given)
    ids = [encoded[i] for i in range(len(encoded))]
    found = Replicas(model, ids, logits="final").run(sets, lambda reading: {"odds": reading.logits[..., 2]})["odds"]
    for number, k in enumerate((units.n, 0, 5)):
        kept = set(order[:k].tolist())
        rest = [columns.neuron(c) for c in range(columns.n) if int(units.of_column[c]) not in kept]
        for row in range(len(ids)):
            new = np.array([float(given[n.site][row, n.index]) for n in rest])
            with torch.no_grad(), intervene(model, rest, "patch", values=new, positions="final"):
                logits = model.module(input_ids=torch.from_numpy(ids[row].astype(np.int64))[None]).logits[0, -1]
            assert found[number, row] == pytest.approx(float(logits[2]), abs=2e-4)


def test_gradients_are_slopes() -> None:
    model, task = planted_llama(), planted_task(rows=4)
    encoded = encode(model, [e.text for e in task.examples])
    replicas = Replicas(model, [encoded[i] for i in range(4)], logits="final")
    sites = [Site("resid", 1), Site("mlp_act", 2)]
    slopes = gradients(replicas, sites, lambda reading: reading.logits[..., 2])
    for site in sites:
        x = activations(model, encoded, [site])[:, 0]
        for row, index in ((0, 11), (3, 7)):
            ends = []
            for step in (-1e-2, 1e-2):
                ids = torch.from_numpy(encoded[row].astype(np.int64))[None]
                changed = [float(x[row, index]) + step]
                with torch.no_grad(), intervene(model, [Neuron(site, index)], "patch", values=changed, positions="final"):
                    ends.append(float(model.module(input_ids=ids).logits[0, -1, 2]))
            assert slopes[site][row, index] == pytest.approx((ends[1] - ends[0]) / 2e-2, rel=0.05, abs=1e-4)


def test_too_few_random_orders_are_refused() -> None:
    with pytest.raises(InputError, match=r"keep_random: 99 draws cannot show anything at 0\.05 for 3 claims"):
        CircuitSettings(keep_only="mean", keep_random=99)
    with pytest.raises(InputError, match="keep_only: 'zero' is none of"):
        CircuitSettings(keep_only="zero")  # type: ignore[arg-type]


def test_watching_sees_what_a_hook_sees() -> None:
    model, task = planted_llama(), planted_task(rows=6)
    encoded = encode(model, [e.text for e in task.examples])
    ids = [encoded[i] for i in range(len(encoded))]
    replaced = [[Neuron(Site("resid", 0), 3), Neuron(Site("resid", 1), 5)], [Neuron(Site("mlp_act", 1), 9)]]
    watched = [
        [Neuron(Site("resid", 2), 3), Neuron(Site("resid", 1), 5)],
        [Neuron(Site("resid", 1), 8), Neuron(Site("mlp_act", 3), 0)],
    ]
    values = {
        site: torch.linspace(-1, 1, model.width(site)) for site in (Site("resid", 0), Site("resid", 1), Site("mlp_act", 1))
    }
    sets = WatchedSets(NeuronSets(model, replaced, values), watched, len(ids))
    Replicas(model, ids).run(sets, lambda reading: {})
    for number, (members, seen) in enumerate(zip(replaced, watched, strict=True)):
        given = [float(values[n.site][n.index]) for n in members]
        for row, text in enumerate(ids):
            with torch.no_grad(), intervene(model, members, "patch", values=given, positions="final"), ExitStack() as stack:
                found: dict[Neuron, float] = {}
                for neuron in seen:

                    def look(x: torch.Tensor, n: Neuron = neuron, found: dict[Neuron, float] = found) -> None:
                        found[n] = float(x[0, -1, n.index])

                    stack.callback(model.tap_point(neuron.site).attach(look).remove)
                model.body(input_ids=torch.from_numpy(text.astype(np.int64))[None])
            np.testing.assert_allclose(sets.values[number, row], [found[n] for n in seen], atol=2e-4)
