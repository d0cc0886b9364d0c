"""Models of several sizes: a planted trend is found, a planted absence is not, and few models decide nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moescope
from moescope import Claim, InputError, ScalingSettings, StudyResult
from moescope.models import LoadedModel
from moescope.models import load as load_model
from moescope.models.blueprint import blueprint
from moescope.select.ranking import Sigma
from moescope.studies.circuits.claims_scaling import scaling_claims
from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.scaling import OfModel, Size, _size_of, size_trends
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.series import Found, depths, self_overlap
from moescope.studies.circuits.trends import least_models, slopes, trend
from moescope.study.protocol import Context
from moescope.study.verdicts import verdicts
from moescope.types import Site, Task
from tests.architectures import save_tiny
from tests.wiring.planted import lookup_model, squares, task, words_of

ROWS, WIDTH, NEURON = 120, 16, 5
Y = np.random.default_rng(7).permutation(np.arange(ROWS) % 2)
INNER = (16, 48, 160, 480, 1500, 4800)  # two and a half tenfolds


def series(made: Callable[[int], LoadedModel], count: int) -> list[LoadedModel]:
    return [replace(made(i), name=f"m{i}") for i in range(count)]


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH))


def studied(models: list[LoadedModel], tasks: Task, **options: object) -> tuple[StudyResult, dict[str, Claim]]:
    settings = ScalingSettings(**{"k": 1, "n_folds": 3, "twin": False, **options})  # type: ignore[arg-type]
    result = moescope.scaling(models, [tasks], settings)
    names = ("accuracy", "depth", "self_overlap")
    return result, dict(zip(names, result.claims, strict=True))


def of_gap(gap: Callable[[int], float], *, own: bool) -> Callable[[int], LoadedModel]:
    """The class in one coordinate, further apart by model; ``own``: noise of its own."""

    def made(i: int) -> LoadedModel:
        x = noise(i if own else 0)
        x[:, NEURON] += gap(i) * (2.0 * Y - 1.0)
        return lookup_model(words_of(x), inner=INNER[i])

    return made


TEXTS = task([f"w{i}" for i in range(ROWS)], Y)


def test_a_circuit_that_tells_more_the_larger_the_model_is_found_to_and_untrained_twins_do_not() -> None:
    result, claims = studied(series(of_gap(lambda i: 0.2 + 0.2 * i, own=True), 6), TEXTS, twin=True)
    assert (claims["accuracy"].outcome, claims["accuracy"].explanation) == ("holds", "none found"), claims["accuracy"].words
    table = result.table("scaling")
    assert table["parameters"].is_monotonic_increasing
    assert table["twin"].max() < 0.65
    assert result.meta["controls"][0]["control"] == "untrained twin of m0"
    assert claims["accuracy"].id == "H14"


def test_models_that_tell_alike_show_no_trend() -> None:
    _, claims = studied(series(of_gap(lambda _: 1.0, own=False), 6), TEXTS)
    assert {name: c.outcome for name, c in claims.items()} == {
        "accuracy": "contradicted",
        "depth": "contradicted",
        "self_overlap": "contradicted",
    }
    _, claims = studied(series(of_gap(lambda _: 0.6, own=True), 5), TEXTS)  # as good on average, each by its own noise
    assert claims["accuracy"].outcome != "holds"


def test_four_models_are_described_and_not_judged() -> None:
    _, claims = studied(series(of_gap(lambda i: 0.2 + 0.4 * i, own=True), 4), TEXTS)
    assert {c.outcome for c in claims.values()} == {"descriptive"}
    assert claims["accuracy"].words.startswith("four points: described, not judged")
    assert claims["accuracy"].interval is not None
    made = of_gap(lambda i: 0.2 + 0.4 * i, own=True)
    _, claims = studied(series(lambda i: made(3 * i), 2), TEXTS)
    assert claims["accuracy"].interval is None
    assert "over texts alone" in claims["accuracy"].words


def deciding(at: Callable[[int], int], layers: int = 6) -> Callable[[int], LoadedModel]:
    """The class is in the size of one coordinate, of which layer ``at`` writes the square into another."""

    def made(i: int) -> LoadedModel:
        x = 0.3 * noise(i)
        x[:, 0] = np.where(np.arange(ROWS) % 4 < 2, 1.0, -1.0) * np.where(Y, 2.0, 0.3)
        model = lookup_model(words_of(x), layers=layers, inner=INNER[i] // 4)
        write = np.zeros(WIDTH)
        write[NEURON] = 3.0
        squares(model, at(i), 0, write)
        return model

    return made


def test_models_that_decide_earlier_are_found_to() -> None:
    result, claims = studied(series(deciding(lambda i: 5 - i), 6), TEXTS)
    found = result.table("scaling")["depth"].to_numpy()
    assert np.allclose(found, (np.arange(5, -1, -1) + 0.5) / 6, atol=0.15), found
    assert claims["depth"].outcome == "holds", claims["depth"].words
    _, claims = studied(series(deciding(lambda _: 3), 5), TEXTS)
    assert claims["depth"].outcome != "holds", claims["depth"].words


def test_what_no_model_knows_none_decides() -> None:
    _, claims = studied(series(of_gap(lambda _: 0.0, own=True), 5), TEXTS)
    assert claims["depth"].outcome in ("not tested", "descriptive")
    assert claims["accuracy"].outcome != "holds"


def test_models_of_nearly_one_size_have_no_trend() -> None:
    scorer = Scorer(np.arange(40) % 2, np.array([str(i) for i in range(40)]))
    hits = np.arange(40) < 30
    found = Found({}, hits, np.stack([hits, hits]), np.full(4, 0.5), np.zeros((3, 1), int), np.zeros(1, int), scorer)
    sizes = [Size(f"m{i}", n, 0, 2) for i, n in enumerate((10**4, 10**6, 10**6 + 10**5))]
    models = [OfModel(found, {"depth": depth}, None) for depth in (float("nan"), 0.1, 0.2)]
    assert [row["quantity"] for row in size_trends("made", sizes, models, 0)] == ["accuracy", "self_overlap"]


def test_depth_is_the_same_for_few_layers_and_many() -> None:
    rng = np.random.default_rng(0)
    places = rng.random(4000)
    by_layers = []
    for layers in (4, 32):
        at = (np.arange(layers) + 1) / layers
        accuracy = np.where(at >= places[:, None], 0.9, 0.5)
        accuracy[:, -1] = 0.9
        by_layers.append(depths(accuracy, 0.5).mean())
    assert np.allclose(by_layers, 0.5, atol=0.02), by_layers
    assert depths(np.full(6, 0.5), 0.5) == 1.0
    assert depths(np.array([0.8, 0.8]), 0.5) == 0.25


@pytest.mark.parametrize("seed", range(3))
def test_a_circuit_is_found_again_where_it_is_planted_and_not_in_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(120) % 2)
    x = rng.normal(size=(120, 40)).astype(np.float32)
    sigma: Sigma = "pooled"
    settings = ScalingSettings(k=4, sigma=sigma)

    def overlap(values: np.ndarray) -> np.ndarray:
        columns = Columns((Site("mlp_act", 0),), (40,))
        groups = np.array([str(i) for i in range(120)])
        folds = rng.permutation(np.arange(120) % 5)
        return self_overlap(Features(TEXTS, columns, values, values, y, groups, folds, seed), settings)

    drawn = overlap(x)
    assert drawn.shape == (6,)
    assert abs(drawn[0]) < 0.35, drawn
    planted = x.copy()
    planted[:, :4] += 1.5 * y[:, None]
    assert overlap(planted).min() > 0.7


@pytest.mark.parametrize(("twins", "explanation"), [("grow", "trivial cue"), ("stay", "none found")])
def test_a_trend_that_untrained_networks_have_too_is_explained(twins: str, explanation: str) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    scorer = Scorer(y, np.array([str(i) for i in range(600)]))
    models = []
    for i in range(5):
        hits = rng.random(600) < 0.5 + 0.1 * i
        found = Found({}, hits, np.stack([hits, hits]), np.full(4, 0.5), np.zeros((3, 1), int), np.zeros(1, int), scorer)
        row = {"balanced": 0.5 + 0.1 * i, "depth": 0.25, "self_overlap": 0.5}
        models.append(OfModel(found, row, hits if twins == "grow" else rng.random(600) < 0.5))
    sizes = [Size(f"m{i}", 10 ** (4 + i), 0, 2) for i in range(5)]
    trends = pd.DataFrame(size_trends("made", sizes, models, 0))
    table = pd.DataFrame([{**vars(s), "task": "made", **m.row} for s, m in zip(sizes, models, strict=True)])
    claim = verdicts(scaling_claims(table, trends, ScalingSettings()))[0]
    assert (claim.outcome, claim.explanation) == ("holds", explanation), claim.words


def test_rows_of_one_group_are_no_more_texts() -> None:
    rng = np.random.default_rng(0)
    few = rng.normal(size=(40, WIDTH))
    y = rng.permutation(np.arange(40) % 2)

    def made(i: int, copies: int) -> LoadedModel:
        x = few + 0.05 * i * rng.normal(size=few.shape)
        x[:, NEURON] += (0.4 + 0.1 * i) * (2.0 * y - 1.0)
        return lookup_model(words_of(np.repeat(x, copies, 0)), inner=INNER[i])

    def width(groups: np.ndarray) -> float:
        texts = task([f"w{i}" for i in range(160)], np.repeat(y, 4), list(groups))
        result, _ = studied(series(lambda i: made(i, 4), 3), texts)
        row = result.table("scaling_trends").set_index("quantity").loc["accuracy"]
        return float(row["text_high"] - row["text_low"])

    assert width(np.repeat(np.arange(40), 4)) > 1.4 * width(np.arange(160))


def test_the_interval_covers_and_p_keeps_its_level() -> None:
    rng = np.random.default_rng(1)
    x = np.array([6.0, 6.6, 7.1, 8.0, 8.4])
    covered, false = [], []
    for _ in range(300):
        texts = rng.normal(scale=0.02, size=(200, 5))  # each model's own luck in the texts
        values = 0.7 + 0.01 * (x - 7) + rng.normal(scale=0.02, size=5) + texts.mean(0)
        spread = 1.96 * slopes(x, texts).std() / np.sqrt(200)
        slope = float(slopes(x, values))
        found = trend(x, values, (slope - spread, slope + spread))
        covered.append(found.low <= 0.01 <= found.high)
        flat = values - 0.01 * (x - 7)
        slope = float(slopes(x, flat))
        false.append(trend(x, flat, (slope - spread, slope + spread)).p <= 0.05)
    assert np.mean(covered) >= 0.92
    assert np.mean(false) <= 0.09


def test_orders_of_few_models_cannot_tell() -> None:
    steep = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    for count in (3, 4):
        assert trend(np.arange(count), steep[:count], (0.099, 0.101)).p > 0.05
    assert trend(np.arange(5), steep, (0.099, 0.101)).p == pytest.approx(2 / 120)
    assert (least_models(1, 0.05), least_models(3, 0.05), least_models(4, 0.05)) == (5, 5, 6)
    assert np.isnan(trend([0, 1], steep[:2], (0.0, 0.2)).low)
    many = trend(np.arange(9), np.linspace(0.5, 0.9, 9), (0.04, 0.06))
    assert many.p < 0.01


def test_what_cannot_be_a_series_of_sizes_is_refused_before_any_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setattr(import_module("moescope.studies.circuits.scaling"), "read", read)
    made = of_gap(lambda _: 1.0, own=True)
    with pytest.raises(InputError, match=r"^models: a series of sizes needs at least two"):
        moescope.scaling(["dense-tiny"], [TEXTS])
    with pytest.raises(InputError, match=r"^models: two are called 'dense-tiny'; give each once"):
        moescope.scaling(["dense-tiny", "dense-tiny"], [TEXTS])
    with pytest.raises(InputError, match=r"^models: two are called 'm0'"):
        studied([replace(made(0), name="m0"), replace(made(1), name="m0")], TEXTS)
    with pytest.raises(InputError, match=r"^models: none is twice as large"):
        studied([replace(made(0), name="m0"), replace(made(0), name="m1")], TEXTS)
    with pytest.raises(InputError, match=r"^models: none .* \(dense-tiny has 4\.1 M, moe-tiny has 5\.2 M beside"):
        moescope.scaling(["dense-tiny", "moe-tiny"], ["certainty=halueval"])
    with pytest.raises(InputError, match=r"no/such/model"):
        moescope.scaling(["dense-tiny", "no/such/model"], ["certainty=halueval"])
    load_model("dense-tiny").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^models: .* is a config without weights"):
        moescope.scaling(["dense-tiny", tmp_path], ["certainty=halueval"])
    with pytest.raises(InputError, match=r"^models: vit-digits reads images"):
        moescope.scaling(["dense-tiny", "vit-digits"], ["certainty=halueval"])


@pytest.mark.parametrize("study", ["scaling", "dynamics"])
def test_one_model_goes_before_the_next_comes(study: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    come: list[weakref.ref[Any]] = []
    here: list[int] = []
    load = Context.load

    def watched(self: Context, given: Any = None, **options: Any) -> LoadedModel:
        here.append(sum(one() is not None for one in come))
        model = load(self, options.pop("model", given), **options)
        come.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr(Context, "load", watched)
    run, options = moescope.Run(limit=24), {"k": 2, "n_folds": 3}
    tiny = [str(save_tiny(tmp_path / f"step-{i}")) for i in (0, 1)]
    if study == "scaling":
        moescope.scaling([tiny[0], "dense-tiny"], ["certainty=halueval"], ScalingSettings(**options), run=run)
    else:
        moescope.dynamics(tiny, ["certainty=halueval"], settings=moescope.SearchSettings(**options), run=run)
    assert here == [0, 0]


@pytest.mark.parametrize("name", ["dense-tiny", "moe-tiny", "adapter"])
def test_a_config_tells_the_size_of_the_model_that_is_loaded(name: str, tmp_path: Path) -> None:
    if name == "adapter":
        peft = pytest.importorskip("peft")
        module = load_model("dense-tiny", head=True).module
        module.name_or_path = "dense-tiny"
        peft.get_peft_model(module, peft.LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path / name)
    given = str(tmp_path / name) if name == "adapter" else name
    (found,) = {_size_of(load_model(given)), _size_of(blueprint(given).model)}
    assert found.model == name
