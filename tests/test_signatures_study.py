"""The signatures study whole: verdicts where the truth is known, a tiny random model end to end, refusals, prompts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.subject import subject_of
from moescope.studies.signatures.reproduce import published_table, reproduce
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.study import signatures
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.tasks import Prompt, load_prompts
from tests.architectures import tiny_model
from tests.planted_routing import CATEGORIES, random_trace

FAST = SignatureSettings(n_permutations=199, n_label_permutations=0, n_nulls=5)


def study(trace: RoutingTrace) -> StudyResult:
    return signatures(trace, None, FAST)


def claim(result: StudyResult, start: str) -> moescope.types.Claim:
    return next(c for c in result.claims if c.statement.startswith(start))


def said(result: StudyResult, start: str) -> tuple[str, str | None]:
    found = claim(result, start)
    return found.outcome, found.explanation


SEPARATION = "Prompts of one category are routed more alike"
ACCURACY = "The signature tells the category of held-out prompts"
BEYOND_TOKENS = "Routing follows the category beyond the identity of the tokens"
EXPERTS = "Experts are specialised by category"
LOAD = "The load is spread over the experts"
CLUSTERS = "Prompts cluster by category"
DEPTH = "Deeper layers separate categories more"


# Enough tokens that a prompt's routing outweighs the lottery of single tokens.
PLANTED = {(3, c): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES)}


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    return study(random_trace(12, tokens=40, planted=PLANTED, strength=0.5, templates=6))


def test_planted_task_routing_is_found_at_its_layer_and_no_null_explains_it(planted: StudyResult):
    effect = claim(planted, SEPARATION)
    assert (effect.outcome, effect.explanation) == ("holds", "none found")
    assert effect.p is not None
    assert effect.p <= effect.p_adjusted <= 0.05
    assert effect.interval is not None
    assert effect.interval[0] < effect.measured < effect.interval[1]
    # What was beaten is what ran, and what could not run is named.
    assert "token identity +" in effect.words
    assert "not run: words in common (no texts); an untrained twin (no model at hand)" in effect.words
    assert said(planted, ACCURACY) == ("holds", "none found")
    assert said(planted, "The signature tells the category on topics") == ("holds", "none found")
    assert said(planted, "The signature tells the category on templates") == ("holds", "none found")
    assert claim(planted, "The signature tells the category on topics").measured > 0.9
    assert said(planted, BEYOND_TOKENS) == ("holds", "none found")
    assert said(planted, CLUSTERS)[0] == "holds"
    layers = planted.tables["routing_layers"].set_index("layer")
    assert layers["p_family"].idxmin() == 3
    assert layers.loc[[1, 4], "p_family"].min() > 0.05
    assert claim(planted, "Number of the layer that separates").measured == 3
    found = planted.tables["experts"].query("p_family < 0.05")
    assert {(3, e) for e in range(8)} <= set(zip(found["layer"], found["expert"], strict=True))
    assert set(found["layer"]) == {3}
    assert said(planted, EXPERTS) == ("holds", None)
    cards = planted.tables["expert_categories"].query("layer == 3")
    favourite = cards.loc[cards.groupby("expert")["lift"].idxmax()].set_index("expert")["category"]
    assert all(favourite[e] == CATEGORIES[e // 2] for e in favourite.index)
    assert len(favourite) == 8


def test_random_routing_separates_nothing_and_is_spread():
    """The cosine is as high as one likes, without any task."""
    result = study(random_trace(40, tokens=40, seed=4))
    assert claim(result, "Cosine of two prompts of one category").measured > 0.9
    for start in (SEPARATION, ACCURACY, BEYOND_TOKENS, CLUSTERS, EXPERTS, "Load balance (uniform", "Load balance (reshuffled"):
        assert said(result, start)[0] in ("contradicted", "inconclusive"), start
    assert said(result, SEPARATION) == ("contradicted", "chance")
    assert claim(result, EXPERTS).measured.startswith("0 of")
    assert said(result, LOAD) == ("holds", None)


def test_a_wording_that_is_the_category_cannot_be_told_from_it():
    """One task, 24 topics x 4 templates, each template a "category": routing by its words alone."""
    trace = random_trace(24, tokens=24, lexical=True)
    prompts = [Prompt(s.id, f"text {s.id}", s.category, f"topic{i // 4}", s.category) for i, s in enumerate(trace.sequences)]
    result = signatures(trace, prompts, FAST)
    effect = claim(result, SEPARATION)
    assert effect.measured > 1
    assert (effect.outcome, effect.explanation) == ("inconclusive", None)
    assert "category and template cannot be told apart" in effect.words
    assert said(result, ACCURACY)[0] != "reproduced"
    assert ("holds", "none found") not in {(c.outcome, c.explanation) for c in result.claims}


def with_group_effect(strength: float, *, seed: int = 0) -> RoutingTrace:
    """Four categories in the same six templates; experts 8 to 13 by template, 0 to 7 by category with ``strength``."""
    names = [f"{c}.{t}" for c in CATEGORIES for t in range(6)]
    planted: dict[tuple[int, str], tuple[int, ...]] = {(1, n): (8 + int(n[-1]),) for n in names}
    if strength:
        planted |= {(3, n): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES) for n in names if n.startswith(c)}
    trace = random_trace(5, tokens=30, layers=(1, 3), planted=planted, strength=0.6, categories=names, seed=seed)
    sequences = [
        TracedSequence(s.id, (s.category or "").split(".")[0], f"topic{i % 5}/{(s.category or '').split('.')[1]}")
        for i, s in enumerate(trace.sequences)
    ]
    return dataclasses.replace(trace, sequences=tuple(sequences))


def test_categories_that_share_templates_are_judged_without_pairs_of_one():
    """Templates alone make no category; where the category is planted too it holds, with an interval over templates."""
    alone, both = study(with_group_effect(0)), study(with_group_effect(0.6))
    assert said(alone, SEPARATION)[0] in ("contradicted", "inconclusive")
    assert said(both, SEPARATION) == ("holds", "none found")
    row = both.tables["similarity"].iloc[0]
    assert row["cells"] == 24
    assert "interval from templates left out" in claim(both, SEPARATION).words


def test_routing_by_token_alone_is_called_a_trivial_cue():
    result = study(random_trace(24, tokens=40, lexical=True))
    assert said(result, SEPARATION) == ("holds", "trivial cue")
    assert "more than token identity" in claim(result, SEPARATION).words
    beyond = claim(result, BEYOND_TOKENS)
    assert (beyond.outcome, beyond.explanation) == ("contradicted", "trivial cue")
    assert beyond.measured == pytest.approx(0, abs=1e-9)
    # Without a difference among 96 prompts, one of three points can hardly be excluded.
    assert said(result, ACCURACY) in (("holds", "trivial cue"), ("inconclusive", None))


def test_a_control_that_cannot_run_is_named_and_not_said_to_be_beaten():
    trace = random_trace(12, tokens=40, lexical=True)
    result = study(dataclasses.replace(trace, tokens=None))
    effect = claim(result, SEPARATION)
    assert "not run: same token reshuffled (the trace has no token ids)" in effect.words
    assert "token identity" not in effect.words
    assert said(result, BEYOND_TOKENS) == ("not tested", None)
    accuracy = claim(result, ACCURACY)
    assert "not run: trivial cues (neither texts nor token ids)" in accuracy.words
    assert "cue of each" not in accuracy.words


def test_a_signature_that_adds_to_the_words_is_not_explained_by_them():
    """Words tell the category of four prompts in five, the routing of nine in ten, each by its own lot."""
    rng = np.random.default_rng(0)
    planted = {(3, c): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES[:2])}
    trace = random_trace(60, tokens=40, planted=planted, strength=0.3, categories=CATEGORIES[:2])
    y = np.array([CATEGORIES.index(s.category or "") for s in trace.sequences])
    said_by_words = np.where(rng.random(len(y)) < 0.8, y, 1 - y)
    prompts = [Prompt(s.id, ("left", "right")[w], s.category) for s, w in zip(trace.sequences, said_by_words, strict=True)]
    result = signatures(trace, prompts, FAST)
    found = claim(result, ACCURACY)
    assert (found.outcome, found.explanation) == ("holds", "none found")
    assert found.control is not None
    assert found.control.value == pytest.approx(0.8, abs=0.08)


def test_cosines_far_below_their_null_are_not_called_chance():
    """Every text has experts of its own, whatever its category: all cosines fall below any random routing's."""
    texts = [f"t{i}" for i in range(24)]
    own = {(layer, t): tuple(np.random.default_rng(i).permutation(16)[:3]) for i, t in enumerate(texts) for layer in (1, 3, 4)}
    trace = random_trace(1, tokens=40, planted=own, strength=0.8, categories=texts)
    sequences = [TracedSequence(s.id, CATEGORIES[i % 4]) for i, s in enumerate(trace.sequences)]
    result = study(dataclasses.replace(trace, sequences=tuple(sequences)))
    found = claim(result, "Load balance (reshuffled")
    assert (found.outcome, found.explanation) == ("contradicted", None)
    assert "the null does not fit" in found.words
    assert found.published is not None


