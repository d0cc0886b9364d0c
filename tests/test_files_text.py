"""Files as people bring them: any encoding and packing, JSON and tables by what they hold, and what is no text by name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from moescope.errors import InputError, Note
from moescope.files.text import lines, read_text
from moescope.intervene.held_out import paragraphs_of
from moescope.routing.engines import EngineModel, import_vllm
from moescope.studies.distill.layer_data import read_texts
from moescope.tasks import load_prompts, load_task
from moescope.tasks.passages import load_passages

TEXTS = [f"text number {i} is {'quite nice' if i % 2 else 'rather poor'}" for i in range(20)]
CSV = "text,label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(TEXTS))
JSONL = "".join(json.dumps({"text": t, "label": i % 2, "category": "ab"[i % 2]}) + "\n" for i, t in enumerate(TEXTS))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def texts_of(path: Path, options: str = "") -> list[str]:
    return [e.text for e in load_task(f"{path}{options}").examples]


def made(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refused(path: Path, *parts: str, options: str = "") -> None:
    with pytest.raises(InputError) as caught:
        load_task(f"{path}{options}")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.csv.gz", "x.jsonl.bz2", "x.jsonl.xz", "packed.csv"])
def test_encodings_and_packing(tmp_path: Path, encoding: str, name: str) -> None:
    data = (CSV if "csv" in name else JSONL).encode(encoding)
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(name.rsplit(".", 1)[1])
    pack = gzip.compress if name == "packed.csv" else pack  # packed without saying so
    task = load_task(str(made(tmp_path / name, pack(data) if pack else data)))
    assert [e.text for e in task.examples] == TEXTS
    assert task.name == name.partition(".")[0]


def test_every_reader_takes_the_same_path(tmp_path: Path) -> None:
    rows = gzip.compress(JSONL.encode("utf-16"))
    assert [p.text for p in load_prompts(made(tmp_path / "p.jsonl.gz", rows))] == TEXTS
    assert [p.text for p in load_passages(made(tmp_path / "q.jsonl", rows))] == TEXTS
    plain = gzip.compress("\r\n\r\n".join(TEXTS).encode("utf-16"))
    assert read_texts(made(tmp_path / "a.txt", plain)) == TEXTS
    assert paragraphs_of(tmp_path / "a.txt").texts == TEXTS
    ids = [[[0, 1], [1, 2]]] * 3  # tokens, layers, k
    answers = "".join(json.dumps({"id": f"r{i}", "routed_experts": ids}) + "\n" for i in range(2))
    for n, data in enumerate((answers.encode("utf-8-sig"), answers.encode("utf-16"), gzip.compress(answers.encode()))):
        trace = import_vllm(made(tmp_path / f"answers{n}.jsonl", data), EngineModel(4))
        assert (len(trace.sequences), len(trace), trace.ids[0].tolist()) == (2, 6, ids[0])


def test_western_text_is_read_with_a_note(tmp_path: Path) -> None:
    text = CSV.replace("number 3", "café “3”")
    path = made(tmp_path / "x.csv", text.encode("cp1252"))
    with pytest.warns(Note, match=r"x\.csv: line 5: byte \d+ is not UTF-8; read as Windows-1252"):
        assert "café “3”" in texts_of(path)[3]
    assert "café “3”" in texts_of(path, "?encoding=cp1252")[3]
    refused(path, "unknown", options="?encoding=klingon")


def test_other_encodings_are_not_guessed(tmp_path: Path) -> None:
    chinese = CSV.replace("text number", "这部电影很好看而且")
    path = made(tmp_path / "x.csv", chinese.encode("gbk"))
    refused(path, "line 2: byte", "is not UTF-8", "encoding")
    assert texts_of(path, "?encoding=gbk")[0].startswith("这部电影")
    # UTF-8 with one broken letter is not Latin-1
    refused(made(tmp_path / "y.csv", CSV.replace("nice", "né").encode() + b"last \xff,1\n"), "line 22: byte")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (POINTER, ["Git-LFS pointer", "git lfs pull"]),
        (b"%PDF-1.7 ...", ["PDF"]),
        (b"<!DOCTYPE html><html>", ["HTML page"]),
        (b"\n<html><body>404", ["HTML page"]),
        (b"\x80\x04\x95abc", ["pickle"]),
        (b"PAR1....", ["Parquet", ".parquet"]),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", [".xls"]),
        (b"text,label\na,0\nb\x00c,1\n", ["line 3", "NUL"]),
        (gzip.compress(CSV.encode())[:-20], ["cut short"]),
        (b"", ["is empty"]),
        (b" \r\n \r\n", ["is empty"]),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes, parts: list[str]) -> None:
    refused(made(tmp_path / "x.csv", data), *parts)


def test_archives_are_named(tmp_path: Path) -> None:
    for member, part in (("a.csv", "zip archive"), ("xl/workbook.xml", "Office file")):
        with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
            archive.writestr(member, CSV)
        refused(made(tmp_path / "x.csv", packed.getvalue()), part)


def test_pointers_in_place_of_data(tmp_path: Path) -> None:
    refused(made(tmp_path / "x.parquet", POINTER), "Git-LFS pointer")
    (tmp_path / "set").mkdir()
    made(tmp_path / "set" / "train.csv", POINTER)
    with pytest.raises(InputError, match=r"train\.csv: is a Git-LFS pointer"):
        load_task(f"hf:{tmp_path / 'set'}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", JSONL),
        ("x.ndjson", JSONL),
        ("x.jsonl", json.dumps([json.loads(line) for line in JSONL.splitlines()])),
        ("x.json", json.dumps([json.loads(line) for line in JSONL.splitlines()], indent=1)),
        ("x.json", json.dumps({"text": TEXTS, "label": [0, 1] * 10})),
        ("x.json", json.dumps({"text": dict(enumerate(TEXTS)), "label": dict(enumerate([0, 1] * 10))})),
        ("x.json", json.dumps({"data": [json.loads(line) for line in JSONL.splitlines()]}, indent=1)),
        ("x.csv", CSV.replace("\n", "\r")),
        ("x.jsonl", JSONL.replace("\n", "\r")),
        ("x.csv", CSV + "\n\n  \n,\n,\n"),
        ("x.csv", CSV.replace(",", ";")),
        ("x.csv", CSV.replace(",", "\t")),
        ("x.tsv", CSV),
    ],
)  # fmt: skip
def test_the_same_rows_in_other_shapes(tmp_path: Path, name: str, text: str) -> None:
    assert texts_of(made(tmp_path / name, text)) == TEXTS


def test_quotes_between_tabs_are_text(tmp_path: Path) -> None:
    texts = list(TEXTS)
    texts[3], texts[10] = '"an odd start , says one critic', 'and here it ends with a quote"'
    texts[12] = '"all of it is said"'
    table = "sentence\tlabel\n" + "".join(f"{t}\t{i % 2}\n" for i, t in enumerate(texts))
    assert texts_of(made(tmp_path / "glue.tsv", table), "?text=sentence") == texts
    assert texts_of(made(tmp_path / "glue.csv", table), "?text=sentence") == texts  # between tabs, whatever it is called


def test_a_stray_quote_does_not_swallow_rows(tmp_path: Path) -> None:
    rows = CSV.splitlines(keepends=True)
    rows[4] = '"an odd start,1\n'
    rows[9] = 'its end",0\n'
    refused(made(tmp_path / "x.csv", "".join(rows)), "line 5", "closed on line 10")
    whole = CSV + '"a text\nof two lines, and a comma\n",1\n'
    assert texts_of(made(tmp_path / "y.csv", whole))[-1] == "a text\nof two lines, and a comma\n"


def test_long_fields(tmp_path: Path) -> None:
    long = "word " * 60_000
    assert texts_of(made(tmp_path / "x.csv", CSV + f'"{long}",1\n'))[-1] == long


def test_nan_is_a_word(tmp_path: Path) -> None:
    path = made(tmp_path / "x.csv", CSV.replace(TEXTS[7], "nan"))
    with pytest.warns(Note, match=r"line 9: the text is 'nan'"):
        assert texts_of(path)[7] == "nan"
    refused(made(tmp_path / "y.csv", CSV + "more,nan\n"), "line 22", "label is missing")


def test_whole_numbers_written_as_floats(tmp_path: Path) -> None:
    path = made(tmp_path / "x.csv", CSV.replace(",0\n", ",0.0\n").replace(",1\n", ",1.0\n"))
    assert load_task(str(path)).classes == ("0", "1")
    assert load_task(f"{path}?positive=0").classes == ("1", "0")


def test_a_language_is_used_when_asked_for(tmp_path: Path) -> None:
    path = made(
        tmp_path / "x.csv", CSV.replace("label\n", "label,language\n").replace(",0\n", ",0,de\n").replace(",1\n", ",1,en\n")
    )
    with pytest.warns(Note, match="column 'language' is not used; add language=language"):
        assert {e.language for e in load_task(str(path)).examples} == {None}
    assert {e.language for e in load_task(f"{path}?language=language").examples} == {"de", "en"}


def test_windows_paths_are_paths() -> None:
    with pytest.raises(InputError, match=r"no folder C:\\new\\train"):
        load_task(r"sst2?path=C:\new\train")
    with pytest.raises(InputError, match=r"C:\\data\\texts.csv: no such file"):
        load_task(r"x=C:\data\texts.csv?text=body")


def test_lines_end_in_three_ways_only(tmp_path: Path) -> None:
    assert lines("a\r\nb\rc\nd\u2028e\x0bf") == ["a", "b", "c", "d\u2028e\x0bf"]
    assert read_text(made(tmp_path / "x", "a\r\nb")) == "a\r\nb"
