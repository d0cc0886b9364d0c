"""Task specifications, presets and files that load as they should."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from moescope.errors import InputError
from moescope.tasks import PRESETS, load_task, parse_spec, plain_text, slots, subset
from moescope.types import Example, Task


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    words = ("good", "bad")
    return write_jsonl(tmp_path / "reviews.jsonl", [{"text": f"{words[i % 2]} {i}", "label": i % 2} for i in range(20)])


def test_spec_parts() -> None:
    spec = parse_spec(r"mine=data/a.csv?text=body&template=A%26B+\n{text}&answers= no, yes")
    assert (spec.name, spec.source) == ("mine", "data/a.csv")
    assert spec.options == {"text": "body", "template": "A&B+\n{text}", "answers": " no, yes"}
    assert parse_spec("halueval").name is None


def test_spec_existing_file_wins_over_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "run=3.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    assert parse_spec("run=3.jsonl").source == "run=3.jsonl"
    assert load_task("run=3.jsonl").name == "run=3"
    assert parse_spec("run=4.jsonl").name == "run"


@pytest.mark.parametrize(
    ("spec", "rows", "groups", "classes"),
    [
        ("halueval", 1000, 500, {0: 500, 1: 500}),
        ("halueval?turn=multi-turn", 1000, 500, {0: 500, 1: 500}),
        ("halueval?turn=both", 2000, 500, {0: 1000, 1: 1000}),
        ("truthfulqa", 5887, 817, {0: 2589, 1: 3298}),
        ("uci-sentiment?split=all", 3000, 2972, {0: 1500, 1: 1500}),
        ("uci-sentiment?split=train", 1014, None, {0: 505, 1: 509}),
    ],
)
def test_shipped_presets(spec: str, rows: int, groups: int | None, classes: dict[int, int]) -> None:
    task = load_task(spec)
    assert len(task) == rows
    assert Counter(e.label for e in task.examples) == classes
    assert groups is None or len({e.group for e in task.examples}) == groups
    assert task.licence in ("MIT", "Apache-2.0", "CC-BY-4.0")
    assert load_task(spec) == task
    assert len(task.sha256) == 64
    assert not task.answers  # no default template of these ends in a question


def test_uci_test_rows_were_never_trained_on() -> None:
    seen = {e.group for e in load_task("uci-sentiment?split=train").examples}
    unseen = load_task("uci-sentiment")
    assert len(unseen) == 1981
    assert seen.isdisjoint(e.group for e in unseen.examples)


def test_templates_and_answers() -> None:
    assert load_task("halueval").examples[0].text.endswith("\nAnswer: Arthur's Magazine")
    judged = load_task("halueval?template=judged")
    assert judged.examples[0].text.endswith("Answer: Arthur's Magazine\nIs this answer true?")
    # Class 0 is the truthful one, so its answer is yes.
    assert dict(zip(judged.classes, judged.answers, strict=True)) == {"truthful": " yes", "hallucinated": " no"}
    asked = load_task("uci-sentiment?template=question")
    assert asked.answers == (" negative", " positive")
    assert all(e.text.startswith("Review: ") and e.text.endswith("\nSentiment:") for e in asked.examples)
    own = load_task(r"uci-sentiment?template={text}\nIs it good?&answers=no,yes")
    assert own.answers == (" no", " yes")
    assert own.examples[0].text.endswith(".\nIs it good?")
    # White space that the template already has is not doubled.
    assert load_task("uci-sentiment?template={text} Mood: &answers=no,yes").answers == ("no", "yes")
    assert load_task("halueval?template={answer}").examples[0].text == "Arthur's Magazine"
    assert "Sentiment:" not in load_task("uci-sentiment").examples[0].text


def test_slots_are_the_answer_whatever_the_template() -> None:
    for template in ("answer", "judged", "{knowledge} {question} {answer} ({turn})"):
        task = load_task(f"halueval?template={template}")
        assert slots(task)[0] == "Arthur's Magazine"
    reordered = subset(load_task("halueval"), [5, 2])
    assert [e.text.endswith(s) for e, s in zip(reordered.examples, slots(reordered), strict=True)] == [True, True]


def test_slots_of_a_hand_made_task_cut_shared_lines() -> None:
    texts = ("Read.\ngood film\nSentiment:", "Read.\nbad filling\nSentiment:")
    task = Task("t", tuple(Example(t, i, str(i)) for i, t in enumerate(texts)), ("a", "b"), "made")
    assert slots(task) == ["good film", "bad filling"]
    plain = Task("t", (Example("The end.", 0, "a"), Example("The friend.", 1, "b")), ("a", "b"), "made")
    assert slots(plain) == ["The end.", "The friend."]
    assert slots(subset(plain, [])) == []
    same = Task("t", (Example("a\nb", 0, "a"), Example("a\nb", 1, "b")), ("a", "b"), "made")
    assert len(slots(same)) == 2


@pytest.mark.parametrize(("limit", "size"), [(100, 100), (101, 100), (2, 2), (5000, 1000)])
def test_limit_takes_whole_balanced_groups(limit: int, size: int) -> None:
    task = load_task("halueval", limit=limit, seed=3)
    assert len(task) == size
    assert set(Counter(e.group for e in task.examples).values()) == {2}
    assert Counter(e.label for e in task.examples) == {0: size // 2, 1: size // 2}
    assert task == load_task("halueval", limit=limit, seed=3)


def test_limit_below_the_number_of_classes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": f"t{i}", "label": i % 4} for i in range(40)])
    with pytest.raises(InputError, match="leaves 2 of 4 classes; raise limit="):
        load_task(str(path), limit=2)
    assert Counter(e.label for e in load_task(str(path), limit=4).examples) == dict.fromkeys(range(4), 1)


def test_limit_is_seeded_and_spec_wins() -> None:
    assert load_task("halueval", limit=50, seed=1).sha256 != load_task("halueval", limit=50, seed=2).sha256
    assert len(load_task("halueval?limit=40", limit=100)) == 40
    order = [e.text for e in load_task("halueval").examples]
    taken = [order.index(e.text) for e in load_task("halueval", limit=50).examples]
    assert taken == sorted(taken)


def test_limit_on_mixed_groups_stays_balanced_and_close() -> None:
    task = load_task("truthfulqa", limit=500)
    counts = Counter(e.label for e in task.examples)
    assert 490 <= len(task) <= 500
    assert abs(counts[0] - counts[1]) <= 10
    whole = Counter(e.group for e in load_task("truthfulqa").examples)
    assert all(n == whole[g] for g, n in Counter(e.group for e in task.examples).items())


def test_limit_gives_what_a_small_class_lacks_to_the_others(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i < 5 else "common"} for i in range(100)]
    task = load_task(f"{write_jsonl(tmp_path / 'x.jsonl', rows)}?limit=40")
    assert Counter(task.classes[e.label] for e in task.examples) == {"rare": 5, "common": 35}


def test_sha_covers_text_label_and_group(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "g": "1"}, {"text": "b", "label": 1, "g": "2"}]

    def sha(r: list[dict]) -> str:
        return load_task(f"{write_jsonl(tmp_path / 'x.jsonl', r)}?group=g").sha256

    first = sha(rows)
    assert sha(rows) == first
    changed = [dict(rows[0], text="c"), dict(rows[0], g="3"), dict(rows[0], label=1)]
    others = [sha([changed[0], rows[1]]), sha([changed[1], rows[1]]), sha([changed[2], dict(rows[1], label=0)])]
    assert len({first, *others}) == 4


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_file_kinds_agree(tmp_path: Path, kind: str) -> None:
    rows = [
        {"body": f'line, "{i}"\nmöre \u2028 text', "mood": "up" if i % 3 else "down", "who": f"u{i // 2}"} for i in range(12)
    ]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import csv

        with path.open("w", encoding="utf-8-sig", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    task = load_task(f"x={path}?text=body&label=mood&group=who")
    assert task.name == "x"
    assert [e.text for e in task.examples] == [r["body"] for r in rows]
    assert task.classes == ("down", "up")
    assert [task.classes[e.label] for e in task.examples] == [r["mood"] for r in rows]
    assert [e.group for e in task.examples] == [r["who"] for r in rows]


def test_labels_are_sorted_by_value_and_bools_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": f"t{i}", "label": v} for i, v in enumerate([10, 9, 2, 10])])
    task = load_task(str(path))
    assert task.classes == ("2", "9", "10")
    assert [e.label for e in task.examples] == [2, 1, 0, 2]
    path = write_jsonl(tmp_path / "y.jsonl", [{"text": "a", "label": True}, {"text": "b", "label": False}])
    assert load_task(str(path)).classes == ("false", "true")
    assert load_task(f"{path}?positive=False").classes == ("true", "false")


def test_positive_binarises(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": f"topic {i % 60}"} for i in range(120)]
    task = load_task(f"{write_jsonl(tmp_path / 'x.jsonl', rows)}?positive=topic 7")
    assert task.classes == ("not topic 7", "topic 7")
    assert sum(e.label for e in task.examples) == 2


def test_whole_floats_are_labels(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "a", "label": 0.0}, {"text": "b", "label": 1.0}])
    assert load_task(str(path)).classes == ("0", "1")


def test_language_group_and_alias_columns(tmp_path: Path) -> None:
    rows = [{"sentence": s, "label": y, "lang": c, "doc": d} for s, y, c, d in
            [("gut", 1, "de", 1), ("bad", 0, "en", 1), ("good", 1, "en", 2)]]  # fmt: skip
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    task = load_task(rf"{path}?text=sentence&language=lang&group=doc&template=[{{lang}}] {{text}}\nGood?&answers=no,yes")
    assert [e.language for e in task.examples] == ["de", "en", "en"]
    assert [e.group for e in task.examples] == ["1", "1", "2"]
    assert task.examples[0].text == "[de] gut\nGood?"
    assert slots(task) == ["gut", "bad", "good"]


def test_duplicates_share_a_group(tmp_path: Path) -> None:
    rows = [
        {"text": t, "label": i % 2} for i, t in enumerate(["Works great!", "works  great", "WORKS GREAT.", "no", "!!!", "??"])
    ]
    groups = [e.group for e in load_task(str(write_jsonl(tmp_path / "x.jsonl", rows))).examples]
    assert len(set(groups[:3])) == 1
    assert len(set(groups)) == 4


def test_wikitext_is_whole_paragraphs() -> None:
    paragraphs = plain_text()
    assert paragraphs[0].startswith("Robert ")
    assert len(paragraphs) > 300
    assert 200_000 < sum(map(len, paragraphs)) < 300_000
    assert not any(p.startswith("=") or "<unk>" in p or " @-@ " in p or " , " in p for p in paragraphs)
    with pytest.raises(InputError, match="shipped: wikitext"):
        plain_text("wikipedia")


def test_every_preset_is_described() -> None:
    shipped = {"halueval", "truthfulqa", "uci-sentiment", "python-functions", "python-words"}
    asked = {"arithmetic", "triviaqa-answers", "gsm8k"}
    assert set(PRESETS) == shipped | {"sst2", "triviaqa", "boolq", "ag_news"} | asked
    for preset in PRESETS.values():
        assert preset.about
        assert preset.licence
        for template in preset.templates.values():
            assert not template.answers or (template.asks and len(template.answers) == len(preset.classes))
