"""A conversion from end to end: what is written, what is measured, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import moescope.study.result
from moescope.cli import main
from moescope.errors import InputError
from moescope.intervene.quality import Quality, few_bits
from moescope.stats import group_bootstrap
from moescope.studies.convert.build import build_model
from moescope.studies.convert.claims import quality_cases, recommend
from moescope.studies.convert.equality import checked_equality, relative_difference
from moescope.studies.convert.speed import Runner, Workload, active_share, ceilings, measure
from moescope.study.result import StudyResult
from moescope.study.verdicts import verdicts
from moescope.types import Claim
from tests.harness_task import write_task
from tests.made_conversions import conversion, converted, source, windows

SMALL: dict[str, Any] = {"active": 20, "calibration_tokens": 4096, "heldout_tokens": 512, "speed": False}

TINY: dict[str, Any] = {"experts": 8, "active": 3, "speed": False, "controls": False, "window": 64}
TINY |= {"calibration_tokens": 2048, "heldout_tokens": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study") / "out"


@pytest.fixture(scope="module")
def result(folder: Path) -> StudyResult:
    """The embedded model on little text, without the clock."""
    return conversion("dense-tiny", folder, **SMALL)


def test_the_split_beats_its_controls(result: StudyResult) -> None:
    """Clustering beats a random split, and routing beats keeping the same neurons for every token."""
    frontier = result.table("frontier").set_index(["kind", "active"])["perplexity"]
    for active in (20, 30, 40):
        assert frontier["converted", active] < frontier["random", active] < frontier["static", active]
    # each was refitted for what it is: that helps all of them, the conversion at its own share
    for kind in ("converted", "random", "static"):
        after = "refit" if kind == "converted" else f"{kind} refit"
        assert frontier[after, 20] < 0.9 * frontier[kind, 20]
    assert frontier["refit", 20] < frontier["random refit", 20] < frontier["static refit", 20]
    assert frontier["oracle neurons", 20] < frontier["oracle routing", 20] < frontier["converted", 20]
    assert 0.9 < frontier["4-bit routing", 20] / frontier["oracle routing", 20] < 1.1
    refit = result.table("refit")
    assert (refit["after"] < refit["before"]).all()
    assert set(refit["kind"]) == {"refit", "random refit", "static refit"}
    assert frontier["converted", 80] < frontier["converted", 40] < frontier["converted", 20] < frontier["converted", 10]
    layers = result.table("layers")
    assert (layers["captured"] > layers["chance"]).all()
    assert (layers["captured"] <= layers["oracle"] + 1e-6).all()


def test_claims(result: StudyResult) -> None:
    claims = {c.statement: c for c in result.claims}
    advice = result.claims[0]
    assert advice.statement == "recommendation, that the converted model is worth having"
    assert (advice.id, advice.measured, advice.outcome) == ("M6", "keep dense", "contradicted")  # without a clock
    assert "too much is lost" in advice.words
    assert claims["all experts active: relative difference of the logits"].measured <= 1e-4
    share = claims["MLP weights active on a token, of the dense model's"].measured
    assert share == pytest.approx(20 / 80 + 75 / (3 * 640))  # 5 of 80 are shared: a router of 75 rows
    rise = claims["perplexity rises by no more than 5.0%"]
    assert rise.interval is not None
    assert rise.interval[0] <= rise.measured <= rise.interval[1]
    assert rise.control is not None
    assert rise.control.value > rise.measured
    assert (rise.outcome, rise.explanation) == ("contradicted", None)
    beside = claims["the conversion loses less than its controls at the same share"]
    assert beside.measured > 0


def test_the_cheapest_alternative_stands_beside_it(result: StudyResult) -> None:
    """8-bit weights cost next to nothing, and the verdict on the conversion says so."""
    frontier = result.table("frontier")
    (row,) = frontier[frontier["kind"] == "8-bit"].to_dict("records")
    assert abs(row["rise"]) < 0.005
    assert row["kl"] > 0  # it is not the dense model
    assert row["share"] == 8.5 / 16
    claim = next(c for c in result.claims if c.statement == "the conversion loses less than 8-bit weights")
    assert claim.outcome == "contradicted"
    assert "53% of the bytes" in claim.words


def test_eight_bits_are_put_back() -> None:
    model = source("llama")
    layers = list(model.module.model.layers)
    before = [p.detach().clone() for p in model.module.parameters()]
    with few_bits(layers):
        changed = layers[0].mlp.up_proj.weight
        error = (changed - before[[id(p) for p in model.module.parameters()].index(id(changed))]).abs()
        assert 0 < float(error.max()) <= float(changed.abs().max()) / 127 * 0.51
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


def test_what_lies_in_the_folder(result: StudyResult, folder: Path) -> None:
    assert moescope.study.result.load(folder) == result
    assert "frontier" in result.figures
    recipe = json.loads((folder / "results.json").read_text())["meta"]
    assert recipe["counts"] == {"experts": 80, "active": 20, "shared": 5}
    assert recipe["text"]["calibration"]["sha256"] != recipe["text"]["held-out"]["sha256"]
    rows, refit = recipe["rows"]
    assert (rows["fit"]["rows"], rows["judge"]["rows"]) == (16, 2)
    # what chooses the penalty of the refit is apart from what it is judged on, and from what it is fitted to
    assert (refit["fit"]["rows"], refit["select"]["rows"], refit["judge"]["rows"]) == (13, 3, 2)
    assert [control["control"] for control in recipe["controls"]] == ["random split"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "base_model: dense-tiny" in card
    assert "vLLM and SGLang" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "glm4_moe"
    assert config["rope_parameters"]["partial_rotary_factor"] == config["partial_rotary_factor"] == 1.0
    assert config["routed_scaling_factor"] == config["num_experts_per_tok"] == 15
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.generate(**tokenizer("The river", return_tensors="pt"), max_new_tokens=3).shape[1] >= 4


def test_the_same_seed_gives_the_same_weights(result: StudyResult, folder: Path, tmp_path: Path) -> None:
    again = conversion("dense-tiny", tmp_path / "again", **(SMALL | {"controls": False}))
    assert again.claims[1].measured == result.claims[1].measured
    first, second = ((f / "model.safetensors").read_bytes() for f in (folder, tmp_path / "again"))
    assert first == second


def test_calibration_text_is_not_what_it_is_judged_on(tmp_path: Path) -> None:
    lines = [f"Line {i} says {i * i} and nothing else worth a note." for i in range(400)]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(lines))
    out = conversion(source("llama"), tmp_path / "out", texts=text, **TINY)
    described = out.meta["text"]
    assert described["calibration"]["source"] == "text.txt, first three quarters"
    assert described["held-out"]["source"] == "text.txt, last quarter"


def test_bfloat16_is_written_as_it_came(tmp_path: Path) -> None:
    model = source("llama")
    model.module.to(torch.bfloat16)
    model.dtype = torch.bfloat16
    conversion(model, tmp_path / "out", **TINY)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    gate = loaded.model.layers[0].mlp.gate
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert gate.e_score_correction_bias.abs().max() > 0


def rows(**speedups: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"runner": r, "workload": w, "speedup": 1.0 if r == "dense" else s}
            for w, s in speedups.items()
            for r in ("dense", "x")
        ]
    ).replace({"workload": {"one": "batch 1", "many": "batch 64"}})


def lost(*rises: float) -> Claim:
    """The verdict on a rise in perplexity of which each of some windows has its own."""
    excess = np.log1p(np.repeat(rises, 20))
    low, high = np.expm1(group_bootstrap(excess))
    here = Quality("converted", 3.0, 20.0, 0.1, 0.9, float(np.expm1(excess.mean())), low, high, 1000, tuple(excess))
    (case,) = quality_cases(here, {}, alike="", tolerance=0.05, margin=0.02, seed=0)
    return verdicts([case])[0]


@pytest.mark.parametrize(
    ("rises", "speeds", "what", "outcome", "words"),
    [
        ((1.2, 1.38), None, "keep dense", "contradicted", "too much is lost"),  # settled, whatever the clock would say
        ((0.0, 0.02), None, "not settled", "not tested", "speed was not measured"),
        ((0.0, 0.02), {"one": 0.8, "many": 0.5}, "keep dense", "contradicted", "it is not faster (0.80× at batch 1)"),
        ((0.4, 0.6), {"one": 2.0, "many": 0.5}, "keep dense", "contradicted", "it would be faster: batch 1 2.00×"),
        ((-0.3, 0.4), {"one": 2.0, "many": 0.5}, "undecided", "inconclusive", "neither shown nor excluded"),
        ((0.0, 0.02), {"one": 2.0, "many": 0.5}, "use the converted model", "holds", "faster at batch 1 2.00×"),
    ],
)
def test_recommendation(rises: tuple[float, ...], speeds: dict[str, float] | None, what: str, outcome: str, words: str) -> None:
    advice = recommend(lost(*rises), None if speeds is None else rows(**speeds))
    assert (advice.measured, advice.outcome) == (what, outcome)
    assert words in advice.words


def test_ceilings_count_weights() -> None:
    model = source("llama")
    built, *_ = converted(model)
    limits = ceilings(
        model.module, built, [Workload("one", 1, 4, 2), Workload("very many", 10**4, 4, 2), Workload("read", 1, 4, 0)]
    )
    mlp = 4 * 3 * 64 * 32
    body = sum(p.numel() for p in model.module.parameters()) - mlp - 260 * 32
    active = mlp * 3 / 8 + 4 * 7 * 32  # a shared expert, two of seven routed, and a router of seven rows
    least = pytest.approx((body + mlp) / (body + active))
    assert limits["one"] == {"ceiling": least, "ceiling_reading": least}
    assert limits["very many"]["ceiling"] == limits["read"]["ceiling"] == least
    assert limits["very many"]["ceiling_reading"] == pytest.approx((body + mlp) / (body + mlp + 4 * 7 * 32))
    assert 1 < limits["read"]["ceiling_reading"] < limits["read"]["ceiling"]
    assert active_share(model.module, built) == pytest.approx(active / mlp)


def test_speed_is_measured_for_every_runner_and_nothing_is_left_changed() -> None:
    model = source("llama")
    built, *_ = converted(model)
    before = built.config._experts_implementation
    found = measure([Runner("dense", model.module), Runner("moescope", built, "moescope")], [Workload("w", 2, 4, 2)], repeats=1)
    assert [r["runner"] for r in found] == ["dense", "moescope"]
    assert found[0]["speedup"] == 1
    assert all(r["tokens_per_second"] > 0 for r in found)
    assert built.config._experts_implementation == before


def test_a_wrong_conversion_would_be_noticed() -> None:
    model = source("llama")
    built, counts, *_ = converted(model)
    assert relative_difference(model.module, built, counts, windows(2)) <= 1e-4
    assert relative_difference(model.module, built, counts, windows(2), level=True) <= 1e-5
    strays = built.model.layers[1].mlp.gate.weight
    strays *= 40  # a text far from that of the calibration: gates that stray, in a model that is the same
    found = checked_equality(model, built, counts, windows(2))
    assert found.split <= 1e-5 < 1e-4 < found.gates
    strays *= 40
    with pytest.raises(InputError, match="with every expert active the logits differ"):
        checked_equality(model, built, counts, windows(2))
    strays /= 1600
    built.model.layers[1].mlp.experts.down_proj[3] *= 1.1
    assert relative_difference(model.module, built, counts, windows(2)) > 1e-3
    with pytest.raises(InputError, match="gates of one the logits differ"):
        checked_equality(model, built, counts, windows(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_conversion_is_not_written(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = source("llama")
    model.module.to(dtype)
    model.dtype = dtype
    conversion(model, tmp_path / "right", **TINY)

    def wrong(*arguments: Any, **options: Any) -> Any:
        built = build_model(*arguments, **options)
        for layer in built.model.layers:
            layer.mlp.experts.down_proj.copy_(layer.mlp.experts.down_proj.roll(1, 0))
        return built

    monkeypatch.setattr("moescope.studies.convert.study.build_model", wrong)
    with pytest.raises(InputError, match="every expert active and gates of one the logits differ"):
        conversion(model, tmp_path / "wrong", **TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".wrong.work", "right"]  # the layers that are split


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--experts", "40", "--no-speed", "--no-controls", "--calibration-tokens", "2048", "--heldout-tokens", "512"]
    main(["convert", "dense-tiny", "-o", str(out), *options])
    printed = capsys.readouterr().out
    assert "recommendation" in printed
    assert f"checkpoint: {out}" in printed
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "dense-tiny", "-o", str(out), *options])
    assert stopped.value.code == 2
    assert f"error: {out} already holds a moescope result" in capsys.readouterr().err
    main(["convert", "dense-tiny", "-o", str(out), "--overwrite", "--active", "20", *options])
    assert json.loads((out / "results.json").read_text())["meta"]["counts"]["active"] == 20


def test_what_the_clock_says_of_kernels_changes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel is the fastest differs from run to run, and so do the last digits of what they give."""
    frontiers = []
    for path in ("few", "one_by_one"):
        monkeypatch.setattr("moescope.kernels.experts.fastest", lambda *_, path=path: path)
        made = conversion("dense-tiny", tmp_path / path, **(SMALL | {"controls": False, "calibration_tokens": 1024}))
        frontiers.append(made.table("frontier"))
    pd.testing.assert_frame_equal(*frontiers, check_exact=True)


@pytest.mark.slow
def test_one_run_of_the_evaluation_harness(tmp_path: Path) -> None:
    """A local task over a JSON file, offline: with every expert active the scores are the dense model's."""
    pytest.importorskip("lm_eval")
    pairs = [
        ("The sky is", " blue", " bread"),
        ("Two and two make", " four", " river"),
        ("He opened the", " door", " seven"),
    ] * 4
    tasks = write_task(tmp_path, pairs)
    out = conversion(
        "dense-tiny",
        tmp_path / "out",
        **(SMALL | {"active": 40, "controls": False}),
        eval_task=["tiny_pairs"],
        eval_include=tasks,
    )
    tasks = out.table("tasks").set_index("metric")
    assert tasks.loc["acc", "original"] == tasks.loc["acc", "converted"] > 0
