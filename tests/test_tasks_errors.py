"""Every user mistake gives one line that names the place and the mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moescope.errors import InputError
from moescope.tasks import load_task

GOOD = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


def fails(spec: str, *parts: str, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_task(spec, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def jsonl(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("haluevel", ["unknown preset 'haluevel'", "did you mean 'halueval'", "sst2", ".jsonl"]),
        ("", ["no source"]),
        ("name=", ["no source"]),
        ("=halueval", ["name before '='"]),
        ("halueval?turn", ["'turn' is not key=value", "%26"]),
        ("halueval?turn=both&turn=both", ["'turn' is given twice"]),
        ("halueval?tern=both", ["unknown option 'tern'", "did you mean 'turn'", "known: answer, answers"]),
        ("halueval?turn=three", ["turn='three'", "one-turn, multi-turn, both"]),
        ("halueval?split=test", ["unknown option 'split'"]),
        ("uci-sentiment?split=dev", ["split='dev'", "test, train, all"]),
        ("halueval?limit=many", ["limit='many'", "limit=500"]),
        ("halueval?limit=1", ["limit=1 is too small"]),
        ("halueval?template={anwser}", ["unknown field 'anwser'", "did you mean 'answer'", "known fields: question"]),
        ("halueval?template={label}", ["unknown field 'label'"]),
        ("halueval?template=bare", ["template 'bare' has no {field}", "named templates: answer, judged"]),
        ("halueval?template={answer", ["template '{answer'", "{{ and }}"]),
        ("halueval?template={}", ["plain field names"]),
        ("halueval?template={answer.__class__}", ["plain field names"]),
        ("halueval?template={answer!r}", ["plain field names"]),
        ("uci-sentiment?answers=no,yes", ["ends in a question", "template="]),
        ("uci-sentiment?template=question&answers=no", ["1 words for 2 classes"]),
        ("uci-sentiment?template=question&answers=no,no", ["own word"]),
        ("missing.jsonl", ["missing.jsonl: no such file"]),
        ("some/folder", ["unknown kind", ".parquet"]),
        ("hf:", ["hf:org/name"]),
        ("hf:/no/such/folder", ["no folder /no/such/folder"]),
    ],
)  # fmt: skip
def test_specification_mistakes(spec: str, parts: list[str]) -> None:
    fails(spec, *parts)


@pytest.mark.parametrize(
    ("rows", "options", "parts"),
    [
        ([{"txt": "a", "label": 0}], "", ["x.jsonl: no column 'text'", "did you mean 'txt'", "text="]),
        ([{"text": "a", "y": 0}], "", ["no column 'label'", "columns: text, y", "label="]),
        (GOOD, "?group=doc", ["no column 'doc'", "group="]),
        (GOOD, "?language=lang", ["no column 'lang'", "language="]),
        (GOOD, "?text=body", ["no column 'body'", "text="]),
        (GOOD, "?template={texte}", ["unknown field 'texte'", "known fields: text, label"]),
        (GOOD, "?template={label} {text}", ["shows the label column"]),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], "", ["all rows have the label '1'", "two classes"]),
        ([*GOOD, {"text": None, "label": 1}], "", ["line 3", "'text' is missing (NaN)"]),
        ([*GOOD, '{"text": NaN, "label": 1}'], "", ["line 3", "'text' is missing (NaN)"]),
        ([*GOOD, "", {"text": "  ", "label": 1}], "", ["line 4", "'text' is empty"]),
        ([*GOOD, {"label": 1}], "", ["line 3", "'text' is missing"]),
        ([*GOOD, {"text": ["a"], "label": 1}], "", ["line 3", "holds a list, not text"]),
        ([*GOOD, {"text": True, "label": 1}], "", ["line 3", "holds a bool, not text"]),
        ([*GOOD, '{"text": "\\ud800", "label": 1}'], "", ["line 3", "surrogate"]),
        ([*GOOD, {"text": "c"}], "", ["line 3", "the label is missing"]),
        ([*GOOD, {"text": "c", "label": None}], "", ["line 3", "the label is missing"]),
        ([*GOOD, {"text": "c", "label": " "}], "", ["line 3", "the label is missing"]),
        ([*GOOD, {"text": "c", "label": 0.37}], "", ["line 3", "0.37 looks continuous"]),
        ([*GOOD, {"text": "c", "label": "1"}], "", ["line 3", "a str among labels of kind int"]),
        ([*GOOD, {"text": "c", "label": [1]}], "", ["line 3", "a list is not a label"]),
        ([{"text": str(i), "label": i} for i in range(51)], "", ["51 different labels look continuous", "positive="]),
        (GOOD, "?positive=2", ["positive='2' is no label", "labels: 0, 1"]),
        ([{**r, "g": None} for r in GOOD], "?group=g", ["line 1", "'g' is missing"]),
        ([*GOOD, "{bad"], "", ["line 3: invalid JSON"]),
        ([*GOOD, '{"text": "a", "text": "b", "label": 1}'], "", ["line 3", "'text' stands twice"]),
        ([*GOOD, "[1]"], "", ["line 3: a list, not an object"]),
        ([], "", ["x.jsonl: is empty"]),
        (["", "  "], "", ["x.jsonl: is empty"]),
        (GOOD, "?config=a", ["unknown option 'config'"]),
        (GOOD, "?template={text} Good?&answers=a,b,c", ["3 words for 2 classes"]),
    ],
)
def test_jsonl_mistakes(tmp_path: Path, rows: list[Any], options: str, parts: list[str]) -> None:
    message = fails(f"{jsonl(tmp_path, rows)}{options}", *parts)
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"text,label\n", ["has a header but no rows"]),
        (b"text,label\na,0\nb,1,2\n", ["line 3: 3 fields where the header has 2", "quote"]),
        (b"text,label\na,0\n\"b\nc\",1\nd\n", ["line 5: 1 fields"]),
        (b'text,label\na,0\n"b,1\n', ["invalid CSV"]),
        (b"text,label,text\na,0,b\n", ["column 'text' appears twice"]),
        (b"text,label\na,0\n,1\n", ["line 3", "'text' is missing"]),
        (b"text,label\na,0\nb,NaN\n", ["line 3", "label is missing"]),
        (b"text,label\na,0\nb,\n", ["line 3", "label is missing"]),
        (b"text,label\na\xc3\xa9,0\nb\xff,1\n", ["line 3: byte 18 is not UTF-8", "save the file as UTF-8"]),
        (b"", ["is empty"]),
        (b'""', ["holds empty fields and nothing else"]),
    ],
)  # fmt: skip
def test_csv_mistakes(tmp_path: Path, data: bytes, parts: list[str]) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    fails(str(path), str(path), *parts)


def test_parquet_mistakes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 not parquet PAR1")
    fails(str(path), str(path), "not a readable Parquet file")
    foreign = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"b"]).buffers())  # bytes that are called text
    pq.write_table(pa.table({"text": foreign, "label": [0, 1]}), path)
    fails(str(path), str(path), "not a readable Parquet file ('utf-8' codec can't decode")
    pq.write_table(pa.table({"text": ["a", None], "label": [0, 1]}), path)
    fails(str(path), f"{path}: row 2", "'text' is missing")
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0.0, float("nan")]}), path)
    fails(str(path), f"{path}: row 2", "label is missing")
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), path)
    fails(str(path), "no rows")


def test_unreadable_and_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    fails(str(folder), "is a folder", f"hf:{folder}")
    other = tmp_path / "x.xlsx"
    other.write_text("a")
    fails(str(other), "unknown kind '.xlsx'", ".jsonl")
    path = jsonl(tmp_path, GOOD)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails(str(path), f"{path}: cannot be read (Permission denied)", "permissions")


def test_limit_that_loses_a_class(tmp_path: Path) -> None:
    # One group holds all of class 1 and is larger than the limit allows.
    rows = [{"text": f"t{i}", "label": int(i < 10), "g": "big" if i < 10 else i} for i in range(20)]
    fails(f"{jsonl(tmp_path, rows)}?group=g", "leaves 1 of 2 classes", "raise limit=", limit=4)
    fails("halueval", "limit=0 is too small", limit=0)
