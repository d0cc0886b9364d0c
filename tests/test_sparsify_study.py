"""A study of neuron choice from end to end: what is counted, written, and said."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.intervene.held_out import read_windows
from moescope.intervene.quality import Contender, Quality, compare, few_bits
from moescope.models import load
from moescope.models.gated import gated_mlps
from moescope.models.rounding import nested
from moescope.models.sparse import put_sparse, reference, sparse_mlps
from moescope.runtime.planes import Loops
from moescope.studies.sparsify import cost, methods, speed
from moescope.studies.sparsify.calibration import Calibrated, Seen, even, greedy
from moescope.studies.sparsify.claims import recommend, sparsify_claims
from moescope.studies.sparsify.cost import Shape
from moescope.studies.sparsify.settings import PLAIN, Format, SparsifySettings
from moescope.studies.sparsify.speed_claims import speed_claims
from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.made_conversions import source

SMALL = {"share": 0.5, "choose": 4, "bits": 6, "shares": (0.5,), "rivals": ("oracle", "gate-first", "wina"), "window": 64}
SMALL |= {"calibration_tokens": 1024, "heldout_tokens": 1024, "speed": False}


@pytest.fixture(scope="module")
def result() -> StudyResult:
    """The embedded model on little text."""
    return moescope.sparsify("dense-tiny", settings=SparsifySettings(**SMALL))


# What is counted


def test_bytes_are_those_of_the_formulas() -> None:
    shape = Shape(576, 1536)
    for share, bits, choose in ((0.5, 8, 4), (0.25, 6, 3), (1.0, 5, 5)):
        nested_planes = 2 / 3 * (choose + 0.5) / 16 + share * (2 / 3 * (bits - choose) + 1 / 3 * (bits + 0.5)) / 16
        assert cost.by_planes(shape, share, bits, choose) == pytest.approx(nested_planes + 1 / (3 * 576))
    assert cost.plain(shape, 8, 8) == pytest.approx(8.5 / 16)
    assert cost.plain(shape, 4, 5) == pytest.approx((2 * 4.5 + 5.5) / 48)


def test_bytes_are_those_that_are_read() -> None:
    """Against what a token reads of a layer of 64 neurons and width 32, counted one neuron after another."""
    d, neurons, bits, choose, working = 32, 64, 6, 3, 16
    row = d * bits + 16 * d // 32  # bits of one neuron's row of any matrix, with its scales
    whole = 3 * neurons * d * 16
    shape = Shape(d, neurons)
    planes = neurons * (2 * (d * choose + 16) + 16) + working * (2 * d * (bits - choose) + row)
    assert cost.by_planes(shape, working / neurons, bits, choose) == pytest.approx(planes / whole)
    gate_first = neurons * (row + 16) + working * 2 * row
    assert cost.by_first(shape, working / neurons, bits, norms=True) == pytest.approx(gate_first / whole)
    assert cost.by_first(shape, working / neurons, bits, norms=False) == pytest.approx((gate_first - 16 * neurons) / whole)
    assert cost.by_oracle(shape, working / neurons, bits) == pytest.approx(3 * working * row / whole)
    columns = 8  # of gate and up: a weight and its part of a scale, of every neuron
    inputs = 2 * columns * neurons * row / d + working * row
    assert cost.by_inputs(shape, columns / d, working / neurons, bits) == pytest.approx(inputs / whole)


def test_a_file_of_few_bits_says_what_its_mlps_take(tmp_path: Path) -> None:
    from moescope.models import gguf

    (tmp_path / "moescope.json").write_text('{"format": 2, "quantisation": "Q4_1", "mlp_bits": 5.0}')
    assert gguf.mlp_bits(tmp_path) == 5.0
    for content in ('{"format": 2, "quantisation": "Q4_1"}', '{"format": 2, "mlp_bits": "x"}', '{"format": 2, "mlp_bits": -1}'):
        (tmp_path / "moescope.json").write_text(content)
        assert gguf.mlp_bits(tmp_path) is None


def test_a_plan_counts_what_is_read() -> None:
    model, read = source("llama"), [0]

    def count(module: Any, args: Any, options: dict[str, Any]) -> None:
        read[0] += options["input_ids"].numel()

    handle = model.module.register_forward_pre_hook(count, with_kwargs=True)
    settings = SparsifySettings(**SMALL | {"share": None, "budgets": "greedy"})
    moescope.sparsify(model, settings=settings)
    handle.remove()
    planned = settings.forward_tokens(len(PLAIN))
    assert set(planned) == {"calibration", "validation", "held-out"}
    # one line is what was written, which is another module
    assert sum(planned.values()) - settings.heldout_tokens == pytest.approx(read[0], rel=0.1)


# What chooses


def test_ways_of_choosing_are_what_they_are_called() -> None:
    model = source("llama")
    layers = methods.coded(gated_mlps(model), 8)
    layer, x = layers[0], torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    g, u = layer.gate.prefix() @ x.T, layer.up.prefix() @ x.T
    a, norms = torch.nn.functional.silu(g).T, layer.down.prefix().norm(dim=1)
    given: Any = (0, layer, x, *layer.parts(x))
    assert torch.allclose(methods.by_oracle(*given), (a * u.T).abs() * norms, atol=1e-5)
    assert torch.allclose(methods.by_gate(*given), a.abs() * norms, atol=1e-5)
    assert torch.allclose(methods.by_planes(8)(*given), methods.by_oracle(*given), atol=1e-5)
    assert not torch.allclose(methods.by_planes(2)(*given), methods.by_oracle(*given), atol=1e-2)
    teal = methods.beyond_thresholds([0.5], [0.1])
    assert torch.equal(teal(0, layer, x, "gate"), (x.abs() >= 0.5).float())
    assert torch.equal(teal(0, layer, x, "down"), (x.abs() >= 0.1).float())
    wina = methods.by_column_norms(layers, 0.25)(0, layer, x, "up")
    score = x.abs() * layer.up.prefix().norm(dim=0)
    assert (wina.sum(1) == 8).all()
    assert (score[wina == 1].view(6, -1).amin(1) >= score[wina == 0].view(6, -1).amax(1)).all()


def test_turned_inputs_that_are_all_kept_give_what_the_layer_gives() -> None:
    model = source("llama")
    layers = methods.coded(gated_mlps(model), 8)
    axes = [torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(n))).Q for n in range(len(layers))]
    turned = methods.Rotated(layers, axes, methods.turned(layers, axes, 8), 1.0)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    dense = model.module.model.layers[0].mlp(x)  # type: ignore[union-attr, index]
    assert (turned.run(0, x) - dense).norm() < 0.02 * dense.norm()
    assert turned.share("inputs") == turned.share("neurons") == 1


def test_axes_are_the_principal_ones_of_the_input() -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1, 2.0])
    axes = Seen(moments=(x.T @ x).double()).axes
    assert axes.abs().argmax(0).tolist() == [1, 3, 0, 2]


def test_modules_run_as_before_once_a_way_is_left() -> None:
    model = source("llama")
    layers = methods.coded(gated_mlps(model), 2)
    ids = torch.arange(20)[None]
    before = model.module(ids).logits
    with methods.replaced(methods.ByNeuron(layers, methods.by_oracle, [5] * len(layers))):
        assert not torch.equal(model.module(ids).logits, before)
    assert torch.equal(model.module(ids).logits, before)
    assert all("forward" not in vars(layer.mlp.module) for layer in layers)


def test_greedy_budgets_leave_neurons_where_leaving_out_costs_more() -> None:
    model = source("llama")
    layers = methods.coded(gated_mlps(model), 8)
    falling = torch.linspace(1, 0.06, 16, dtype=torch.float64)
    seen = [Seen(lost=falling * (10 if number == 1 else 1)) for number in range(len(layers))]
    counts = greedy(layers, Calibrated(seen, [1.0] * len(layers)), 0.5)
    assert counts[1] > max(counts[0], *counts[2:])
    assert abs(sum(counts) - sum(even(layers, 0.5))) <= 64 // 16
    # the same loss of ten times the stream is a tenth of it
    assert greedy(layers, Calibrated(seen, [1.0, 100.0, *[1.0] * (len(layers) - 2)]), 0.5)[1] < counts[1]


# What is said


def quality(name: str, excess: float, *, windows: int = 40) -> Quality:
    values = tuple((excess + 0.002 * np.random.default_rng(len(name)).normal(size=windows)).tolist())
    rise = float(np.expm1(excess))
    return Quality(name, 3 + excess, float(np.exp(3 + excess)), excess, 0.9, rise, rise - 0.001, rise + 0.001, 1000, values)


def claims_of(own: float, **others: float) -> dict[str, Claim]:
    """The claims of a choice that reads 0.33 of the bytes, by their first words."""
    reads = {"8-bit": 0.53, "6-bit": 0.41, "5/6-bit": 0.36, "5-bit": 0.34, "4/5-bit": 0.3, "4-bit": 0.28, "file": 0.31}
    lost = {"8-bit": 0.0, "6-bit": 0.001, "5/6-bit": 0.003, "5-bit": 0.005, "4/5-bit": 0.03, "4-bit": 0.05, **others}
    every = {**lost, "planes 0.5": own, "random 0.5": 2.0, "another token 0.5": 2.0, "oracle 0.5": own}
    found = {name: quality(name, excess) for name, excess in every.items()}
    rows = [
        {"method": n.split(" 0")[0], "share": 0.5 if " " in n else 1.0, "used": 0.5, "bytes": reads.get(n, 0.33)}
        | {"loss": q.loss, "rise": q.rise}
        for n, q in found.items()
    ]
    settings = SparsifySettings(rivals=("oracle",))
    said = sparsify_claims(pd.DataFrame(rows), found, Format(0.5, 4, 6), settings, 1e-6, "window", 0)
    return {c.statement.split(":")[0]: c for c in said}


def test_what_is_recommended_beats_the_plain_weights_that_read_no_more() -> None:
    said = claims_of(0.004)
    assert said["recommendation, that the sparse model is worth having"].measured == "use the sparse model"
    cheaper = said["choosing neurons loses less than plain weights of no more bytes"]
    assert cheaper.control is not None
    assert cheaper.control.name == "4/5-bit weights"
    assert "the least of plain weights that lose no more are 5/6-bit, 36.0%" in cheaper.words


def test_plain_weights_that_read_no_more_and_lose_no_more_are_recommended_instead() -> None:
    said = claims_of(0.004, **{"4/5-bit": 0.004})
    assert said["recommendation, that the sparse model is worth having"].measured == "round the weights instead"
    said = claims_of(0.004, file=0.0)
    assert said["recommendation, that the sparse model is worth having"].measured == "round the weights instead"
    assert said["choosing neurons loses less than plain weights of no more bytes"].control.name == "the file's own codes"  # type: ignore[union-attr]


def test_another_way_is_met_where_it_loses_least_for_no_more_bytes() -> None:
    names = ("planes 0.5", "random 0.5", "another token 0.5", "4-bit", "cats 0.75", "cats 0.5", "cats 0.25")
    lost = dict(zip(names, (0.004, 2.0, 2.0, 0.05, 0.002, 0.02, 0.3), strict=True))
    reads = {"planes 0.5": 0.33, "4-bit": 0.28, "cats 0.75": 0.4, "cats 0.5": 0.32, "cats 0.25": 0.25}
    found = {name: quality(name, excess) for name, excess in lost.items()}
    rows = [
        {"method": n.partition(" 0")[0], "share": float(n.split()[-1]) if " 0" in n else 1.0, "used": 0.5}
        | {"bytes": reads.get(n, 0.2), "loss": q.loss, "rise": q.rise}
        for n, q in found.items()
    ]
    settings = SparsifySettings(rivals=("cats",))
    said = sparsify_claims(pd.DataFrame(rows), found, Format(0.5, 4, 6), settings, 1e-6, "window", 0)
    beside = next(c for c in said if c.statement.endswith("loses less than cats"))
    assert beside.control is not None
    assert (beside.control.name, beside.outcome) == ("cats 0.5", "holds")


def test_too_much_lost_is_said_whatever_else_holds() -> None:
    assert claims_of(0.02)["recommendation, that the sparse model is worth having"].measured == "do not choose so few"


@pytest.mark.parametrize(
    ("kept", "cheaper", "what"),
    [
        ("holds", "holds", "use the sparse model"),
        ("holds", "contradicted", "round the weights instead"),
        ("contradicted", "holds", "do not choose so few"),
        ("inconclusive", "holds", "undecided"),
        ("holds", "inconclusive", "undecided"),
        ("inconclusive", "contradicted", "round the weights instead"),
    ],
)
def test_the_recommendation_follows_from_two_verdicts(kept: Any, cheaper: Any, what: str) -> None:
    assert recommend(Claim("a", 0, outcome=kept), Claim("b", 0, outcome=cheaper), "").measured == what


# On the clock


def timed(
    monkeypatch: pytest.MonkeyPatch, planes: float, *, spread: float = 0.01, by_batch: float = 0.0, **options: Any
) -> StudyResult:
    """A small study whose clock is made: a step of plain weights and the original takes a second, of the choice ``planes`` and
    ``by_batch`` more for each doubling of the batch, and a turn differs from the next by the spread."""
    noise = np.random.default_rng(0)

    def decode(runner: Any, work: Any, text: torch.Tensor, cold: Any) -> float:
        chosen = sparse_mlps(runner.model)  # of all contenders those of what was written, in which others take their place
        with runner.enter():
            if runner.method == "planes":
                assert all(mlp.neurons == round(64 * runner.share) for mlp in chosen)
            else:
                assert [vars(mlp)["forward"].__self__ for mlp in chosen] == [*runner.mlps]
        assert not any("forward" in vars(mlp) for mlp in chosen)
        own = planes + by_batch * np.log2(work.batch) if runner.method == "planes" else 1.0
        return float(own * (1 + spread * noise.normal()))

    monkeypatch.setattr(speed, "_decode", decode)
    monkeypatch.setattr(speed, "Cold", lambda device: lambda: None)
    monkeypatch.setattr(speed, "TURNS", 6)
    settings = SparsifySettings(**SMALL | {"speed": True, "bits": 8, "shares": (0.25, 0.5), "rivals": ("oracle",)} | options)
    return moescope.sparsify(source("llama"), settings=settings)


def said(result: StudyResult, part: str) -> Claim:
    return next(c for c in result.claims if part in c.statement)


def test_a_choice_that_is_faster_and_loses_no_more_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timed(monkeypatch, 0.8, margin=1.0)
    told = said(made, "is faster than 8-bit weights at equal quality")
    assert (told.measured, told.outcome) == ("yes", "holds")
    assert made.claims.index(told) == 1
    clock = said(made, "on the clock: choosing 50%")
    assert clock.measured == pytest.approx(1.25, rel=0.03)
    assert clock.interval is not None
    assert clock.interval[0] > 1.1
    assert said(made, "most tokens decoded together").measured == 8
    assert said(made, "on paper").measured < 1e-3


def test_a_choice_that_is_slower_is_not_faster_at_equal_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = timed(monkeypatch, 1.3, margin=1.0)
    told = said(slower, "at equal quality")
    assert (told.measured, told.outcome) == ("no", "contradicted")
    assert "it is not faster" in told.words
    assert said(slower, "most tokens decoded together").measured == 0


@pytest.mark.parametrize(("lost", "what"), [(0.03, "no"), (0.01, "undecided"), (0.002, "yes")])
def test_a_choice_that_loses_more_is_not_of_equal_quality_however_fast(lost: float, what: str) -> None:
    found = {name: quality(name, excess) for name, excess in (("planes 0.5", lost), ("8-bit", 0.0))}
    clock = {"tokens_per_second": 9.0, "over_8_bits": 1.3, "low": 1.28, "high": 1.32, "mlp_gb_per_second": 20.0}
    clock |= {"mlp_over_8_bits": 1.5, "mlp_low": 1.4, "mlp_high": 1.6, "batch": 1, "turns": 9}
    lines = (("planes", 0.5), ("8-bit", 1.0), ("4-bit", 1.0))
    rows = pd.DataFrame([{"method": method, "share": share, **clock} for method, share in lines])
    told = speed_claims(rows, found, Format(0.5, 4, 8), SparsifySettings(), 0, {}, 1e-4)[0]
    assert told.measured == what
    assert ("it loses more, whatever the clock says" in told.words) == (what == "no")


def test_what_the_clock_cannot_tell_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(timed(monkeypatch, 0.99, spread=0.2, margin=1.0), "at equal quality")
    assert (told.measured, told.outcome) == ("undecided", "inconclusive")


def test_the_batch_up_to_which_choosing_pays_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timed(monkeypatch, 0.7, by_batch=0.12, margin=1.0)  # 0.7, 0.82, 0.94, 1.06 of what eight bits take
    assert said(made, "most tokens decoded together").measured == 4


def test_of_lines_without_a_kernel_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timed(monkeypatch, 0.8)
    table = made.table("frontier").set_index(["method", "share"])
    clocked = [*speed.CLOCKED.values()]
    timed_ones = [("original", 1.0), ("8-bit", 1.0), ("4-bit", 1.0), ("planes", 0.5), ("planes", 0.25)]
    assert table.loc[timed_ones, "kernel"].tolist() == ["torch, float32", "8 bits", "4 bits", "4 of 8 bits", "4 of 8 bits"]
    assert table.loc[timed_ones, clocked].notna().all(axis=None)
    others = table.drop(index=timed_ones)
    assert set(others["kernel"]) == {"no kernel"}
    assert others[clocked].isna().all(axis=None)
    assert len(made.table("speed")) == 5 * len(speed.BATCHES)


def test_bits_without_a_kernel_are_named_and_plain_weights_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timed(monkeypatch, 0.8, choose=3, bits=6)
    told = said(made, "at equal quality")
    assert (told.measured, told.outcome) == ("not measured", "not tested")
    assert told.words.startswith("no kernel for 3 of 6 bits")
    assert set(made.table("speed")["method"]) == {"original", "8-bit", "4-bit"}


def test_what_is_timed_is_what_was_written_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the loops, and no other neurons afterwards; loops that give something else are no clock of it."""
    model = source("llama")
    layers = methods.coded(gated_mlps(model), 8)
    written = copy.deepcopy(model.module)
    for mlp, layer in zip(put_sparse(written, [32] * len(layers), 8, 4), layers, strict=True):
        for part, codes in ((mlp.gate_proj, layer.gate), (mlp.up_proj, layer.up), (mlp.down_proj, layer.down)):
            part.take(codes)
    monkeypatch.setattr(speed, "TURNS", 2)
    monkeypatch.setattr(speed, "BATCHES", (1, 2))
    windows = read_windows(model, None, None, SparsifySettings(**SMALL), 512)[1]
    given: Any = (model, gated_mlps(model), written, {0.25: [16] * len(layers), 0.5: [32] * len(layers)}, Format(0.5, 4, 8))
    found = speed.measure(*given, windows)
    assert found["difference"] < 1e-3
    assert all(mlp.execute is reference and mlp.neurons == 32 for mlp in sparse_mlps(written))
    assert all("forward" not in vars(mlp.module) for mlp in gated_mlps(model))
    assert [row["over_8_bits"] for row in found["rows"] if row["method"] == "8-bit"] == [1.0, 1.0]
    monkeypatch.setattr(Loops, "count", lambda self, tokens, few: few // 2)
    with contextlib.suppress(InputError):
        assert speed.measure(*given, windows) is None, "half of the neurons are timed as all of them"
    assert all(mlp.execute is reference for mlp in sparse_mlps(written))


# The whole


def test_a_study_writes_a_model_that_runs_as_it_was_measured(tmp_path: Path) -> None:
    made = moescope.sparsify(source("llama"), settings=SparsifySettings(**SMALL))
    checkpoint = made.artifacts["checkpoint"]
    checkpoint.write(tmp_path)
    model = load(tmp_path, head=True)
    assert [mlp.neurons for mlp in sparse_mlps(model.module)] == made.meta["neurons"] == [32] * model.n_layers
    assert "Recipe" in (tmp_path / "README.md").read_text()
    row = made.table("frontier").query("method == 'planes'").iloc[0]
    assert row["used"] == 0.5
    assert row["bytes"] == pytest.approx(cost.by_planes(Shape(32, 64), 0.5, 6, 4))


def test_tables_hold_every_way_and_plain_format(result: StudyResult) -> None:
    table = result.table("frontier")
    assert set(table["method"]) == {
        *("planes", "oracle", "gate-first", "wina", "random", "another token"),
        *("original", "8-bit", "6-bit", "5/6-bit", "5-bit", "4/5-bit", "4-bit", "3/4-bit", "3-bit"),
    }
    found = table.set_index("method")
    assert found.loc["oracle", "kl"] <= found.loc["planes", "kl"] < found.loc["gate-first", "kl"] < found.loc["random", "kl"]
    assert found.loc["8-bit", "kl"] < found.loc["planes", "kl"]
    layers = result.table("layers")
    assert (layers["captured"] <= layers["oracle"] + 1e-9).all()
    assert (layers["static"] < layers["captured"]).all()
    assert result.meta["unit"] == "window"


def test_a_batch_gives_the_same_whatever_ran_before_it() -> None:
    """So that a run that was cut off draws and counts, on the rest of the text, what it would have."""
    model = source("llama")
    settings = SparsifySettings(**SMALL | {"heldout_tokens": 4096})
    windows = read_windows(model, None, None, settings, 512)[1]
    layers = methods.coded(gated_mlps(model), 6)

    def through(order: int) -> tuple[Quality, float]:
        drawing = torch.Generator().manual_seed(3)
        limits = [9.0 / (1 + layer) for layer in range(len(layers))]
        by_chance = methods.ByNeuron(layers, methods.by_chance(drawing), [32] * len(layers), drawing)
        by_size = methods.ByNeuron(layers, lambda number, layer, x, a, u: (a * u).abs(), [1e-3 * x for x in limits])
        lines = [
            Contender(str(i), model.module, partial(methods.replaced, way), way) for i, way in enumerate((by_chance, by_size))
        ]

        def each(names: Any, compute: Any) -> list[Any]:
            found = dict(compute(list(range(len(names)))[::order]))
            return [found[number] for number in range(len(names))]

        found = compare(model.module, lines, windows, each=each)
        assert by_size.used["neurons"][1] == windows.ids.numel() * 64 * len(layers)
        return found[1], by_size.share("neurons")

    assert len(list(windows.batches(2048))) > 1
    first, second = through(1), through(-1)
    assert first[0] == second[0]
    assert first[1] == pytest.approx(second[1], rel=1e-12)
    assert 0 < first[1] < 1


def test_tasks_are_judged_where_the_original_beats_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"known": ([1] * 40, [1] * 30 + [0] * 10), "coin": ([0, 1] * 20, [1, 0] * 20)}

    def harness(model: int, tasks: Any, **_: Any) -> Any:
        return {
            "samples": {
                t: [{"doc_id": i, "acc": a, "arguments": [0, 0]} for i, a in enumerate(right[t][model])] for t in tasks
            },
            "results": {t: {"acc,none": np.mean(right[t][model])} for t in tasks},
        }

    numbers = iter((0, 1))
    monkeypatch.setattr("moescope.studies.sparsify.study.check_tasks", lambda tasks, include: None)
    monkeypatch.setattr("moescope.studies.sparsify.study.language_model", lambda model, tokenizer: next(numbers))
    monkeypatch.setattr("moescope.study.choice_tasks.run_tasks", harness)
    made = moescope.sparsify(source("llama"), settings=SparsifySettings(**SMALL, eval_task=("known", "coin")))
    assert made.table("tasks")[["original", "sparse", "used"]].values.tolist() == [[1.0, 0.75, True], [0.5, 0.5, False]]
    known, coin = made.claims[-2:]
    assert (known.statement, known.outcome) == ("known: the sparse model is no worse than the original", "contradicted")
    assert coin.outcome == "not tested"


