"""Two recordings compared: planted agreement, planted differences, and a yardstick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing.store import save_trace
from moescope.routing.trace import RoutingTrace, TracedSequence

E, L, K, N, T = 16, 6, 4, 40, 30


def recording(seed: int = 0) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((N * T, L, E)) + np.linspace(0, 0.5, E), -1)[..., :K]  # some experts are more popular
    return RoutingTrace(
        layers=tuple(range(L)),
        n_experts=(E,) * L,
        ids=ids.astype(np.uint8),
        weights=None,
        sequence=np.repeat(np.arange(N, dtype=np.int32), T),
        position=np.tile(np.arange(T, dtype=np.int32), N),
        generated=np.tile(np.arange(T) >= 20, N),
        tokens=rng.integers(0, 99, N * T).astype(np.int32),
        sequences=tuple(TracedSequence(f"p{n}") for n in range(N)),
        meta={"model": "planted"},
    )


def noisy(trace: RoutingTrace, share: float, from_layer: int = 0, seed: int = 1) -> RoutingTrace:
    """A recording in which, from a layer on, a share of the tokens has one other expert."""
    rng = np.random.default_rng(seed)
    ids = trace.ids.copy()
    for layer in range(from_layer, L):
        for row in np.flatnonzero(rng.random(len(ids)) < share):
            free = np.setdiff1d(np.arange(E), ids[row, layer])
            ids[row, layer, rng.integers(K)] = rng.choice(free)
    return replace(trace, ids=ids)


def outcomes(result: moescope.StudyResult) -> list[str]:
    return [claim.outcome for claim in result.claims]


def test_the_same_recording() -> None:
    a = recording()
    result = moescope.agreement(a, a, noisy(a, 0.05))
    assert outcomes(result)[:2] == ["holds", "holds"]
    assert result.claims[0].measured == 1
    assert result.claims[2].measured == "none"
    shuffled = replace(a, ids=a.ids[:, :, ::-1])  # an order is no set
    assert moescope.agreement(a, shuffled).claims[3].measured == 1


def test_two_that_have_nothing_in_common_but_popularity() -> None:
    a, b = recording(), recording(1)
    result = moescope.agreement(a, replace(b, tokens=a.tokens))
    assert result.claims[0].outcome == "contradicted"
    assert result.claims[0].explanation == "chance"
    layers = result.table("layers")
    assert (layers["shared"] - layers["chance"]).abs().max() < 0.02
    assert layers["chance"].min() > K / E + 0.01  # popularity alone makes more than a uniform router's


@pytest.mark.parametrize(("share", "outcome"), [(0.05, "holds"), (0.6, "contradicted")])
def test_beside_a_yardstick(share: float, outcome: str) -> None:
    a = recording()
    result = moescope.agreement(a, noisy(a, share), noisy(a, 0.05, seed=2))
    assert result.claims[0].outcome == "holds"
    assert result.claims[1].outcome == outcome
    assert result.claims[0].measured == pytest.approx(1 - share / K, abs=0.01)
    assert moescope.agreement(a, noisy(a, share)).claims[1].outcome == "not tested"


def test_where_they_part() -> None:
    a = recording()
    result = moescope.agreement(a, noisy(a, 0.3, from_layer=3))
    assert result.claims[2].measured == 3
    layers = result.table("layers")
    assert (layers["shared"][:3] == 1).all()
    assert layers["first"].tolist() == pytest.approx([0, 0, 0, 0.3, 0.3 * 0.7, 0.3 * 0.49], abs=0.03)
    assert layers["first"].sum() + result.claims[3].measured == pytest.approx(1)


def test_a_text_that_goes_another_way_is_compared_up_to_there() -> None:
    a = recording()
    b = noisy(a, 0.0)
    tokens = b.tokens.copy()  # type: ignore[union-attr]
    tokens[25] += 1  # in the first sequence, whose later tokens stand in another text
    ids = b.ids.copy()
    ids[25:T] = recording(5).ids[25:T]
    b = replace(b, tokens=tokens, ids=ids)
    result = moescope.agreement(a, b)
    row = result.table("sequences").iloc[0]
    assert (row["compared"], row["left_out"], row["shared"]) == (25, 5, 1)
    assert any("5 tokens are in one trace alone" in note for note in result.meta["notes"])
    # without token ids all that stands in one place is compared
    assert moescope.agreement(replace(a, tokens=None), b).table("sequences")["compared"].sum() == N * T
    fewer = a.select(range(0, N, 2))
    assert moescope.agreement(fewer, a).table("sequences")["compared"].sum() == N * T / 2


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = recording()
    with pytest.raises(InputError, match="its layers are"):
        moescope.agreement(a, a.select(layers=[0, 1]))
    with pytest.raises(InputError, match="no token of it is in A"):
        moescope.agreement(a, replace(a, sequences=tuple(TracedSequence(f"q{n}") for n in range(N))))
    for name, trace in (("a", a), ("b", noisy(a, 0.2)), ("c", noisy(a, 0.2, seed=3))):
        save_trace(trace, tmp_path / name)
    main(
        [
            "trace",
            "compare",
            *(str(tmp_path / n) for n in "ab"),
            "--yardstick",
            str(tmp_path / "c"),
            "--out",
            str(tmp_path / "r"),
        ]
    )
    assert "as well as two recordings" in capsys.readouterr().out
    result = moescope.load(tmp_path / "r")
    assert result.kind == "agreement"
    assert (tmp_path / "r" / "figures" / "layers.png").is_file()
    assert "yardstick" in result.table("layers")