@pytest.mark.parametrize("rising", [True, False])
def test_a_trend_with_depth_is_judged_on_both_sides(rising):
    layers = (0, 1, 2, 3, 4, 5)
    strength = {layer: (0.05 + 0.1 * layer if rising else 0.55 - 0.1 * layer) for layer in layers}
    parts = [
        random_trace(12, tokens=40, layers=(layer,), planted={(layer, c): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES)},
                     strength=strength[layer], seed=layer)
        for layer in layers
    ]  # fmt: skip
    whole = dataclasses.replace(
        parts[0],
        layers=layers,
        n_experts=(16,) * 6,
        ids=np.concatenate([p.ids for p in parts], axis=1),
        weights=np.concatenate([p.weights for p in parts if p.weights is not None], axis=1),
    )
    found = claim(study(whole), DEPTH)
    assert found.outcome == ("holds" if rising else "contradicted")
    assert found.p is not None
    assert found.p < (0.05 if rising else 0.1)


def test_a_skewed_load_is_not_spread_and_its_bottleneck_is_named():
    result = study(random_trace(8, tokens=40, popularity=3.0 ** -np.arange(16)))
    assert said(result, LOAD) == ("contradicted", None)
    busiest = claim(result, "Load of the busiest expert")
    assert busiest.measured > 3
    assert busiest.control is not None
    assert busiest.control.value < 1.2
    assert "expert 0 (" in busiest.words


