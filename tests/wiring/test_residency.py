"""Residency on planted traces: locality, a hot set, a shift, crowded devices, and routers in which there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing.store import save_trace
from moescope.types import Claim
from tests.wiring.requests import E, K, requests

QUICK = moescope.ResidencySettings(capacity=4, devices=(4,))
HOT = [1, 3, 6, 9]


def claim(result: moescope.StudyResult, start: str) -> Claim:
    return next(c for c in result.claims if c.statement.startswith(start))


def rates(result: moescope.StudyResult, capacity: int = 4) -> dict[str, float]:
    table = result.table("policies").query("capacity == @capacity")
    return dict(zip(table["policy"], table["hit_rate"], strict=True))


def test_a_uniform_router_is_chance() -> None:
    result = moescope.residency(requests(tokens=200, hot={"a": [], "b": []}), settings=QUICK)
    tokens, pins, shift, placing = (claim(result, s) for s in ("Tokens", "Pinning", "What one", "Placing"))
    assert (tokens.outcome, tokens.explanation) == ("contradicted", "chance")
    assert pins.outcome == "contradicted"
    assert shift.outcome == "holds"  # nothing is lost where there is nothing
    assert (placing.outcome, placing.explanation) == ("contradicted", "chance")
    assert tokens.measured == pytest.approx(4 / E, abs=0.02)
    assert tokens.control is not None
    assert tokens.control.value == pytest.approx(4 / E, abs=0.02)
    assert claim(result, "The next layer's").outcome == "not tested"


def test_tokens_that_come_back() -> None:
    result = moescope.residency(requests(again=0.6), settings=QUICK)
    assert claim(result, "Tokens").outcome == "holds"
    assert claim(result, "Pinning").outcome == "contradicted"  # where only the last token matters
    assert claim(result, "What one").outcome == "not tested"
    rate = rates(result)
    assert rate["least recently used"] > 0.6
    assert rate["pinned by other requests"] == pytest.approx(4 / E, abs=0.03)
    best = claim(result, "Loads of the best")
    assert "least recently used" in best.words
    assert isinstance(best.measured, float)
    assert 1 < best.measured < 2


def test_a_hot_set_is_found() -> None:
    result = moescope.residency(requests(hot={"": HOT}), settings=QUICK)
    assert claim(result, "Tokens").outcome == "holds"
    assert claim(result, "Pinning").outcome == "holds"
    pinned = result.table("pinned")
    assert sorted(pinned.query("layer == 2")["expert"]) == HOT
    assert rates(result)["pinned by other requests"] > 0.7
    assert (result.table("layers")["static"] > 0.7).all()
    assert "pinned by other requests" in claim(result, "Loads of the best").words


def test_what_is_pinned_comes_from_other_requests_than_those_that_judge() -> None:
    """Every request has two experts of its own: what the judged ones use, the others never do."""
    trace = requests(8, 60, hot={f"c{i}": [2 * i, 2 * i + 1] for i in range(8)}, pull=60)
    trace = replace(trace, sequences=tuple(replace(s, category=None) for s in trace.sequences))
    judged = moescope.residency(trace, settings=replace(QUICK, capacity=8))
    assert rates(judged, 8)["pinned by other requests"] == 0
    assert rates(judged, 8)["least recently used"] > 0.9
    (rows,) = judged.rows
    assert rows["fit"]["rows"] == rows["judge"]["rows"] == 4


def test_a_shift_between_domains_is_noticed() -> None:
    result = moescope.residency(requests(hot={"code": HOT, "story": [0, 2, 4, 8]}), settings=QUICK)
    shift = claim(result, "What one")
    assert shift.outcome == "contradicted"
    table = result.table("domains").set_index(["category", "pinned_by"])["hit_rate"]
    assert table["code", "its own"] > table["code", "the others"] + 0.3
    same = moescope.residency(requests(hot={"code": HOT, "story": HOT}), settings=QUICK)
    assert claim(same, "What one").outcome == "holds"


def test_crowded_devices_are_found_and_relieved() -> None:
    """The four busy experts are neighbours, so that one of four devices has all of them."""
    result = moescope.residency(requests(hot={"": [0, 1, 2, 3]}), settings=QUICK)
    placing = claim(result, "Placing")
    assert (placing.outcome, placing.explanation) == ("holds", "none found")
    table = result.table("placement").set_index("placement")["busiest"]
    assert table["contiguous"] > 2.5
    assert table["fitted"] < 1.15
    assert table["fitted"] < table["random"] < table["contiguous"]
    copies = moescope.residency(requests(hot={"": [0]}, pull=6), settings=replace(QUICK, redundant=8))
    alone = moescope.residency(requests(hot={"": [0]}, pull=6), settings=QUICK)
    busiest = [r.table("placement").set_index("placement")["busiest"]["fitted"] for r in (copies, alone)]
    assert busiest[0] < 1.2 < 1.9 < busiest[1]  # an expert that has half of the load needs more than one device


def test_a_placement_is_judged_by_other_requests() -> None:
    """Of few tokens under a uniform router, each half has its own busy experts, which say nothing of the other's."""
    trace = requests(40, 12)
    table = moescope.residency(trace, settings=QUICK).table("placement").set_index("placement")["busiest"]
    assert table["fitted"] > 1.08
    assert table["fitted"] == pytest.approx(table["random"], abs=0.1)