def test_nothing_is_left_where_a_study_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = patch("moescope.studies.sparsify.build.every_neuron", lambda model: few_bits([], 8))
    with broken, pytest.raises(InputError, match="nothing was written"):
        moescope.sparsify(source("llama"), settings=SparsifySettings(**SMALL), run=moescope.Run(out=out))
    assert not out.exists()
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"choose": 6, "bits": 4}, "choose: 6 bits cannot be the first of 4"),
        ({"share": 0.0}, "share: must be"),
        ({"bits": 9}, "bits: must be"),
        ({"rivals": ("none",)}, "rivals: "),
        ({"shares": ()}, "shares: "),
    ],
)
def test_settings_that_cannot_be_are_one_line(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        SparsifySettings(**options)


def test_so_little_text_that_nothing_can_be_shown_is_refused_before_work() -> None:
    few = SparsifySettings(**SMALL | {"heldout_tokens": 512, "calibration_tokens": 1024})
    with pytest.raises(InputError, match="is 8 windows, by which 6 claims cannot be judged together; at least 9"):
        moescope.sparsify(source("llama"), settings=few)


def test_formats_that_are_tried_keep_what_is_given() -> None:
    assert len(SparsifySettings().formats()) == 20
    assert {form.bits for form in SparsifySettings(bits=6).formats()} == {6}
    assert SparsifySettings(choose=5, share=0.4).formats() == [Format(0.4, 5, 6)]
    assert SparsifySettings(bits=3, share=0.4).formats() == [Format(0.4, 3, 3)]
    assert SparsifySettings(choose=2, bits=7, share=0.4).formats() == [Format(0.4, 2, 7)]


def test_documents_are_what_intervals_are_over() -> None:
    model = load("dense-tiny", head=True)
    settings = SparsifySettings(calibration_tokens=2048, heldout_tokens=2048, window=32)
    texts = [f"This is story number {i}, of a child who walks to the river and back. " * 8 for i in range(12)]
    _, judged = read_windows(model, None, texts, settings, 256)
    assert judged.unit == "document"
    assert len(np.unique(judged.groups)) == 12
    assert (np.diff(judged.groups) >= 0).all()
    _, few = read_windows(model, None, texts[:3], settings, 256)
    assert few.unit == "window"
    assert few.groups.tolist() == list(range(len(few)))


def test_few_bits_of_the_down_projection_alone() -> None:
    model = source("llama")
    mlp: Any = gated_mlps(model)[0].module
    gate, down = mlp.gate_proj.weight.clone(), mlp.down_proj.weight.clone()
    with few_bits([mlp], 8, 3):
        assert (mlp.gate_proj.weight - gate).abs().max() < 0.01 * gate.abs().max()
        assert mlp.down_proj.weight.unique().numel() < gate.unique().numel()
        assert (mlp.down_proj.weight - down).abs().max() > 0.05 * down.abs().max()
    assert torch.equal(mlp.down_proj.weight, down)


def test_a_mixture_is_refused_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["sparsify", "moe-tiny", "--quiet"])
    assert left.value.code == 2
    assert "has experts, and neurons are chosen in dense MLPs" in capsys.readouterr().err


def test_codes_of_a_layer_nest() -> None:
    """What the study runs is what :mod:`moescope.models.rounding` codes, down by neuron."""
    mlp = gated_mlps(source("llama"))[0]
    layer = methods.coded([mlp], 6)[0]
    assert torch.equal(layer.down.prefix(), nested(mlp.down.T, 6).prefix())
    assert torch.equal(layer.norms, nested(mlp.down.T, 6).prefix().norm(dim=1))