def test_length_alone_is_not_taken_for_a_task():
    """Random routing, categories of different lengths: raw d is significant, the verdict is not fooled."""
    trace = random_trace(
        20, tokens={"long": 150, "longer": 200, "short": 4, "shorter": 3}, categories=("long", "longer", "short", "shorter")
    )
    result = study(trace)
    raw = result.tables["similarity"].iloc[0]
    corrected = result.tables["similarity"].query("measure == 'null_corrected' and prompts == 'all'").iloc[0]
    assert raw["p"] < 0.05
    assert corrected["p"] > 0.2
    assert said(result, SEPARATION) != ("holds", "none found")
    assert said(result, "Prompts cut to one length")[0] in ("contradicted", "inconclusive")


def test_a_result_saves_with_every_figure_and_loads(planted: StudyResult, tmp_path: Path):
    assert set(planted.figures) == {
        "layers", "nulls", "random_routing", "classification", "map", "similarity", "experts", "load", "overflow", "cards",
    }  # fmt: skip
    folder = planted.save(tmp_path / "out")
    assert moescope.load(folder) == planted
    page = re.sub("<[^>]*>", "", (folder / "report.html").read_text())  # its words are links
    assert all(f"{c.statement}"[:20].replace("'", "&#39;") in page for c in planted.claims)
    assert (published_table(planted.tables)["published"] > 0).all()


