"""The guide for architects: it is what its files say, and its formulas count what they say they count."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.routing.drawn import uniform_ids
from tools.architects import PAGE, Published, divided, enough, page, published


def test_the_page_is_what_its_files_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/architects.py"


def test_every_configuration_has_a_source_and_fits() -> None:
    found = published()
    assert len(found) >= 8
    for one in found:
        assert one.source.startswith("https://")
        assert 0 < one.active <= one.experts
        assert one.experts % one.groups == 0
        assert 0 < one.router < 0.02 < one.running < 1


def drawn(one: Published, devices: int, tokens: int = 20_000) -> float:
    """Other devices that hold an expert of a token, where it chooses uniformly among the groups it may reach."""
    rng, pool = np.random.default_rng(0), one.experts // one.groups * one.reached
    ids = np.empty((tokens, one.active), np.int64)
    uniform_ids(np.full(tokens, one.active), pool, 1, ids)
    chosen = rng.permuted(np.tile(np.arange(one.groups), (tokens, 1)), axis=1)[:, : one.reached]
    size = one.experts // one.groups
    expert = np.take_along_axis(chosen, ids // size, axis=1) * size + ids % size
    at, home = expert // (one.experts // devices), rng.integers(devices, size=tokens)
    return float(np.mean([len({*row} - {own}) for row, own in zip(at.tolist(), home.tolist(), strict=True)]))


@pytest.mark.parametrize("devices", [8, 32])
@pytest.mark.parametrize("name", ["OLMoE-1B-7B", "DeepSeek-V2", "DeepSeek-V3"])
def test_a_token_reaches_as_many_devices_as_the_formula_says(name: str, devices: int) -> None:
    one = next(p for p in published() if p.name == name)
    expected = one.spread(devices)
    assert expected is not None
    assert drawn(one, devices) == pytest.approx(expected, rel=0.02)
    assert expected <= min(devices - 1, one.active)


def test_experts_that_do_not_divide_evenly_have_no_figure() -> None:
    assert Published(name="m", source="", width=8, experts=8, active=2, expert_width=4, shared=0).spread(32) is None


def test_a_finer_layer_pays_more_for_its_router_and_a_low_rank_needs_few_active() -> None:
    shares = [{router: share for router, _, share in divided(width)} for width in (512, 64, 1)]
    assert shares[0]["full"] < 0.05 < shares[1]["full"] < shares[2]["full"]
    assert min(shares[2], key=lambda name: shares[2][name]) == "product-key"
    assert enough(10_000, 4) == 208  # the example of docs/theory.md
    assert enough(10_000, 4) < enough(10_000, 64)
