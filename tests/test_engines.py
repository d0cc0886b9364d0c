"""What engines write, in their shapes: read as what it is, or refused in one line."""

from __future__ import annotations

import base64
import gzip
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.errors import InputError, Note
from moescope.routing.engines import EngineModel, import_routing, import_sglang, import_vllm
from moescope.routing.load import RoutingLoad, load_load
from moescope.routing.store import load_trace
from moescope.routing.trace import RoutingTrace

E, L, K = 16, 4, 2
MODEL = EngineModel(E)
PROMPT, MADE = 10, 5  # a sixth token was generated and not fed
USAGE = {"prompt_tokens": PROMPT, "completion_tokens": MADE + 1}


def routed(seed: int, tokens: int = PROMPT + MADE) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random((tokens, L, E)), -1)[..., :K].astype(np.int32)


IDS = [routed(seed) for seed in range(3)]


def npy(ids: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, ids)
    return base64.b64encode(file.getvalue()).decode()


def raw(ids: np.ndarray) -> str:
    return base64.b64encode(ids.astype("<i4").tobytes()).decode()


def described(ids: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(ids.astype("<i2").tobytes()).decode()
    return {"encoding": "base64", "dtype": "int16", "shape": list(ids.shape), "data": data}


def write(path: Path, answers: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    text = "\n".join(map(json.dumps, answers)) + "\n"
    path.write_bytes(gzip.compress(text.encode(encoding)) if path.suffix == ".gz" else text.encode(encoding))
    return path


def answers(form: Callable[[np.ndarray], dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": f"c{n}", **form(ids)} for n, ids in enumerate(IDS)]


def split(ids: np.ndarray) -> dict[str, Any]:
    return {"prompt_routed_experts": ids[:PROMPT].tolist(), "choices": [{"routed_experts": ids[PROMPT:].tolist()}]}


FORMS: dict[str, Callable[[np.ndarray], dict[str, Any]]] = {
    "npy in base64": lambda ids: {"choices": [{"routed_experts": npy(ids)}], "usage": USAGE},
    "described": lambda ids: {"choices": [{"routed_experts": described(ids)}], "usage": USAGE},
    "split": lambda ids: split(ids) | {"usage": USAGE},
    "split, described": lambda ids: {
        "prompt_routed_experts": described(ids[:PROMPT]),
        "choices": [{"routed_experts": described(ids[PROMPT:])}],
        "usage": USAGE,
    },
    "split, no usage": split,
    "split, the choice whole": lambda ids: split(ids) | {"choices": [{"routed_experts": ids.tolist()}], "usage": USAGE},
    "sglang": lambda ids: {"text": "x", "meta_info": {**USAGE, "cached_tokens": 0, "routed_experts": raw(ids)}},
    "sglext": lambda ids: {"choices": [{"text": "x"}], "sglext": {"routed_experts": raw(ids)}, "usage": USAGE},
    "sgl_ext of a choice": lambda ids: {"choices": [{"sgl_ext": {"routed_experts": raw(ids)}}], "usage": USAGE},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "encoding"), [("r.jsonl", "utf-8"), ("r.jsonl", "utf-8-sig"), ("r.jsonl.gz", "utf-16")])
def test_every_form_of_an_answer(tmp_path: Path, form: str, name: str, encoding: str) -> None:
    trace = import_routing(write(tmp_path / name, answers(FORMS[form]), encoding), MODEL)
    assert isinstance(trace, RoutingTrace)
    trace.validate()
    np.testing.assert_array_equal(trace.ids, np.concatenate(IDS))
    assert trace.generated.tolist() == ([False] * PROMPT + [True] * MADE) * 3
    assert [s.id for s in trace.sequences] == ["c0", "c1", "c2"]
    assert trace.position.tolist() == list(range(PROMPT + MADE)) * 3


@pytest.mark.parametrize("whole", [False, True])
def test_several_answers_to_one_prompt_count_it_once(tmp_path: Path, whole: bool) -> None:
    lines = []
    for n, ids in enumerate(IDS):
        made = [ids[PROMPT:], routed(9 + n, MADE)]
        choices = [
            {"index": i, "routed_experts": np.concatenate([ids[:PROMPT], m] if whole else [m]).tolist()}
            for i, m in enumerate(made)
        ]
        before = {} if whole else {"prompt_routed_experts": ids[:PROMPT].tolist()}
        usage = {"prompt_tokens": PROMPT, "completion_tokens": 2 * (MADE + 1)}
        lines.append({"id": f"c{n}", "choices": choices, "usage": usage} | before)
    trace = import_routing(write(tmp_path / "r.jsonl", lines), MODEL)
    assert isinstance(trace, RoutingTrace)
    assert trace.validate().lengths.tolist() == [PROMPT + MADE, MADE] * 3
    assert [s.id for s in trace.sequences][:3] == ["c0/0", "c0/1", "c1/0"]
    assert [s.group for s in trace.sequences] == ["c0", "c0", "c1", "c1", "c2", "c2"]
    assert trace.select(["c0/1"]).position.tolist() == list(range(PROMPT, PROMPT + MADE))
    assert (~trace.generated).sum() == 3 * PROMPT
    assert trace.counts().sum() == (3 * PROMPT + 6 * MADE) * L * K
    lines[1]["usage"]["completion_tokens"] += 1
    with pytest.raises(InputError, match=r"line 2: truncated: 20 tokens have experts, but 21 were fed"):
        import_routing(write(tmp_path / "r.jsonl", lines), MODEL)


def test_several_answers_tell_their_prompt_without_usage(tmp_path: Path) -> None:
    choices = [{"routed_experts": ids[PROMPT:].tolist()} for ids in IDS[:2]]
    answer = {"id": "c", "prompt_routed_experts": IDS[0][:PROMPT].tolist(), "choices": choices}
    trace = import_vllm(write(tmp_path / "r.jsonl", [answer]), MODEL)
    assert trace.lengths.tolist() == [PROMPT + MADE, MADE]
    assert trace.generated.sum() == 2 * MADE


def test_the_layers_of_raw_integers(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", answers(FORMS["sglang"]))
    for model in (MODEL, EngineModel(E, top_k=K), EngineModel(E, layers=(1, 2, 5, 7))):
        assert import_sglang(file, model).ids.shape == (45, L, K)
    with pytest.raises(InputError, match=r"top_k: .*no whole number of layers of 3"):
        import_routing(file, EngineModel(E, top_k=3))
    few = [{"id": "a", "meta_info": {"prompt_tokens": 1, "completion_tokens": 1, "routed_experts": raw(routed(0, 1))}}]
    with pytest.raises(InputError, match=r"top_k: .*do not tell"):
        import_routing(write(tmp_path / "few.jsonl", few), EngineModel(256))
    del few[0]["meta_info"]["completion_tokens"]
    with pytest.raises(InputError, match="line 1: raw routed_experts need usage"):
        import_routing(write(tmp_path / "few.jsonl", few), MODEL)


def zeroed(ids: np.ndarray, tokens: slice, layers: slice = slice(None), value: int = 0) -> np.ndarray:
    ids = ids.copy()
    ids[tokens, layers] = value
    return ids


def responses(path: Path, arrays: list[np.ndarray], usage: dict[str, int] | None = USAGE) -> Path:
    items = [{"id": f"c{n}", "choices": [{"routed_experts": npy(ids)}]} for n, ids in enumerate(arrays)]
    return write(path, [item | ({"usage": usage} if usage else {}) for item in items])


def refusal(path: Path, arrays: list[np.ndarray]) -> str:
    """What is said of answers with these experts; nothing where they are read."""
    try:
        import_routing(responses(path, arrays), MODEL)
    except InputError as error:
        return str(error)
    return ""


def test_slots_never_written_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    said = refusal(file, [zeroed(ids, slice(5, 8)) for ids in IDS])
    assert "request c0, tokens 5-7, layers 0-3: expert 0 stands twice" in said
    assert "never written look so (2 more requests" in said
    twice = IDS[1].copy()
    twice[3, 2] = 7
    said = refusal(file, [IDS[0], twice])
    assert "request c1, token 3, layer 2: expert 7 stands twice in one token, which no router does;" in said
    said = refusal(file, [zeroed(ids, slice(None), slice(0, 1)) for ids in IDS])
    assert "layer 0: " in said
    assert "--layers 1-3" in said


@pytest.mark.parametrize("mark", [-1, 255])
def test_tokens_marked_as_not_recorded_are_left_out(tmp_path: Path, mark: int) -> None:
    arrays = [zeroed(ids, slice(5, 8), value=mark) for ids in IDS]
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", Note)
        assert not refusal(tmp_path / "r.jsonl", arrays)
        trace = import_vllm(tmp_path / "r.jsonl", MODEL)
    assert any("9 of 45 tokens are marked as not recorded" in str(w.message) for w in noted)
    assert any("tokens are missing at 3 places" in str(w.message) for w in noted)
    assert trace.validate().select([0]).position.tolist() == [0, 1, 2, 3, 4, *range(8, 15)]
    assert "no token has experts" in refusal(tmp_path / "r.jsonl", [np.full((15, L, K), mark)])


def test_a_padded_last_token(tmp_path: Path) -> None:
    padded = [np.concatenate([ids, np.zeros((1, L, K), np.int32)]) for ids in IDS]
    with pytest.warns(Note, match="a row of noughts after its last token"):
        trace = import_routing(responses(tmp_path / "r.jsonl", padded), MODEL)
    np.testing.assert_array_equal(trace.ids, np.concatenate(IDS))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ids: np.sort(ids, -1), "rising order"),
        (lambda ids: np.repeat(ids[:1], len(ids), 0), "all its 15 tokens have the same experts in every layer"),
        (lambda ids: np.concatenate([ids[:, :1], ids[:, :1], ids[:, 2:]], 1), "layer 1: .*those of the layer before"),
        (lambda ids: np.concatenate([ids[:, :3], np.broadcast_to([3, 5], ids[:, 3:].shape)], 1), "layer 3: all 45 tokens"),
        (
            lambda ids: ids % 4 + 4 * (ids[..., ::-1] % 4 == ids % 4) * np.arange(2),
            "no token was sent to an expert beyond [4-7]",
        ),
    ],
)
def test_what_is_odd_is_said(tmp_path: Path, spoil: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    with pytest.warns(Note, match=words):
        import_routing(responses(tmp_path / "r.jsonl", [spoil(ids) for ids in IDS]), MODEL)


def test_sound_routing_has_nothing_odd(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        import_routing(responses(tmp_path / "r.jsonl", IDS), MODEL)


# --- loads ----------------------------------------------------------------------------------------------------------------


def test_counts_of_the_recorder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, (5, L, E))
    np.savez(tmp_path / "stat.npz", logical_count=counts)
    found = import_routing(tmp_path / "stat.npz", MODEL)
    assert isinstance(found, RoutingLoad)
    np.testing.assert_array_equal(found.counts, counts)
    table = rng.permuted(np.tile(np.arange(E), (L, 1)), axis=1)
    np.savez(tmp_path / "pass.npz", global_physical_count=counts, physical_to_logical_map=table)
    mapped = import_routing(tmp_path / "pass.npz", MODEL)
    assert isinstance(mapped, RoutingLoad)
    for layer in range(L):
        np.testing.assert_array_equal(mapped.counts[:, layer, table[layer]], counts[:, layer])
    with pytest.raises(InputError, match=r"experts: .*has 16 experts a layer, not 8"):
        import_routing(tmp_path / "stat.npz", EngineModel(8))
    np.savez(tmp_path / "bad.npz", logical_count=-counts)
    with pytest.raises(InputError, match="not all whole numbers from 0"):
        import_routing(tmp_path / "bad.npz", MODEL)

    out = str(tmp_path / "load")
    main(["trace", "--sglang", str(tmp_path / "stat.npz"), "--experts", "16", "--out", out])
    assert f"choices      {counts.sum()}" in capsys.readouterr().out
    np.testing.assert_array_equal(load_load(out).counts, counts)
    main(["trace", "--read", out, "--json"])
    assert json.loads(capsys.readouterr().out)["choices"] == counts.sum()
    for wrong in (["signatures", "--trace", out], ["trace", "compare", out, out]):
        with pytest.raises(SystemExit) as stop:
            main([*wrong, "--out", str(tmp_path / "no")])
        assert stop.value.code == 2
        assert "counts of experts without tokens" in capsys.readouterr().err


def test_tables_of_layers_and_experts(tmp_path: Path) -> None:
    rows = [(int(layer), int(expert)) for ids in IDS for token in ids for layer in range(L) for expert in token[layer]]
    want = np.zeros((1, L, E), np.int64)
    for layer, expert in rows:
        want[0, layer, expert] += 1
    for head in ("layer,expert\n", "# a comment\n", "step,layer,expert,weight\n"):
        lines = [f"0,{a},{b},0.5" if "step" in head else f"{a},{b}" for a, b in rows]
        (tmp_path / "moe_trace.csv").write_text(head + "\r\n".join(lines))
        np.testing.assert_array_equal(import_routing(tmp_path / "moe_trace.csv", MODEL).counts, want)  # type: ignore[union-attr]
    counted = "\n".join(f"{a},{b},{want[0, a, b]}" for a in range(L) for b in range(E))
    (tmp_path / "rank0.csv").write_text("layer_id,expert_id,count\n" + counted)
    np.testing.assert_array_equal(import_routing(tmp_path / "rank0.csv", MODEL).counts, want)  # type: ignore[union-attr]
    for text, message in (
        ("layer,expert\n0,1\n0,x\n", "line 3: '0,x' has no whole numbers"),
        ("layer,expert\n0,16\n", "line 2: layer 0, expert 16"),
        ("token,expert\n0,1\n", "line 1: has columns token, expert; it needs layer and expert"),
        ("\n", "is empty"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            import_routing(tmp_path / "bad.csv", MODEL)


def test_an_even_load_looks_even_and_a_bottleneck_not() -> None:
    rng = np.random.default_rng(0)
    even = rng.multinomial(4000, np.full(E, 1 / E), (1, L))
    table = RoutingLoad(tuple(range(L)), E, even).table()
    assert (table["most"] / table["even_most"]).between(0.9, 1.12).all()
    assert (table["effective"] - table["even_effective"]).abs().max() < 0.003
    even[0, 2, 5] += 4000
    found = RoutingLoad(tuple(range(L)), E, even).table().iloc[2]
    assert found["busiest"] == 5
    assert found["most"] > 7 * found["even_most"]
    assert found["effective"] < 0.6


# --- the commands ---------------------------------------------------------------------------------------------------------


def test_check_says_what_is_odd_and_refuses_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = responses(tmp_path / "r.jsonl", IDS)
    main(["trace", "check", str(file), "--experts", "16"])
    assert "odd          nothing" in capsys.readouterr().out
    main(["trace", "--vllm", str(file), "--experts", "16", "--out", str(tmp_path / "t")])
    capsys.readouterr()
    main(["trace", "check", str(tmp_path / "t"), "--json"])
    assert json.loads(capsys.readouterr().out)["odd"] == []
    main(["trace", "check", str(responses(tmp_path / "s.jsonl", [np.sort(ids, -1) for ids in IDS])), "--experts", "16"])
    assert "rising order" in capsys.readouterr().out
    for source, words in (
        (responses(tmp_path / "z.jsonl", [zeroed(ids, slice(5, 8)) for ids in IDS]), "tokens 5-7"),
        (tmp_path / "gone", "no such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["trace", "check", str(source), "--experts", "16"])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["trace", "check", str(file)])
    assert "experts: an imported trace does not say" in capsys.readouterr().err


def test_a_trace_goes_into_a_study(tmp_path: Path) -> None:
    main(["trace", "--vllm", str(responses(tmp_path / "r.jsonl", IDS)), "--experts", "16", "--out", str(tmp_path / "t")])
    result = moescope.agreement(load_trace(tmp_path / "t"), load_trace(tmp_path / "t"))
    assert result.claims[0].measured == 1
