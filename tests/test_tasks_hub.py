"""Datasets in the Hub's layout, from local folders; and the Hub out of reach."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moescope.errors import InputError
from moescope.tasks import load_task, slots
from moescope.tasks.questions import Questions

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def folder(path: Path, splits: dict[str, list[dict[str, Any]]], card: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if card:
        (path / "README.md").write_text(card)
    return path


SST2 = [{"idx": i, "sentence": f"a {'fine' if i % 2 else 'dull'} film {i} ", "label": i % 2} for i in range(20)]


def test_any_dataset_folder(tmp_path: Path) -> None:
    data = folder(tmp_path / "mine", {"train": SST2[:12], "test": SST2[12:]})
    task = load_task(f"hf:{data}?text=sentence&split=test")
    assert task.name == "mine"
    assert len(task) == 8
    assert task.classes == ("0", "1")
    assert task.source == f"dataset {data} (test)"


def test_class_label_names_and_parquet(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos", "none"])})
    rows = {"text": ["b", "a", "c"], "label": [1, 0, 1]}
    (tmp_path / "d").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d" / "train.parquet")
    task = load_task(f"hf:{tmp_path / 'd'}")
    assert task.classes == ("neg", "pos")  # in the dataset's order, without the class that no row has
    assert [e.label for e in task.examples] == [1, 0, 1]


def test_choices_are_named(tmp_path: Path) -> None:
    data = folder(tmp_path / "mine", {"train": SST2, "test": SST2})
    cases = {
        f"hf:{data}?text=sentence": ["several splits", "train, test"],
        f"hf:{data}?text=sentence&split=dev": ["dev", "train", "split="],
        f"hf:{data}?split=test": ["no column 'text'", "idx, sentence, label"],
        f"sst2?path={data}": ["validation", "split="],
    }
    for spec, parts in cases.items():
        with pytest.raises(InputError) as caught:
            load_task(spec)
        assert all(part in str(caught.value) for part in parts), str(caught.value)
        assert "\n" not in str(caught.value)
    card = "---\nconfigs:\n- config_name: a\n  data_files: train.jsonl\n- config_name: b\n  data_files: test.jsonl\n---\n"
    data = folder(tmp_path / "two", {"train": SST2, "test": SST2[:8]}, card)
    with pytest.raises(InputError, match=r"'a', 'b'.*config="):
        load_task(f"hf:{data}?text=sentence")
    assert len(load_task(f"hf:{data}?text=sentence&config=b")) == 8


def test_empty_and_broken_folders(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"cannot read the dataset folder .*none"):
        load_task(f"hf:{tmp_path / 'none'}?split=train")
    data = folder(tmp_path / "broken", {"train": []})
    (data / "train.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match=r"cannot read the dataset folder .*broken") as caught:
        load_task(f"hf:{data}?split=train")
    assert "\n" not in str(caught.value)


def test_sst2(tmp_path: Path) -> None:
    data = folder(tmp_path / "sst2", {"validation": SST2, "test": [{**r, "label": -1} for r in SST2]})
    task = load_task(f"s=sst2?path={data}")
    assert (task.name, task.classes, task.answers) == ("s", ("negative", "positive"), ())
    assert task.examples[0].text == "a dull film 0"
    assert load_task(f"sst2?path={data}&template=question").answers == (" negative", " positive")
    with pytest.raises(InputError, match=r"row 1: label -1 .*unlabelled split"):
        load_task(f"sst2?path={data}&split=test")
    with pytest.raises(InputError, match="no column 'sentence'"):
        load_task(f"sst2?path={folder(tmp_path / 'other', {'validation': [{'text': 'a', 'label': 1}]})}")
    with pytest.raises(InputError, match="no row of class 'negative'"):
        load_task(f"sst2?path={folder(tmp_path / 'one', {'validation': SST2[1:2]})}")


def test_boolq(tmp_path: Path) -> None:
    rows = [{"question": f"is {i} even", "answer": i % 2 == 0, "passage": f"About {i}."} for i in range(10)]
    task = load_task(f"boolq?path={folder(tmp_path / 'boolq', {'validation': rows})}")
    assert task.examples[0].text == "About 0.\nQuestion: is 0 even?\nAnswer:"
    assert [e.label for e in task.examples] == [1, 0] * 5
    assert task.answers == (" no", " yes")
    assert slots(task)[1] == "About 1.\nis 1 even"


def test_ag_news(tmp_path: Path) -> None:
    rows = [{"text": f"story {i}", "label": i % 4} for i in range(12)]
    task = load_task(f"ag_news?path={folder(tmp_path / 'ag', {'test': rows})}&limit=8")
    assert task.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert Counter(e.label for e in task.examples) == {0: 2, 1: 2, 2: 2, 3: 2}


def _trivia() -> list[dict[str, Any]]:
    rows = []
    for i in range(60):
        who = i % 2 == 0
        value = f"Person {i % 15}" if who else str(1900 + i)
        answer = {
            "value": value,
            "aliases": [value.upper(), f"alias {i % 15}"],
            "type": "Named" if who else "Numerical",
        }
        question = f"Who wrote book {i}?" if who else f"In which year was city {i} built?"
        rows.append({"question": question, "question_id": f"q{i}", "answer": answer})
    return rows


def test_triviaqa_wrong_answers(tmp_path: Path) -> None:
    rows = _trivia()
    lonely = {"question": "Why?", "question_id": "z", "answer": {"value": "because", "aliases": [], "type": "FreeForm"}}
    data = folder(tmp_path / "trivia", {"validation": [*rows, lonely]})
    task = load_task(f"triviaqa?path={data}")
    assert task == load_task(f"triviaqa?path={data}")
    assert len(task) == 120  # the lonely question has nothing to be confused with
    answers = slots(task)
    for i, row in enumerate(rows):
        right, wrong = task.examples[2 * i], task.examples[2 * i + 1]
        assert (right.label, wrong.label) == (0, 1)
        assert right.group == wrong.group
        assert answers[2 * i] == row["answer"]["value"]
        assert answers[2 * i + 1] != row["answer"]["value"]
        assert answers[2 * i + 1].isdecimal() == row["answer"]["value"].isdecimal()  # of the same kind
    # Nearly a permutation: no answer is wrong much more often than it is right.
    right_counts, wrong_counts = Counter(answers[::2]), Counter(answers[1::2])
    assert max(wrong_counts[a] - right_counts[a] for a in wrong_counts) <= 1
    assert sum((wrong_counts - right_counts).values()) <= 6


def test_questions_that_a_model_answers(tmp_path: Path) -> None:
    task = load_task(f"triviaqa-answers?path={folder(tmp_path / 'trivia', {'validation': _trivia()})}&limit=10&check=contains")
    assert isinstance(task, Questions)
    first = task.examples[0].text
    assert len(task.accepted_of[first]) == 3
    assert task.is_right(first, f"It was {task.accepted_of[first][0].lower()}.")
    rows = [{"question": f"What is {i} and {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i:,}"} for i in range(490, 510)]
    math = load_task(f"gsm8k?path={folder(tmp_path / 'gsm', {'test': rows})}")
    assert isinstance(math, Questions)
    assert (math.check, math.until, math.difficulty_of[math.examples[0].text]) == ("last-number", "end", "1")
    assert math.accepted_of["Question: What is 500 and 500?\nAnswer:"] == ("1000",)
    assert math.is_right("Question: What is 500 and 500?\nAnswer:", "500 + 500 = 1,000.\nSo it is 1000.")
    with pytest.raises(InputError, match=r"row 1: the answer has no final number behind ####"):
        load_task(f"gsm8k?path={folder(tmp_path / 'odd', {'test': [{'question': 'a', 'answer': 'b'}]})}")
    yes = [{"question": f"is {i} even", "answer": i % 2 == 0, "passage": f"About {i}."} for i in range(10)]
    boolq = load_task(f"boolq?kind=answers&template=yes-no&path={folder(tmp_path / 'boolq', {'validation': yes})}")
    assert isinstance(boolq, Questions)
    assert [boolq.accepted_of[e.text] for e in boolq.examples[:2]] == [("yes",), ("no",)]
    assert boolq.is_right(boolq.examples[0].text, "Yes, it is")


@pytest.mark.parametrize("spec", ["sst2", "triviaqa", "boolq", "ag_news", "hf:org/name", "hf:org/name?split=test"])
def test_offline_is_one_line_with_a_way_out(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        load_task(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert "halueval, truthfulqa, uci-sentiment" in message
    assert ".jsonl" in message
    assert "from the Hub" in message
