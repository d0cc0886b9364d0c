"""`moescope trace` and `moescope coverage` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moescope.cli import main
from moescope.routing.store import load_trace


def prompts(path: Path) -> str:
    rows = [{"id": f"p{n}", "text": "once upon a time " * (n + 1), "category": "story"} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_record_read_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = prompts(tmp_path / "p.jsonl"), tmp_path / "t"
    main(["trace", "moe-tiny", "--prompts", source, "--new-tokens", "3", "--out", str(out), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["sequences"], facts["generated"], facts["experts"], facts["top_k"]) == (3, 6, 16, 4)
    assert facts["meta"]["gating"] == "softmax; top-k of the scores"
    table = tmp_path / "t.parquet"
    main(["trace", "--read", str(out), "--parquet", str(table)])
    assert f"tokens       {facts['tokens']}" in capsys.readouterr().out
    assert len(pd.read_parquet(table)) == facts["tokens"] * 5 * 4
    assert "--overwrite" in fails(["trace", "moe-tiny", "--prompts", source, "--out", str(out)], capsys)
    main(["trace", "moe-tiny", "--prompts", source, "--new-tokens", "0", "--no-token-ids", "--out", str(out), "--overwrite"])
    again = load_trace(out)
    assert again.tokens is None
    assert not again.generated.any()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_trace_is_replaced_only_by_a_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import moescope.routing.store as store_module

    monkeypatch.chdir(tmp_path)
    source, out = prompts(tmp_path / "p.jsonl"), tmp_path / "moescope-out" / "trace-moe-tiny"
    again = ["trace", "moe-tiny", "--overwrite", "--new-tokens", "2", "--prompts", source]
    main(["trace", "moe-tiny", "--new-tokens", "0", "--prompts", source])
    (out / "mine.txt").write_text("mine")
    before = contents(out)
    for place in (["--overwrite"], ["--out", str(out), "--overwrite"]):  # the default folder, and one that is named
        for mistake in (["moe-tiney"], ["dense-tiny"], ["--vllm", "none.npy", "--experts", "4"]):
            fails(["trace", *mistake, "--prompts", source, *place], capsys)
            assert contents(out) == before
    fails([*again[:-1], str(tmp_path / "none.jsonl")], capsys)
    assert contents(out) == before

    real, calls = store_module.trace_prompts, []

    def dying(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store_module, "trace_prompts", dying)
    with pytest.raises(SystemExit) as exit_:
        main(again)
    assert exit_.value.code == 130
    assert contents(out) == before
    main(again)
    assert int(load_trace(out).generated.sum()) == 3
    assert (out / "mine.txt").read_text() == "mine"
    assert [path.name for path in out.parent.iterdir()] == ["trace-moe-tiny"]


def test_an_export_replaces_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, table = prompts(tmp_path / "p.jsonl"), tmp_path / "t", tmp_path / "t.parquet"
    record = ["trace", "moe-tiny", "--prompts", source, "--new-tokens", "0", "--out", str(out), "--parquet", str(table)]
    pd.DataFrame({"sequence": [1]}).to_parquet(table)
    foreign = table.read_bytes()
    for options in ([], ["--overwrite"]):
        assert "not an exported trace" in fails([*record, *options], capsys)
    assert table.read_bytes() == foreign
    assert not out.exists()  # said before any work
    table.unlink()
    main(record)
    assert "--overwrite" in fails(["trace", "--read", str(out), "--parquet", str(table)], capsys)
    main(["trace", "--read", str(out), "--parquet", str(table), "--overwrite"])


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.argsort(np.random.default_rng(0).random((9, 2, 16)), -1)[..., :3].astype(np.int16)
    np.save(tmp_path / "r.npy", ids)
    command = ["trace", "--vllm", str(tmp_path / "r.npy"), "--layers", "1-2", "--out", str(tmp_path / "t")]
    assert "--experts" in fails(command, capsys)
    assert "is out of range, the layer has experts 0-3" in fails([*command, "--experts", "4"], capsys)
    assert not (tmp_path / "t").exists()  # nothing half-written
    main([*command, "--experts", "16"])
    found = load_trace(tmp_path / "t")
    assert found.layers == (1, 2)
    np.testing.assert_array_equal(found.ids, ids)


def test_what_does_not_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give one of MODEL, --vllm, --sglang, --llama-cpp, --read" in fails(["trace"], capsys)
    out = str(tmp_path / "t")
    message = fails(["trace", "dense-tiny", "--prompts", prompts(tmp_path / "p.jsonl"), "--out", out], capsys)
    assert "dense-tiny is dense" in message
    assert not (tmp_path / "t").exists()
    assert "--layers: 'x'" in fails(["trace", "--vllm", "r.npy", "--experts", "4", "--layers", "x", "--out", out], capsys)
    assert "not a routing trace" in fails(["trace", "--read", str(tmp_path)], capsys)
    assert "'llama' is not among" in fails(["coverage", "llama"], capsys)


def test_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["coverage", "olmoe", "switch_transformers"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("olmoe                  traced, 4 of 4 layers, 8 experts")
    assert "refused: model type 'switch_transformers' is an encoder-decoder" in lines[1]
    assert lines[2] == "1 of 2 types can be traced"
    main(["coverage", "olmoe", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["supported"] is True
