"""A plan is what the run then takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import moescope
from moescope.cli import main
from moescope.models import load as load_model
from moescope.models.blueprint import blueprint
from moescope.models.forward_tokens import ForwardTokens
from moescope.planning import plan, plan_series
from moescope.study.run import Run
from tests.architectures import save_tiny
from tools.plan import PAGE, RESULT, page

PAGES = Path(__file__).parents[1] / "docs" / "plan"
QUICK: dict[str, Any] = {"n_permutations": 99, "n_label_permutations": 0, "n_random": 20, "ks": (2,), "k": 3}


def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(2 * q[0] * q[1] * q[2] * k[-2] * (q[-1] + v[-1]))


def counted(model: Any, ids: torch.Tensor) -> int:
    """FLOPs of the body, as torch counts them while it runs."""
    known: Any = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as mode:
        model.body(input_ids=ids)
    return int(mode.get_total_flops())


def test_forward_tokens_are_those_of_the_run() -> None:
    task, run, settings = (
        "certainty=halueval",
        Run(limit=60, seed=3),
        moescope.CircuitSettings(**QUICK, few_shot="mood=uci-sentiment"),
    )
    found = plan("circuits", "dense-tiny", {"tasks": [task]}, settings, run, flop_s=1e12)
    read = moescope.circuits("dense-tiny", [task], settings, run=run).meta["forward_tokens"]
    assert found.forward_tokens == {name: read[name] for name in ("main", "template", "twin", "few shot")}
    without = moescope.CircuitSettings(**QUICK, twin=False)
    assert "twin" not in plan("circuits", "dense-tiny", {"tasks": [task]}, without, run, flop_s=1e12).forward_tokens


def test_every_model_of_a_series_is_counted_as_it_is_read(tmp_path: Path) -> None:
    tasks, run, models = ["certainty=halueval"], Run(limit=40), [str(save_tiny(tmp_path / "tiny")), "dense-tiny"]
    settings = moescope.ScalingSettings(n_folds=3)
    found = plan_series("scaling", models, {"tasks": tasks}, settings, run, flop_s=1e12)
    read = moescope.scaling(models, tasks, settings, run=run).meta["forward_tokens"]
    together = found.together()
    assert together["forward_tokens"] == {name: read[name] for name in ("main", "twin")}
    assert together["flops"] == sum(one.flops for one in found.models)
    assert together["peak_bytes"] == max(one.peak_bytes for one in found.models)
    without = plan_series("scaling", models, {"tasks": tasks}, moescope.ScalingSettings(twin=False), run, flop_s=1e12)
    assert [*without.together()["forward_tokens"]] == ["main"]


def test_a_series_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "certainty=halueval", "--limit", "40", "--flops", "1e9"]
    main(["plan", "scaling", str(save_tiny(tmp_path / "tiny")), "dense-tiny", *task])
    said = capsys.readouterr().out
    assert "model        tiny: " in said
    assert "one model after the other" in said
    main(["plan", "dynamics", "dense-tiny", "--revision", "step-1", "--revision", "step-2", *task, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["together"]["flops"] == 2 * found["models"][0]["flops"] > 0


@pytest.mark.parametrize("more", [{}, {"act": True, "risk": 0.6, "delta": 0.2, "n_resplits": 1, "n_random": 39}])
def test_passes_of_naming_and_acting_are_counted(more: dict[str, Any]) -> None:
    """The first layers of all texts; for acting, all layers of them once more; and every pass on the clock."""
    tasks, run = ["certainty=halueval", "mood=uci-sentiment"], Run(limit=60)
    settings = moescope.RouteSettings(unknown=0.2, timed_texts=2, **more)
    planned = plan("route", "dense-tiny", {"tasks": tasks}, settings, run, flop_s=1e12).forward_tokens
    model, tokens = load_model("dense-tiny"), ForwardTokens()
    with tokens.of(model, "all"):
        moescope.route(model, tasks, settings, run=run)
    ran, least = tokens.totals()["all"], sum(planned.values())
    least -= planned.get("the mixed stream on the clock", 0)  # which is the most that it comes to
    assert 0.9 * least < ran < 1.05 * sum(planned.values())
    assert ("all layers" in planned) == bool(more)
    assert planned["first layers"] < planned.get("all layers", 1e9)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tokens", [7, 200])
def test_flops_are_those_that_torch_counts(rows: int, tokens: int) -> None:
    model = load_model("dense-tiny")
    assert blueprint("dense-tiny").flops(rows, tokens) == pytest.approx(
        counted(model, torch.ones(rows, tokens, dtype=torch.long)), rel=0.01
    )


def test_of_experts_the_chosen_ones_count() -> None:
    made, model = blueprint("moe-tiny"), load_model("moe-tiny")
    experts = sum(p.numel() for name, p in model.body.named_parameters() if p.dim() == 3)
    config = model.config
    idle = experts * (1 - config.num_experts_per_tok / config.num_experts)
    assert made.active == pytest.approx(sum(p.numel() for p in model.body.parameters()) - idle, rel=1e-6)
    table = config.vocab_size * config.hidden_size
    assert made.flops(1, 1) == pytest.approx(2 * (made.active - table), rel=0.02)
    assert made.coordinates["resid"] == model.n_layers * model.d_model


@pytest.mark.parametrize(
    ("name", "parameters", "active", "layers"), [("llama-405b", 405.9e9, 403.8e9, 126), ("deepseek-671b", 671.0e9, 36.6e9, 61)]
)
def test_a_config_alone_will_do(name: str, parameters: float, active: float, layers: int) -> None:
    made = blueprint(PAGES / f"{name}.json")
    assert made.parameters == pytest.approx(parameters, rel=1e-3)
    assert made.active == pytest.approx(active, rel=1e-3)
    assert made.model.n_layers == layers
    assert made.held.nbytes == pytest.approx(parameters * (2 if name == "llama-405b" else 1), rel=1e-3)
    assert not made.weighed


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path)
    main(["plan", "circuits", str(tmp_path), "--task", "certainty=halueval", "--limit", "40", "--flops", "1e9", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["flop_s"] == 1e9
    assert found["seconds"] == pytest.approx(found["flops"] / 1e9)
    assert found["peak_bytes"] == sum(found["memory"].values())
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    main(["plan", "circuits", str(tmp_path), "--task", "certainty=halueval", "--limit", "40", "--flops", "1e9"])
    said = capsys.readouterr().out
    assert f"{found['parameters']:,} parameters" in said
    assert "from a config alone" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "dense-tiny"], "'nothing' is no command that it knows; there is atlas, "),
        (["circuits", "dense-tiny", "--task", "certainty=halueval", "--flops", "-1"], "--flops: must be above 0"),
        (["circuits", "dense-tiny", "--task", "certainty=halueval", "--k", "0"], "--k: must be at least 1"),
        (["signatures", "--trace", "somewhere"], "give MODEL, one that is to be run"),
        (["circuits", "no/where/at/all", "--task", "certainty=halueval"], "no folder, no embedded name"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *arguments])
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_what_a_study_of_mlps_holds_beside_the_model_is_counted() -> None:
    """Of the embedded model: 6 layers, width 256, 640 neurons, 4,096 words, numbers of four bytes."""

    def memory(command: str, settings: Any) -> dict[str, int]:
        return plan(command, "dense-tiny", {}, settings, Run(), flop_s=1e12).memory

    whole, streams = 4 * 5_180_672, 4 * 256 * 10_000
    bare = memory("convert", moescope.ConvertSettings(refit=False, controls=False))
    assert "refit" not in bare
    assert bare["copies"] == 2 * whole  # in memory, and read again
    found = memory("convert", moescope.ConvertSettings(calibration_tokens=10_000))
    assert found["copies"] == 5 * whole
    # dense and wanted, three students, and five of the one at work; normal equations; three kinds' projections in float32
    assert found["refit"] == 10 * streams + 8 * (4 * 640**2 + 3 * 640 * 256) + 3 * 6 * 640 * 256 * 4
    longer = memory("convert", moescope.ConvertSettings(calibration_tokens=20_000))
    assert longer["refit"] - found["refit"] == 10 * streams
    timed, untimed = (memory("sparsify", moescope.SparsifySettings(speed=on)) for on in (True, False))
    assert untimed["loops"] == 0 < timed["loops"]
    assert {name: n for name, n in timed.items() if name not in ("loops", "program")} == {
        name: n for name, n in untimed.items() if name not in ("loops", "program")
    }
    assert "copies" not in memory("sparsify", moescope.SparsifySettings())


def test_the_page_is_what_was_measured() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/plan.py"
    for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]:
        planned, measured = row["planned"], row["measured"]
        assert planned["flops"] == pytest.approx(measured["flops"], rel=0.2), row["command"]
        assert planned["peak_bytes"] == pytest.approx(measured["peak_bytes"], rel=0.2), row["command"]
