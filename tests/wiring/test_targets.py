"""Reach of a text and experts to fine-tune: planted routers, planted dependence, planted carriers, and their absence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.reach import even_needed, expert_rates, tokens_needed
from moescope.routing.store import save_trace
from moescope.runtime.targets import load_targets
from tests.planted_routing import CATEGORIES, random_trace

E, K = 16, 4


def router(kind: str) -> np.ndarray:
    weight = {"uniform": np.ones(E), "zipf": 1 / np.arange(1.0, E + 1)}[kind]
    return np.asarray(weight / weight.sum())


def text(
    kind: str, documents: int, seed: Sequence[int], *, alike: float | None = None, dead: Sequence[int] = (), repeat: int = 1
) -> RoutingTrace:
    """Documents of 30 to 90 tokens through one layer.

    Args:
        alike: the smaller, the more a document has experts of its own (Dirichlet); None: tokens are independent.
        dead: experts that are never chosen.
        repeat: each token stands so often in a row, with the same experts: tokens of a document are alike.
    """
    rng = np.random.default_rng(list(seed))
    lengths = rng.integers(30 // repeat, 90 // repeat, documents)
    ids = []
    for n in lengths:
        weight = router(kind) if alike is None else rng.dirichlet(alike * E * router(kind))
        score = rng.gumbel(size=(n, E)) + np.log(np.maximum(weight, 1e-12))
        score[:, list(dead)] = -np.inf
        ids.append(np.repeat(np.argsort(-score, 1)[:, :K], repeat, 0))
    lengths = lengths * repeat
    total = int(lengths.sum())
    return RoutingTrace(
        layers=(2,),
        n_experts=(E,),
        ids=np.concatenate(ids)[:, None].astype(np.uint8),
        weights=None,
        sequence=np.repeat(np.arange(documents, dtype=np.int32), lengths),
        position=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        generated=np.zeros(total, bool),
        tokens=None,
        sequences=tuple(TracedSequence(f"d{n}") for n in range(documents)),
        meta={"model": "planted"},
    )


def enough_after(kind: str, least: int, sure: float, **options: float) -> float:
    """The tokens of fresh text after which every expert has ``least``, in ``sure`` of 300 texts: the truth."""
    pool = text(kind, 1200, (99,), **options)  # type: ignore[arg-type]
    ends = np.searchsorted(pool.sequence, np.arange(1201))
    onehot = np.zeros((len(pool), E), dtype=np.int32)
    np.put_along_axis(onehot, pool.ids[:, 0].astype(int), 1, 1)
    rng, found = np.random.default_rng(5), []
    for _ in range(300):
        order = rng.integers(1200, size=120)
        rows = np.concatenate([np.arange(ends[d], ends[d + 1]) for d in order])
        done = (onehot[rows].cumsum(0) >= least).all(1)
        assert done[-1]
        found.append(int(done.argmax()) + 1)
    return float(np.quantile(found, sure))


@pytest.mark.parametrize(
    ("kind", "options"), [("uniform", {}), ("zipf", {}), ("uniform", {"alike": 0.3}), ("zipf", {"repeat": 10})]
)
def test_the_interval_holds_the_tokens_that_are_needed(kind: str, options: dict[str, float]) -> None:
    truth, inside, points = enough_after(kind, 16, 0.95, **options), [], []
    for seed in range(40):
        trace = text(kind, 40, (seed,), **options)  # type: ignore[arg-type]
        counts, tokens = trace.counts()[:, 0], trace.lengths
        found = tokens_needed(counts, tokens, expert_rates(counts, tokens), 16, 0.95)
        assert found.low <= found.tokens <= found.high
        inside.append(found.low <= truth <= found.high)
        points.append(found.tokens)
    assert np.mean(inside) >= 0.9
    assert np.median(points) == pytest.approx(truth, rel=0.2)


def test_an_even_routers_number_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    chosen = rng.random((2000, 160, E)).argsort(-1)[..., :K]
    onehot = np.zeros((2000, 160, E), bool)
    np.put_along_axis(onehot, chosen, True, -1)
    first = onehot.argmax(1).max(1) + 1  # tokens until all were seen once
    assert even_needed(E, K, 1, 0.95) == pytest.approx(np.quantile(first, 0.95), abs=1)
    second = np.sort(onehot.argmax(1), 1)[:, -3] + 1  # two may be missing
    assert even_needed(E, K, 1, 0.95, spare=2) == pytest.approx(np.quantile(second, 0.95), abs=1)


def test_an_even_router_is_called_one() -> None:
    result = moescope.targets(text("uniform", 120, (1,)))
    this, further, even, carried = result.claims
    assert this.measured == 1
    assert further.outcome == "holds"
    assert (even.outcome, even.explanation) == ("contradicted", "chance")
    assert carried.outcome == "not tested"
    row = result.table("layers").iloc[0]
    assert row["needed"] == pytest.approx(row["even_needed"], rel=0.1)
    assert row["spread"] == pytest.approx(1 - K / E, abs=0.2)


def test_a_lopsided_router_takes_more() -> None:
    result = moescope.targets(text("zipf", 120, (1,)))
    assert result.claims[2].outcome == "holds"
    few = moescope.targets(text("zipf", 4, (1,)), settings=moescope.TargetSettings(least=200))
    assert few.claims[1].outcome == "contradicted"
    assert few.claims[0].measured < 1


def test_no_finite_number_follows_for_an_expert_that_is_never_reached() -> None:
    result = moescope.targets(text("uniform", 60, (1,), dead=[3]))
    row = result.table("layers").iloc[0]
    assert (row["unseen"], row["fewest"], row["reached"]) == (1, 0, E - 1)
    assert np.isnan(row["needed"])
    assert np.isnan(row["needed_high"])
    assert row["needed_low"] > row["even_needed"]
    assert result.claims[1].measured == "no finite number of tokens follows"
    assert result.claims[1].outcome != "holds"
    assert result.claims[2].outcome == "holds"
    assert result.artifacts["targets"].unreached == {"2": [3]}
    spared = moescope.targets(text("uniform", 60, (1,), dead=[3]), settings=moescope.TargetSettings(share=0.9))
    assert spared.claims[1].outcome == "holds"  # one in sixteen may be missing


def test_one_rare_document_is_no_certainty() -> None:
    trace = text("uniform", 60, (1,), dead=[3])
    ids = trace.ids.copy()
    ids[trace.sequence == 7, 0, 0] = 3  # and there all the time
    result = moescope.targets(replace(trace, ids=ids))
    row = result.table("layers").iloc[0]
    assert row["fewest"] > 29  # many tokens, of one document
    assert row["needed_high"] / row["needed_low"] > 20
    assert row["new"] == 0
    assert result.claims[1].outcome == "inconclusive"


FAST = moescope.TargetSettings(n_permutations=199, least=4)


def test_planted_carriers_are_found() -> None:
    trace = random_trace(30, planted={(3, "code"): (5, 9), (4, "math"): (1,)}, strength=0.6, templates=30)
    result = moescope.targets(trace, settings=FAST)
    carriers = result.table("carriers")
    told = carriers[carriers["carries"]]
    assert {(r["layer"], r["expert"], r["category"]) for _, r in told.iterrows()} == {
        (3, 5, "code"),
        (3, 9, "code"),
        (4, 1, "math"),
    }
    assert (told["lift"] > 2).all()
    assert (told["p_tokens"] <= 0.05).all()
    claims = {c.statement.split()[3]: c for c in result.claims[3:]}
    assert claims["code"].outcome == "holds"
    assert claims["code"].explanation == "none found"
    assert claims["story"].outcome in ("contradicted", "inconclusive")
    found = result.artifacts["targets"]
    assert found.domains["code"].experts == {"3": [5, 9]}
    assert found.domains["story"].experts == {}
    assert found.domains["all"].target_parameters == []  # a trace does not name parameters


def test_no_carriers_where_none_are_planted() -> None:
    wrong = held = 0
    for seed in range(8):
        result = moescope.targets(random_trace(16, templates=16, seed=seed), settings=FAST)
        wrong += bool(result.table("carriers")["carries"].any())
        held += sum(c.outcome == "holds" for c in result.claims[3:])
    assert wrong <= 1
    assert held <= 1


def test_what_the_tokens_explain_is_said_to_be_so() -> None:
    result = moescope.targets(random_trace(30, lexical=True, templates=30), settings=FAST)
    carriers = result.table("carriers")
    assert carriers["carries"].any()
    assert (carriers["p_tokens"] > 0.05).all()
    for claim in result.claims[3:]:
        assert (claim.outcome, claim.explanation) == ("holds", "trivial cue")
    assert result.table("domains")["token_gap"].abs().max() < 1e-9  # each token has its experts, wherever it stands
    bare = moescope.targets(replace(random_trace(30, lexical=True, templates=30), tokens=None), settings=FAST)
    assert "not run: the tokens' identity" in bare.claims[3].words


def test_texts_and_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f'{{"text": "{word} {n} of this text", "category": "{c}"}}'
        for n in range(6)
        for c, word in (("a", "one"), ("b", "two"))
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    arguments = ["targets", "moe-tiny", "--text", str(tmp_path / "t.jsonl"), "--permutations", "79", "--least", "1"]
    main([*arguments, "--out", str(out)])
    assert "even router" in capsys.readouterr().out
    found = load_targets(out / "targets")
    assert found.domains["all"].target_parameters[:2] == ["layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.down_proj"]
    assert (out / "targets" / "lora" / "all" / "adapter_config.json").is_file()
    assert (out / "figures" / "reach.png").is_file()
    assert (out / "figures" / "carriers.png").is_file()
    (tmp_path / "t.txt").write_text("One text that stands alone.\n\nAnother one.\n\nAnd a third.\n")
    plain = moescope.targets("moe-tiny", tmp_path / "t.txt")
    assert plain.meta["documents"] == 3
    assert plain.claims[3].outcome == "not tested"


def test_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = random_trace(6)
    with pytest.raises(InputError, match="a trace has texts of its own"):
        moescope.targets(trace, ["a", "b"])
    with pytest.raises(InputError, match="all of it is one document"):
        moescope.targets(trace.select([0]))
    with pytest.raises(InputError, match="39 draws cannot show anything"):
        moescope.targets(trace, settings=moescope.TargetSettings(n_permutations=39))
    renamed = tuple(replace(s, category="all" if s.category == "code" else s.category) for s in trace.sequences)
    with pytest.raises(InputError, match="a category is called 'all'"):
        moescope.targets(replace(trace, sequences=renamed))
    with pytest.raises(InputError, match="is dense"):
        moescope.targets("dense-tiny")
    with pytest.raises(InputError, match="other layers or numbers of experts than the trace"):
        moescope.targets(trace, settings=moescope.TargetSettings(names="moe-tiny"))
    save_trace(trace, tmp_path / "trace")
    main(["targets", str(tmp_path / "trace"), "--permutations", "159", "--out", str(tmp_path / "r")])
    assert "so parameters are not named" in capsys.readouterr().out
    assert moescope.load(tmp_path / "r").table("domains")["category"].tolist() == list(CATEGORIES)