@pytest.mark.parametrize("quantity", ["frequency", "weight"])
def test_the_study_runs_on_a_tiny_random_model(quantity):
    prompts = load_prompts("routing-80", limit=40)
    prompts = [dataclasses.replace(p, text=p.text[:40]) for p in prompts]
    seen: list[str] = []
    options = {"quantity": quantity, "new_tokens": 6, "cards": 1, "experts": ((0, 1),)}
    result = signatures(
        tiny_model("olmoe", head=True),
        prompts,
        dataclasses.replace(FAST, **options),
        run=Run(progress=lambda stage, done, total: seen.append(stage)),
    )
    assert result.kind == "signatures"
    assert len(result.claims) == 20
    assert {"reading and generating", "a random model's routing", "done"} <= set(seen)
    similarity = result.tables["similarity"].set_index(["quantity", "part", "measure", "prompts"])
    assert similarity.index.is_unique
    assert {"cosine", "centred_cosine", "jensen_shannon", "weighted_jaccard", "null_corrected"} == set(
        similarity.index.get_level_values("measure")
    )
    assert {"prompt", "generated", "all"} == set(similarity.index.get_level_values("part"))
    splits = result.tables["routing_accuracy"].set_index(["features", "split"])
    assert {"stratified", "by topic", "by template", "equal lengths"} <= set(splits.index.get_level_values("split"))
    for cue in ("bag of words", "words and bigrams", "token ids (prompt and generated)"):
        assert {"stratified", "by topic", "by template"} <= set(splits.loc[cue].index)
    nulls = result.tables["routing_nulls"].set_index("null")
    # Random weights against random weights: neither is trained, so neither separates much more than the other.
    assert abs(nulls.loc["random model", "d"] - nulls.loc["random model", "measured_d"]) < 0.6
    for start in (SEPARATION, EXPERTS):
        assert said(result, start) != ("holds", "none found")
    assert claim(result, EXPERTS).control is not None
    assert (result.tables["expert_tokens"].query("layer == 0 and expert == 1")["rate"] <= 1).all()
    if quantity == "weight":
        return
    again = signatures(tiny_model("olmoe", head=True), prompts, dataclasses.replace(FAST, **options))
    assert [c.measured for c in again.claims] == [c.measured for c in result.claims]


def test_what_was_done_is_on_record(planted: StudyResult):
    """Every split with its folds, and of every null what shows that it is not the measured routing."""
    splits = {row["name"]: row for row in planted.rows}
    assert set(splits) == {*planted.tables["routing_accuracy"]["split"]}
    assert splits["stratified"]["rows_by_fold"] == [10, 10, 10, 9, 9]
    assert splits["by topic"]["judge"]["groups"] < splits["stratified"]["judge"]["groups"] == 48
    nulls = planted.tables["routing_nulls"]["null"]
    assert {c["control"] for c in planted.meta["controls"]} == {*nulls} - {"measured routing"}


def test_routing_that_is_the_same_for_all_prompts_is_refused():
    trace = random_trace(3)
    alike = dataclasses.replace(trace, ids=np.broadcast_to(trace.ids[:1], trace.ids.shape).copy())
    with pytest.raises(InputError, match="every prompt is routed alike"):
        study(alike)


def test_without_a_token_that_occurs_twice_identity_explains_nothing():
    trace = random_trace(6, planted=PLANTED)
    result = study(dataclasses.replace(trace, tokens=np.arange(len(trace), dtype=np.int32)))
    assert "same token reshuffled" not in set(result.tables["routing_nulls"]["null"])
    assert said(result, BEYOND_TOKENS) == ("not tested", None)
    assert "too few recur" in claim(result, BEYOND_TOKENS).words


def test_the_published_protocol_names_what_stands_in(tmp_path: Path):
    settings = dataclasses.replace(FAST, new_tokens=0, n_label_permutations=0, n_nulls=2, twin=False)
    result = reproduce(settings=settings, run=Run(limit=24, out=tmp_path / "r"))
    assert moescope.load(tmp_path / "r") == result
    assert len(result.tables["published"]) == 12
    notes = " ".join(result.meta["notes"])
    assert "routing-80 stands in" in notes
    assert "embedded moe-tiny stands in" in notes
    assert result.meta["title"] == "Published routing signatures beside moe-tiny"


