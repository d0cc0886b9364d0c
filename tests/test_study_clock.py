"""The clock: turns, ratios, and a model that reads token after token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from moescope.study import clock
from tests.made_conversions import source


def test_each_turn_begins_with_another_contender_and_the_first_turns_are_not_kept() -> None:
    called: list[str] = []

    def call(name: str) -> float:
        called.append(name)
        return float(len(called))

    told: list[int] = []
    names: dict[str, Callable[[], float]] = {name: partial(call, name) for name in "abc"}
    found = clock.in_turns(names, 3, warm=2, told=told.append)
    assert "".join(called) == "bcacababcbcacab"
    assert found["a"].tolist() == [7.0, 12.0, 14.0]
    assert told == [1, 2, 3, 4, 5]


def test_where_time_is_up_no_turn_begins_but_those_that_an_interval_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def slow() -> float:
        now[0] += 1.0
        return 1.0

    assert len(clock.in_turns({"a": slow}, 20, seconds=3)["a"]) == clock.FEWEST
    assert len(clock.in_turns({"a": slow}, 20, seconds=9.5)["a"]) == 9
    assert len(clock.in_turns({"a": slow}, 20)["a"]) == 20


def test_a_ratio_is_of_what_stands_within_a_turn_and_no_stall_moves_it() -> None:
    slower = np.array([1.0, 1.1, 3.0, 1.0, 1.2, 1.0, 1.1, 1.0, 1.3])  # the machine's own pace
    noise = 1 + 0.01 * np.array([1, -1, 0, 2, -2, 0, 1, -1, 0])
    value, low, high = clock.ratio(2.0 * slower, slower * noise)
    assert value == pytest.approx(2.0, rel=0.01)
    assert 1.95 < low < value < high < 2.05
    own = slower * noise
    own[4] *= 50  # one contender in one turn
    assert clock.ratio(2.0 * slower, own)[1] > 1.95
    assert np.isnan(clock.ratio(slower[:5], slower[:5])[1:]).all()


def test_text_is_read_one_token_a_step_with_cold_caches_before_each() -> None:
    model = source("llama").module
    read: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    before: list[int] = []
    text = torch.tensor([[5, 9, 30, 4, 7, 8]])
    work = clock.Workload("", 1, 4, 2)
    times = clock.decoding(model, work, text=text, before=lambda: before.append(len(read)))
    assert read == [[5, 9, 30, 4], [7], [8]]
    assert before == [0, 1, 2]
    assert len(times) == 2
    read.clear()
    assert len(clock.decoding(model, clock.Workload("", 1, 4, 0))) == 1
    assert [len(ids) for ids in read] == [4]
    handle.remove()


def test_more_is_read_than_a_cache_holds() -> None:
    assert clock.Cold(torch.device("cpu")).size >= 2 * clock._last_cache()
