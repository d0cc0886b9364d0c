"""The atlas: planted preferences are found on prompts that did not choose them, and none where there are none."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope import AtlasSettings, Run
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing import RoutingTrace
from moescope.routing.cards import expert_cards
from moescope.routing.store import save_trace
from moescope.study.result import StudyResult
from tests.planted_routing import CATEGORIES, random_trace

PLANTED = {(layer, c): (e,) for layer in (1, 3, 4) for c, e in zip(CATEGORIES, (1, 5, 9, 13), strict=True)}


def verdicts(result: StudyResult) -> list[tuple[str, str | None]]:
    return [(claim.outcome, claim.explanation) for claim in result.claims[:2]]


def test_tokens_that_always_reach_an_expert_are_its_label() -> None:
    trace = random_trace(24, tokens=30, templates=6)
    trace.ids[trace.tokens == 11, 1] = np.array([7, 8, 9, 10])  # of layer 3
    result = moescope.atlas(trace)
    experts = result.table("experts").set_index(["layer", "expert"])
    for expert in (7, 8, 9, 10):
        assert experts.loc[(3, expert), "label"] == "11"
        assert experts.loc[(3, expert), "token_lift"] > 1.5
    others = experts.drop([(3, e) for e in (7, 8, 9, 10)])
    assert (others["label"] != "").mean() < 0.1
    assert result.claims[2].measured == f"{(experts['label'] != '').sum()} of 48"


def test_a_planted_category_is_found_beyond_the_identity_of_tokens() -> None:
    result = moescope.atlas(
        random_trace(32, tokens=30, planted=PLANTED, strength=0.7, templates=8), settings=AtlasSettings(margin=0.02)
    )
    assert verdicts(result)[1] == ("holds", "none found")
    experts = result.table("experts").query("layer == 3").set_index("expert")
    assert experts.loc[[1, 5, 9, 13], "category"].tolist() == list(CATEGORIES)
    assert (experts.loc[[1, 5, 9, 13], "category_lift"] > 1.8).all()
    assert (experts.loc[[1, 5, 9, 13], "identity_lift"] < 1.2).all()


def test_routing_by_token_is_told_from_routing_by_category() -> None:
    trace = random_trace(24, tokens=60, lexical=True, templates=6)
    result = moescope.atlas(trace, settings=AtlasSettings(margin=0.05))
    assert verdicts(result) == [("holds", None), ("holds", "trivial cue")]
    assert result.claims[1].control is not None
    assert result.claims[1].control.value == pytest.approx(result.claims[1].measured, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_uniform_router_prefers_nothing(seed: int) -> None:
    result = moescope.atlas(random_trace(48, tokens=120, templates=12, seed=seed))
    assert verdicts(result) == [("contradicted", "chance")] * 2
    assert (result.table("experts")["label"] != "").mean() < 0.1
    assert abs(float(result.claims[0].measured)) < 0.1


def test_a_twin_that_routes_alike_explains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.routing.traced.random_twin", lambda model, seed: model)
    settings = AtlasSettings(new_tokens=0)
    result = moescope.atlas("moe-tiny", "routing-80", settings, run=Run(limit=40))
    assert verdicts(result)[0] == ("holds", "trivial cue")
    layers = result.table("layers")
    np.testing.assert_allclose(layers["prompt_token_bits"], layers["twin_token_bits"])
    np.testing.assert_allclose(layers["token_bits"], layers["prompt_token_bits"])


def test_every_token_is_in_no_or_one_half() -> None:
    result = moescope.atlas(random_trace(12, templates=4))
    (rows,) = result.rows
    assert rows["judge"]["rows"] + rows["fit"]["rows"] == 48
    assert rows["judge"]["groups"] == rows["fit"]["groups"] == 2


def test_traces_without_categories_have_cards_too() -> None:
    trace = random_trace(12)
    bare = replace(trace, sequences=tuple(replace(s, category=None, group=None) for s in trace.sequences))
    result = moescope.atlas(bare)
    assert result.claims[1].outcome == "not tested"
    assert "expert_categories" not in result.tables
    assert (result.table("experts")["category"] == "").all()
    assert len(result.table("expert_contexts"))


def test_what_cannot_be_described_is_refused() -> None:
    trace = random_trace(4)
    with pytest.raises(InputError, match="no token ids"):
        moescope.atlas(replace(trace, tokens=None))
    with pytest.raises(InputError, match="at least two"):
        moescope.atlas(replace(trace.select([0]), sequences=(replace(trace.sequences[0], category=None),)))
    with pytest.raises(InputError, match="is dense"):
        moescope.atlas("dense-tiny", "routing-80", AtlasSettings(new_tokens=0), run=Run(limit=8))


def page_of(trace: RoutingTrace, folder: Path) -> str:
    save_trace(trace, folder / "trace")
    main(["atlas", "--trace", str(folder / "trace"), "--out", str(folder / "out")])
    return (folder / "out" / "atlas" / "index.html").read_text(encoding="utf-8")


def test_the_page_has_an_address_for_every_expert_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>'
    trace = random_trace(12, categories=(hostile, *CATEGORIES[1:]))
    page = page_of(trace, tmp_path)
    for layer in (1, 3, 4):
        for expert in range(16):
            assert page.count(f'id="L{layer}E{expert}"') == 1
            assert f'href="#L{layer}E{expert}"' in page
    assert hostile not in page
    assert "&lt;script&gt;alert" in page
    (script,) = re.findall("<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert not re.search(r"(src|href)=\"(?!#)", page)


def test_cards_of_many_at_once_are_those_of_each_alone() -> None:
    trace = random_trace(10, tokens=30, planted=PLANTED)
    every = expert_cards(trace)
    for layer, expert in ((1, 0), (3, 5), (4, 15)):
        alone = expert_cards(trace, [(layer, expert)])
        for name, frame in alone.items():
            same = every[name].query("layer == @layer and expert == @expert").reset_index(drop=True)
            assert frame.equals(same), name


def test_a_context_marks_every_token_that_the_expert_gets() -> None:
    trace = random_trace(10, tokens=30)
    trace.ids[np.ix_(np.arange(1, len(trace), 2), [1])] = np.array([7, 8, 9, 10])
    trace.ids[np.ix_(np.arange(0, len(trace), 2), [1])] = np.array([0, 1, 2, 3])
    words = [f"w{i} " for i in range(40)]
    text = expert_cards(trace, [(3, 7)], decode=lambda ids: "".join(words[i] for i in ids))["expert_contexts"]["text"].iloc[0]
    parts = re.findall(r"⟦w\d+ ⟧|w\d+ ", text)
    assert "".join(parts) == text
    marked = [part.startswith("⟦") for part in parts]
    assert marked == [i % 2 == marked.index(True) % 2 for i in range(len(marked))]