def test_a_trace_of_a_model_is_studied_as_the_model_itself(tmp_path: Path):
    prompts = load_prompts("routing-80", limit=20)
    settings = dataclasses.replace(FAST, new_tokens=3, n_label_permutations=0, n_nulls=2, twin=False)
    recorded = moescope.trace("moe-tiny", prompts, moescope.TraceSettings(new_tokens=3), run=Run(out=tmp_path / "t"))
    direct = signatures("moe-tiny", prompts, settings)
    for given in (recorded, tmp_path / "t"):
        result = signatures(given, prompts, dataclasses.replace(settings, tokenizer="moe-tiny"))
        assert [c.measured for c in result.claims] == [c.measured for c in direct.claims]
        assert result.tables.keys() == direct.tables.keys()
        for name in result.tables.keys() & {"expert_tokens"}:
            assert list(result.tables[name]["token"]) == list(direct.tables[name]["token"])
    plain = signatures(recorded, settings=dataclasses.replace(settings, new_tokens=32))
    assert plain.meta["model"] == "moe-tiny"
    assert not [note for note in plain.meta["notes"] if "ended before" in note]  # the trace was asked for three tokens


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_permutations": 98}, "n_permutations: 98 draws cannot show anything at 0.05 for 5 claims"),
        ({"n_permutations": 99, "alpha": 0.01}, "n_permutations: 99 draws cannot show anything at 0.01"),
        ({"n_label_permutations": 19}, "n_label_permutations: 19 draws cannot show anything"),
        ({"dense_experts": 1}, "dense_experts: must be 0 or at least 2"),
        ({"experts": ((1,),)}, "experts: "),
        ({"quantity": "mass"}, "quantity: 'mass' is none of frequency, weight"),
    ],
)
def test_settings_that_cannot_decide_are_refused_when_made(settings, words):
    with pytest.raises(InputError, match=words):
        SignatureSettings(**settings)


def test_a_recorded_trace_is_studied_without_a_model(tmp_path, capsys):
    from moescope.routing.store import save_trace

    save_trace(random_trace(6, planted=PLANTED), tmp_path / "trace")
    options = ["--label-permutations", "0", "--nulls", "5", "--permutations", "99", "--json"]
    main(["signatures", "--trace", str(tmp_path / "trace"), *options, "--out", str(tmp_path / "out")])
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "signatures"
    assert moescope.load(tmp_path / "out").meta["prompts"] == 24
    assert_refused(["signatures", "--trace", str(tmp_path / "none"), "--out", str(tmp_path / "x")], ("none",), capsys)


def test_prompts_win_over_the_trace_and_are_matched_by_id():
    trace = random_trace(3)
    prompts = [Prompt(s.id, f"text {s.id}", s.category, "t", "x") for s in reversed(trace.sequences)]
    subject = subject_of(trace, prompts)
    assert subject.texts == [f"text {s.id}" for s in trace.sequences]
    assert subject.topics is None  # one topic for all is none
    assert subject_of(trace).topics is not None
    assert subject_of(trace).blocks() is not None
    with pytest.raises(InputError, match="no prompt has the id 'factual-2'"):
        subject_of(trace, prompts[1:])


def relabelled(categories: list[str | None]) -> RoutingTrace:
    trace = random_trace(2)
    sequences = tuple(TracedSequence(s.id, c) for s, c in zip(trace.sequences, categories, strict=True))
    return dataclasses.replace(trace, sequences=sequences)


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (["a"] * 7 + ["b"], "category 'b' has one prompt"),
        (["a"] * 8, "at least two categories"),
        ([None] * 8, "no categories"),
        (["a"] * 4 + [None] + ["b"] * 3, "'code-1' has no category"),
    ],
)
def test_categories_that_cannot_be_compared_are_refused(categories, words):
    with pytest.raises(InputError, match=words):
        study(relabelled(categories))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = [{"text": f"text {i} of {c}", "category": c} for c in ("a", "b") for i in range(3)]