@pytest.mark.parametrize("redundant", [0, 4])
def test_placement_files_by_the_rules_of_their_readers(tmp_path: Path, redundant: int) -> None:
    trace = requests(hot={"": [0, 1, 2, 3]})
    settings = replace(QUICK, redundant=redundant)
    moescope.residency(trace, settings=settings).save(tmp_path / "r", figures=False)
    folder = tmp_path / "r" / "placement" / "4"
    ascend, sglang, counts = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("vllm-ascend", "sglang", "sglang-counts")
    )
    trt = yaml.safe_load((folder / "tensorrt-llm.yaml").read_text())
    places = E + redundant
    # SGLang: nothing but this key; a row for each layer of the model, P places, equal parts of which are a device's
    assert list(sglang) == ["physical_to_logical_map"]
    rows = sglang["physical_to_logical_map"]
    assert len(rows) == 5
    assert rows[0] == [p % E for p in range(places)]  # layers 0 and 3 are dense
    for layer in (1, 2, 4):
        assert len(rows[layer]) == places
        assert set(rows[layer]) == set(range(E))
    # vLLM-Ascend: layers with experts are numbered from 0, devices hold equally many
    assert ascend["moe_layer_count"] == len(ascend["layer_list"]) == 3
    for number, (layer, entry) in enumerate(zip((1, 2, 4), ascend["layer_list"], strict=True)):
        assert (entry["layer_id"], entry["device_count"]) == (number, 4)
        assert [d["device_id"] for d in entry["device_list"]] == [0, 1, 2, 3]
        held = [d["device_expert"] for d in entry["device_list"]]
        assert {len(experts) for experts in held} == {places // 4}
        assert all(len(set(experts)) == len(experts) for experts in held)  # no device holds an expert twice
        assert [e for experts in held for e in experts] == rows[layer] == trt["initial_global_assignments"][layer]
    # TensorRT-LLM: layers by their true number
    assert list(trt["initial_global_assignments"]) == [1, 2, 4]
    assert (trt["num_slots"], trt["layer_updates_per_iter"]) == (places, 0)
    assert np.shape(counts["logical_count"]) == (5, E)
    fit = moescope.load(tmp_path / "r").rows[0]["fit"]["rows"]
    assert np.sum(counts["logical_count"]) == fit * 60 * 3 * K


def test_prompts_are_read_in_one_step_and_not_judged() -> None:
    trace = requests(again=0.6, prompt=30)
    together = moescope.residency(trace, settings=QUICK)
    assert not any("no token was generated" in note for note in together.meta["notes"])
    one_by_one = moescope.residency(trace, settings=replace(QUICK, prefill="token by token"))
    assert together.meta["steps"]["judged"] == "generated"
    assert one_by_one.meta["steps"]["judged"] == "all"
    assert any("no token was generated" in note for note in moescope.residency(requests(), settings=QUICK).meta["notes"])
    # four requests at once need more experts in a step, and load fewer for each
    four = moescope.residency(trace, settings=replace(QUICK, batch=4))
    loads = [
        r.table("policies").query("policy == 'fewest possible' and capacity == 4")["loaded"].item() for r in (together, four)
    ]
    assert loads[1] != loads[0]


def test_tokens_per_second_are_what_the_formula_says() -> None:
    settings = replace(QUICK, expert_bytes=2**20, bandwidth=1.0)
    table = moescope.residency(requests(), settings=settings).table("policies")
    assert (table["mib"] - table["loaded"]).abs().max() < 1e-9
    assert (table["tokens_per_second"] * table["loaded"] * 2**20 / 1e9 - 1).abs().max() < 1e-9
    slow = moescope.residency(requests(), settings=replace(settings, compute=1000.0))
    assert slow.table("policies")["tokens_per_second"].max() == pytest.approx(1)
    assert any("upper bound" in note for note in slow.meta["notes"])
    assert claim(slow, "Cheapest").measured == 16 * 4 / E


def test_what_is_refused() -> None:
    trace = requests()
    for settings, said in (
        (moescope.ResidencySettings(capacity=E), "nothing would ever be loaded"),
        (moescope.ResidencySettings(devices=(3,)), "no multiple of 3"),
        (moescope.ResidencySettings(devices=(2,), redundant=E + 2), "can hold apart"),
        (moescope.ResidencySettings(bandwidth=1.0), "how large an expert is"),
    ):
        with pytest.raises(InputError, match=said):
            moescope.residency(trace, settings=settings)
    with pytest.raises(InputError, match="too few"):
        moescope.residency(requests(6), settings=QUICK)
    with pytest.raises(InputError, match="too few"):
        moescope.residency(requests(groups=4), settings=QUICK)
    with pytest.raises(InputError, match="n_random"):
        moescope.ResidencySettings(n_random=99)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_trace(requests(again=0.5, prompt=20), tmp_path / "trace")
    main(["residency", str(tmp_path / "trace"), "--capacity", "4", "--out", str(tmp_path / "r")])
    said = capsys.readouterr().out
    assert "Pinning" in said
    result = moescope.load(tmp_path / "r")
    assert sorted(result.artifacts) == ["placement/2", "placement/4", "placement/8"]
    assert {"policies", "layers", "placement"} <= set(result.figures)
    for name in ("policies", "placement"):
        assert (tmp_path / "r" / "figures" / f"{name}.png").is_file()


def test_looking_ahead_in_a_real_model() -> None:
    model = moescope.load_model("moe-tiny", head=True)
    prompts = moescope.load_prompts("routing-80")
    trace = moescope.trace(model, prompts, moescope.TraceSettings(new_tokens=4))
    assert trace.meta["expert_bytes"] == 4 * (192 * 192 + 192 * 96)
    result = moescope.residency(trace, model, moescope.ResidencySettings(prefill="token by token"))
    ahead = claim(result, "The next layer's")
    assert ahead.outcome in ("holds", "contradicted", "inconclusive")
    rate = rates(result)
    looked, plain = rate["least recently used, with lookahead"], rate["least recently used"]
    assert looked > plain + 0.1  # the first layer is guessed for nobody, the others often
    with pytest.raises(InputError, match="no token ids"):
        moescope.residency(replace(trace, tokens=None), model)
    with pytest.raises(InputError, match="fingerprints differ"):
        moescope.residency(replace(trace, meta={**trace.meta, "fingerprint": "another"}), model)
