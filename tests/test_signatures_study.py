"""The signatures study whole: verdicts where the truth is known, a tiny random model end to end, refusals, prompts."""

from __future__ import annotations

import dataclasses
import json
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

FAST = SignatureSettings(n_permutations=99, n_label_permutations=19, n_nulls=19, n_boot=200)


def study(trace: RoutingTrace) -> StudyResult:
    return signatures(trace, None, FAST)


def claim(result: StudyResult, start: str) -> moescope.types.Claim:
    return next(c for c in result.claims if c.name.startswith(start))


# Enough tokens that a prompt's routing outweighs the lottery of single tokens.
PLANTED = {(3, c): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES)}


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    return study(random_trace(12, tokens=40, planted=PLANTED, strength=0.5))


def test_planted_task_routing_is_found_at_its_layer_and_no_null_explains_it(planted: StudyResult):
    effect = claim(planted, "Cohen's d of within")
    assert effect.verdict == "reproduced"
    assert effect.p == 0.01
    assert claim(planted, "accuracy of the category").verdict == "reproduced"
    layers = planted.tables["routing_layers"].set_index("layer")
    assert layers["p_family"].idxmin() == 3
    assert layers.loc[[1, 4], "p_family"].min() > 0.05
    found = planted.tables["experts"].query("p_family < 0.05")
    assert {(3, e) for e in range(8)} <= set(zip(found["layer"], found["expert"], strict=True))
    assert set(found["layer"]) == {3}
    assert claim(planted, "Cohen's d beyond token identity").verdict == "measured"
    assert claim(planted, "Cohen's d at equal lengths").measured == pytest.approx(effect.measured, rel=0.2)
    assert claim(planted, "accuracy on topics").measured > 0.9
    cards = planted.tables["expert_categories"].query("layer == 3")
    favourite = cards.loc[cards.groupby("expert")["lift"].idxmax()].set_index("expert")["category"]
    assert all(favourite[e] == CATEGORIES[e // 2] for e in favourite.index)
    assert len(favourite) == 8


def test_random_routing_is_called_chance():
    # its p is 0.06 (9999 permutations), which 99 would round to the level of significance itself
    result = signatures(random_trace(12, tokens=40, seed=4), None, dataclasses.replace(FAST, n_permutations=199))
    assert claim(result, "Cohen's d of within").verdict == "explained by chance"
    assert claim(result, "cosine within").verdict == "explained by chance"
    assert claim(result, "accuracy of the category").verdict == "explained by chance"
    assert claim(result, "experts that tell").measured.startswith("0 of")
    assert claim(result, "cosine within").measured > 0.9  # as high as one likes, without any task


def test_routing_by_token_alone_is_called_a_trivial_cue():
    result = study(random_trace(12, tokens=40, lexical=True))
    effect = claim(result, "Cohen's d of within")
    assert effect.verdict == "explained by a trivial cue"
    assert "equal tokens" in effect.note
    assert claim(result, "Cohen's d beyond token identity").verdict == "explained by a trivial cue"
    assert claim(result, "Cohen's d beyond token identity").measured == pytest.approx(0, abs=1e-9)
    assert claim(result, "accuracy of the category").verdict == "explained by a trivial cue"


def test_length_alone_is_not_taken_for_a_task():
    """Random routing, categories of different lengths: raw d is significant, the verdict is not fooled."""
    trace = random_trace(
        20, tokens={"long": 150, "longer": 200, "short": 4, "shorter": 3}, categories=("long", "longer", "short", "shorter")
    )
    result = study(trace)
    raw = result.tables["similarity"].iloc[0]
    corrected = result.tables["similarity"].query("measure == 'null_corrected' and prompts == 'all'").iloc[0]
    assert raw["p"] == 0.01
    assert corrected["p"] > 0.2
    assert claim(result, "Cohen's d of within").verdict != "reproduced"
    assert claim(result, "Cohen's d at equal lengths").verdict == "explained by chance"


def test_a_result_saves_with_every_figure_and_loads(planted: StudyResult, tmp_path: Path):
    assert set(planted.figures()) == {
        "layers", "nulls", "random_routing", "classification", "map", "similarity", "experts", "cards",
    }  # fmt: skip
    folder = planted.save(tmp_path / "out")
    assert moescope.load(folder) == planted
    page = (folder / "report.html").read_text()
    assert all(f"{c.name}"[:20].replace("'", "&#39;") in page for c in planted.claims)
    assert (published_table(planted.tables)["published"] > 0).all()


@pytest.mark.parametrize("quantity", ["frequency", "weight"])
def test_the_study_runs_on_a_tiny_random_model(quantity):
    prompts = load_prompts("routing-80", limit=40)
    prompts = [dataclasses.replace(p, text=p.text[:40]) for p in prompts]
    seen: list[str] = []
    options = {"quantity": quantity, "new_tokens": 6, "n_boot": 100, "cards": 1, "experts": ((0, 1),)}
    result = signatures(
        tiny_model("olmoe", head=True),
        prompts,
        dataclasses.replace(FAST, **options),
        run=Run(progress=lambda stage, done, total: seen.append(stage)),
    )
    assert result.kind == "signatures"
    assert len(result.claims) == 14
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
    assert abs(nulls.loc["random model", "d_pairs"] - nulls.loc["random model", "trained_d"]) < 0.6
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
    assert any("no token occurs twice" in note for note in result.meta["notes"])


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
        assert list(result.tables["expert_tokens"]["token"]) == list(direct.tables["expert_tokens"]["token"])
    plain = signatures(recorded, settings=dataclasses.replace(settings, new_tokens=32))
    assert plain.meta["model"] == "moe-tiny"
    assert not [note for note in plain.meta["notes"] if "ended before" in note]  # the trace was asked for three tokens


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_permutations": 18}, "n_permutations: must be at least 19"),
        ({"n_label_permutations": 10}, "n_label_permutations: must be 0 or at least 19"),
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