BAD_FILES = {
    "empty prompt": ([*GOOD, {"text": " ", "category": "a"}], ("line 7", "empty")),
    "no text": ([{"prompt": "x", "category": "a"}], ("'text'", "prompt")),
    "one prompt": ([*GOOD, {"text": "alone", "category": "c"}], ("'c' has one prompt",)),
    "no category": ([*GOOD, {"text": "bare"}], ("'7' has no category",)),
    "twice": ([{**GOOD[0], "id": "x"}, {**GOOD[1], "id": "x"}], ("'x'", "line 1")),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_prompt_files_are_one_line(case, tmp_path, capsys):
    rows, words = BAD_FILES[case]
    path = write(tmp_path / "prompts.jsonl", rows)
    arguments = ["signatures", "dense-tiny", "--prompts", str(path), "--out", str(tmp_path / "out")]
    assert_refused(arguments, words, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["signatures"], ("MODEL", "--trace")),
        (["signatures", "dense-tiny", "--prompts", "routing-8"], ("routing-8", "routing-80")),
        (["signatures", "dense-tiny", "--nulls", "1"], ("--nulls", "at least 2")),
        (["signatures", "moe-tiny", "--trace", "t"], ("MODEL", "--trace")),
        (["signatures", "dense-tiny", "--experts", "three"], ("--experts", "LAYER:EXPERT")),
        (["reproduce", "signatures", "dense-tiny", "--task", "a=halueval"], ("--task",)),
    ],
)
def test_bad_options_are_one_line(arguments, words, tmp_path, capsys):
    assert_refused([*arguments, "--out", str(tmp_path / "out")], words, capsys)


def test_a_dense_model_is_refused_in_one_line(tmp_path, capsys):
    prompts = write(tmp_path / "prompts.jsonl", GOOD)
    arguments = ["signatures", "dense-tiny", "--prompts", str(prompts), "--new-tokens", "0", "--out", str(tmp_path / "out")]
    assert_refused(arguments, ("dense-tiny", "dense"), capsys)


def assert_refused(arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert [w for w in words if w not in lines[0]] == [], lines[0]


def test_shipped_prompts_cross_topics_and_templates_with_categories():
    small, large = load_prompts("routing-80"), load_prompts("routing-480")
    assert Counter(p.category for p in small) == dict.fromkeys(CATEGORIES, 20)
    assert set(small) <= set(large)
    assert len({(p.topic, p.template, p.category) for p in large}) == len({p.text for p in large}) == 480
    assert len({p.topic for p in large}) == 24
    # In the small set, too, neither topic nor template is the category.
    assert set(Counter((p.template, p.category) for p in small).values()) == {4}
    assert set(Counter((p.topic, p.category) for p in small).values()) == {1}
    limited = load_prompts("routing-480", limit=10, seed=1)
    assert sorted(Counter(p.category for p in limited).values()) == [2, 2, 3, 3]
    with pytest.raises(InputError, match=r"^limit: 1 prompts are too few"):
        load_prompts("routing-80", limit=1)


def test_a_prompt_file_may_leave_out_everything_but_the_text(tmp_path):
    found = load_prompts(write(tmp_path / "p.jsonl", [{"text": "one"}, {"text": "two", "topic": "t"}]))
    assert [(p.id, p.category, p.group) for p in found] == [("1", None, None), ("2", None, "t/")]


def test_signatures_of_one_prompt_do_not_depend_on_the_others():
    """Batched and padded beside others, a prompt is routed as it is alone."""
    from moescope.routing import trace_prompts
    from moescope.routing.signatures import signatures_of

    model = tiny_model("olmoe")
    prompts = load_prompts("routing-80", limit=6)
    together = signatures_of(trace_prompts(model, prompts)).values
    alone = np.concatenate([signatures_of(trace_prompts(model, [p])).values for p in prompts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
