"""One task: planted neurons come back, tables say what they should, and what holds by construction is seen to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.select.nested import nested_cv
from moescope.stats import auroc
from moescope.studies.circuits.single import TaskFindings, overlap_ks, rank_columns
from moescope.types import Neuron, Site
from tests.made_features import QUICK, made_features, made_findings

PLANTED = {5: 2.0, 20: 1.7, 21: 1.6, 50: 1.5}


@pytest.fixture(scope="module")
def found() -> TaskFindings:
    return made_findings(made_features("planted", PLANTED))


def test_planted_neurons_are_the_circuit(found: TaskFindings) -> None:
    assert set(found.ranking[:4]) == set(PLANTED)
    assert set(found.circuit.neurons) == {Neuron(Site("resid", c // 16), c % 16) for c in PLANTED}
    assert found.circuit.divergence == tuple(sorted(found.circuit.divergence, reverse=True))
    neurons = found.tables["neurons"]
    assert (neurons["p_family"][:4] <= 0.02).all()
    assert (neurons["p_family"][4:] > 0.05).all()
    assert (neurons["fold_frequency"][:4] == 1).all()
    assert not neurons["massive"].any()
    np.testing.assert_array_equal(neurons["divergence"], neurons["sigma_pooled"])
    assert found.cv.accuracy[found.cv.ks.index(4)] > 0.85


def test_recovery_falls_with_the_effect() -> None:
    """Known power: at this size an effect of 1.5 standard deviations is always found, 0.2 seldom."""

    def recovered(gap: float) -> float:
        made = [made_features("p", dict.fromkeys(PLANTED, gap), seed=seed) for seed in range(20)]
        return float(np.mean([len(set(rank_columns(f.x, f.y, "pooled")[:4]) & set(PLANTED)) for f in made])) / 4

    assert recovered(1.5) == 1
    assert recovered(0.2) < 0.6


def test_tables_name_their_columns(found: TaskFindings) -> None:
    expected = {
        "accuracy": "task k classifier selection accuracy low high balanced auroc coverage selective_accuracy "
        "accuracy_at_half_coverage n",
        "neurons": "task rank site layer neuron divergence sigma_pooled sigma_total sigma_negative p_family threshold_5pct "
        "massive fold_frequency",
        "neuron_classes": "task rank layer neuron class mean sd n",
        "neuron_values": "task rank layer neuron class value",
        "layers": "task layer count_top10 count_top100 max_divergence mean_divergence q99 massive massive_rows",
        "depth_range": "task k coordinates first_layer last_layer mean_layer random_mean random_low random_high p",
        "depth": "task layer fraction curve accuracy low high loss loss_low loss_high",
        "columns": "task clusters neuron n_layers layers distinct_coordinates",
        "sigma_compare": "task sigma k accuracy top1 max_divergence",
        "stability": "task k nogueira_folds split_half_overlap split_half_kuncheva expected",
        "pc1": "task class mean sd layer distance explained null_distance explained_null explained_p class_share "
        "null_share null_low null_high p class_share_standardised p_standardised",
        "projection": "task class pc1 pc2",
    }
    assert {name: " ".join(table.columns) for name, table in found.tables.items()} == expected
    assert all(len(table) for table in found.tables.values())


def test_sufficiency_has_every_k_by_both_classifiers_and_protocols(found: TaskFindings) -> None:
    table = found.tables["accuracy"].set_index(["classifier", "selection", "k"])
    assert set(table.index) == {
        (c, s, k) for c, s in (("lda", "nested"), ("logistic", "nested"), ("lda", "global")) for k in (1, 2, 4)
    }
    row = table.loc[("lda", "nested", 2)]
    sure = found.cv.scores[1].max(1) >= 0.9
    assert row["coverage"] == pytest.approx(sure.mean())
    assert row["selective_accuracy"] == pytest.approx(found.cv.correct[1][sure].mean())
    assert row["low"] < row["accuracy"] < row["high"]


def test_the_fixed_circuit_keeps_its_accuracy_by_construction(found: TaskFindings) -> None:
    """The identity behind "exit at no loss": once all members are covered, the curve equals the circuit's accuracy."""
    depth = found.tables["depth"].set_index(["curve", "layer"])
    final = found.circuit_hits(4).mean()
    covered = max(found.features.columns.layer_of[found.cv.selected[:, :4].ravel()])
    assert covered == 3
    for curve in ("fixed_circuit", "circuit_reselected"):
        assert depth.loc[(curve, 3), "accuracy"] == pytest.approx(final)
        assert depth.loc[(curve, 3), ["loss", "loss_low", "loss_high"]].tolist() == [0, 0, 0]
    # Selected anew, layer 0 has one of the four planted neurons only, and the loss shows.
    assert depth.loc[("circuit_reselected", 0), "loss_low"] > 0.01
    early = made_findings(made_features("early", {3: 2.0, 4: 2.0, 5: 2.0, 6: 2.0}))
    curve = early.tables["depth"].query("curve == 'fixed_circuit'")
    assert curve["accuracy"].nunique() == 1


def test_layers_range_and_stability(found: TaskFindings) -> None:
    layers = found.tables["layers"]
    assert layers["count_top10"].sum() == 10
    assert layers["max_divergence"].idxmax() == 0
    bounds = found.tables["depth_range"].iloc[0]
    assert (bounds["first_layer"], bounds["last_layer"], bounds["mean_layer"]) == (0, 3, 1.25)
    assert bounds["random_low"] < 1.5 < bounds["random_high"]
    stability = found.tables["stability"].set_index("k")
    assert stability.loc[4, "nogueira_folds"] == 1
    assert stability.loc[4, "split_half_overlap"] > 3
    assert stability.loc[4, "expected"] == 16 / 64
    noise = made_findings(made_features("noise", {}))
    assert noise.tables["stability"].set_index("k").loc[4, "split_half_kuncheva"] < 0.4
    assert noise.cv.accuracy.max() < 0.65


def test_massive_activations_are_flagged_in_neurons_layers_and_rows() -> None:
    features = made_features("massive", PLANTED)
    features.x[:, 20] += 300
    features.x[7, 32:48] *= 1000
    found = made_findings(features)
    assert found.massive[20]
    assert found.tables["neurons"].set_index(["layer", "neuron"]).loc[(1, 4), "massive"]
    layers = found.tables["layers"].set_index("layer")
    assert layers.loc[1, "massive"] == 1
    assert layers.loc[2, "massive_rows"] == 1
    assert layers.loc[[0, 1, 3], "massive_rows"].sum() == 0


@pytest.mark.parametrize("selection", ["nested", "global"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_multi_class_and_the_published_protocol(selection, n_classes) -> None:  # type: ignore[no-untyped-def]
    settings = dataclasses.replace(QUICK, selection=selection, classifier="logistic", sigma="total")
    features = made_features("multi", PLANTED, rows=180, n_classes=n_classes)
    found = made_findings(features, settings)
    direct = nested_cv(features.x, features.y, features.folds, (4,), sigma="total", classifier="logistic", selection=selection)
    np.testing.assert_array_equal(found.circuit_hits(4), direct.correct[0])
    accuracy = found.tables["accuracy"]
    own = accuracy[(accuracy["classifier"] == "logistic") & (accuracy["selection"] == selection) & (accuracy["k"] == 4)]
    each = [auroc(direct.scores[0][:, c], features.y == c) for c in range(n_classes)]
    assert own["auroc"].to_list() == pytest.approx([np.mean(each)])
    assert len(found.tables["pc1"]) == n_classes
    assert found.cv_other.selection != selection


def test_the_overlap_curve_stays_below_all_neurons() -> None:
    assert overlap_ks(QUICK, 64) == (1, 2, 4, 5, 10, 20)
    assert overlap_ks(dataclasses.replace(QUICK, k=50), 64) == (1, 2, 4, 5, 10, 20, 50)
    assert overlap_ks(dataclasses.replace(QUICK, k=64), 64)[-1] == 20


def test_a_circuit_larger_than_the_layer_is_refused() -> None:
    with pytest.raises(InputError, match="K = 4 is larger than the 3 neurons"):
        made_findings(made_features("small", {}, layers=1, width=3))
