"""Fine-tuning a conversion against the original: it helps, only the best state is kept, and nothing of it leaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import moescope.studies.convert.finetune as finetuning
from moescope.cli import main
from moescope.errors import InputError
from moescope.models import load
from moescope.studies.convert.build import build_model
from moescope.studies.convert.distillation import distance
from moescope.studies.convert.finetune import finetune, untouched
from moescope.studies.convert.settings import ConvertSettings
from moescope.studies.convert.student import Fixed, TopK, route
from moescope.studies.convert.text import read_tuning_windows
from moescope.study.result import StudyResult
from moescope.tasks import plain_text
from tests.made_conversions import SOURCES, conversion, converted, source, windows

pytest.importorskip("peft")

SMALL: dict[str, Any] = {"experts": 20, "active": 5, "method": "random", "window": 64, "calibration_tokens": 2048}
SMALL |= {"heldout_tokens": 512, "speed": False, "controls": False, "refit": False}
SMALL |= {"finetune": 10, "finetune_rank": 8, "finetune_lr": 3e-3}

TINY: dict[str, Any] = {"experts": 8, "active": 3, "speed": False, "controls": False, "window": 32}
TINY |= {"calibration_tokens": 1024, "heldout_tokens": 128, "finetune_rank": 4, "refit": False}


def tune(model: Any, steps: int = 4, rate: float | None = 3e-3, seed: int = 0, rank: Any = 4, held: int = 1) -> tuple[Any, Any]:
    """The tuned result of a tiny source model on random windows, and the conversion it began from; ``held`` 0: windows that
    train validate too, so that a step is taken."""
    made = converted(model)
    _, counts, target, found = made
    settings = ConvertSettings(finetune=steps, finetune_lr=rate, finetune_rank=rank)

    def choices() -> list[TopK]:
        return [TopK(split, router, counts.active - counts.shared) for split, router in found.chosen]

    return finetune(model, target, choices, windows(12, 32), windows(8, 32, seed=held), settings, seed), made


@pytest.fixture(scope="module")
def dense() -> Any:
    return load("dense-tiny", head=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune") / "out"


@pytest.fixture(scope="module")
def weights(dense: Any) -> dict[str, torch.Tensor]:
    """The original's, from before anything was trained."""
    return {name: tensor.clone() for name, tensor in dense.module.state_dict().items()}


@pytest.fixture(scope="module")
def result(dense: Any, weights: dict[str, torch.Tensor], folder: Path) -> StudyResult:
    return conversion(dense, folder, **SMALL)


def test_it_helps_on_held_out_text(result: StudyResult) -> None:
    frontier = result.table("frontier").set_index(["kind", "active"])
    assert frontier.loc[("tuned", 5), "kl"] < 0.85 * frontier.loc[("converted", 5), "kl"]
    assert frontier.loc[("tuned", 5), "perplexity"] < 0.85 * frontier.loc[("converted", 5), "perplexity"]


def test_what_is_claimed_is_of_the_tuned_model(result: StudyResult, folder: Path) -> None:
    claims = {c.statement: c for c in result.claims}
    frontier = result.table("frontier").set_index(["kind", "active"])["rise"]
    assert claims["perplexity rises by no more than 5.0%"].measured == frontier["tuned", 5]
    assert claims["rise in perplexity before fine-tuning"].measured == frontier["converted", 5]
    equality = claims["all experts active: relative difference of the logits"]
    assert equality.measured <= 1e-4
    assert "before fine-tuning" in equality.words
    assert abs(frontier["tuned", 20]) > 1e-4  # the tuned model is not the original, however many experts are active
    card = (folder / "README.md").read_text()
    assert "fine-tuned against the dense model" in card
    assert "No weight was trained" not in card
    assert "fine-tuning: 10 steps, LoRA of rank 8" in card
    recipe = json.loads((folder / "results.json").read_text())["meta"]
    assert len({recipe["text"][part]["source"] for part in ("fine-tuning", "held-out")}) == 2
    history = result.table("finetuning")
    assert (
        history["validation"].iloc[0]
        > history["validation"].min()
        == claims["fine-tuning: KL(original ‖ converted) on validation text"].measured
    )
    assert "frontier" in result.figures
    result.figure("frontier")


def test_the_original_is_untouched(dense: Any, weights: dict[str, torch.Tensor], result: StudyResult) -> None:
    after = dense.module.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert not any(p.requires_grad for p in dense.module.parameters())
    assert "lora" not in repr(dense.module).lower()
    assert result.meta["tuned"]


def test_the_checkpoint_is_a_plain_one(dense: Any, result: StudyResult, folder: Path) -> None:
    written = load_file(folder / "model.safetensors")
    assert not [name for name in written if "lora" in name or "choice" in name]
    for name, tensor in dense.module.state_dict().items():
        assert ".mlp." in name or torch.equal(written[name], tensor)  # attention, norms and embeddings are the source's own
    assert not [p for p in folder.rglob("*") if "adapter" in p.name]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    config = model.config
    assert config.routed_scaling_factor == config.num_experts_per_tok == 4
    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    _, gates, _ = model.model.layers[2].mlp.gate(x)
    assert (gates - 1).abs().max() < 1e-3


@pytest.mark.parametrize("name", SOURCES)
def test_what_was_trained_is_what_is_written(name: str, tmp_path: Path) -> None:
    """The student with its switched neurons, and the checkpoint as plain transformers loads it, give the same logits."""
    model = source(name)
    tuned, (built, counts, target, found) = tune(model, rate=1e-2, held=0)
    assert tuned.module is not None
    layers = [(split, choice.router()) for (split, _), choice in zip(found.chosen, tuned.choices, strict=True)]
    build_model(model, target, counts, layers, module=tuned.module).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = windows(48, 2, seed=2).ids
    untuned = built(ids).logits
    route(tuned.module, target, tuned.choices)
    with torch.no_grad():
        student, written = tuned.module(ids).logits, loaded(ids).logits
    # where two scores are all but equal, float32 does not tell them apart in the checkpoint's scale
    assert (_relative(student, written) < 1e-3).float().mean() > 0.8
    assert (_relative(untuned, written) > 1e-2).float().mean() > 0.95  # or the bound above would say nothing


def _relative(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """(B, L): of every token's logits."""
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def test_every_weight_of_the_mlps_can_be_trained(tmp_path: Path) -> None:
    model = source("qwen2")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    tuned, _ = tune(model, rank="full")
    changed = {name for name, tensor in tuned.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".mlp." in name}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    model.module.to(torch.bfloat16)
    model.dtype = torch.bfloat16
    with pytest.raises(InputError, match="give dtype=fp32, or a rank"):
        conversion(model, tmp_path / "full", **(TINY | {"finetune_rank": "full"}), finetune=2)
    conversion(model, tmp_path / "lora", **TINY, finetune=2, finetune_lr=3e-3)
    written = load_file(tmp_path / "lora" / "model.safetensors")
    assert {t.dtype for name, t in written.items() if "e_score" not in name} == {torch.bfloat16}


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (tune(source("llama"), seed=seed)[0] for seed in (0, 0, 1))
    for one, two in zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(first.choices, second.choices, strict=True):
        assert torch.equal(one.weight, two.weight)
    assert first.after == second.after != other.after


def test_the_best_state_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten looks the third is best: what is merged is the state of that step, not of the last."""
    values = iter([1.0, 0.9, 0.8, 0.5, *[0.7] * 7])
    states: list[list[torch.Tensor]] = []

    def validate(run: Any, _windows: Any) -> float:
        states.append([p.detach().clone() for choice in run.choices for p in choice.parameters()])
        return next(values)

    monkeypatch.setattr(finetuning._Run, "validate", validate)
    tuned, _ = tune(source("llama"), steps=10)
    assert (tuned.best_step, tuned.after, tuned.before) == (3, 0.5, 1.0)
    weights = [p for choice in tuned.choices for p in choice.parameters()]
    for found, best, last in zip(weights, states[3], states[-1], strict=True):
        assert torch.equal(found, best)
        assert not torch.equal(found, last)


def test_what_does_not_help_is_not_written(tmp_path: Path) -> None:
    out = conversion(source("llama"), tmp_path / "tuned", **TINY, finetune=3, finetune_lr=0.3)
    plain = conversion(source("llama"), tmp_path / "plain", **TINY)
    one, two = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("tuned", "plain"))
    assert one == two
    assert not out.meta["tuned"]
    claims = {c.statement: c for c in out.claims}
    assert "the untuned model is kept" in claims["fine-tuning: KL(original ‖ converted) on validation text"].words
    assert claims["perplexity rises by no more than 5.0%"].measured == plain.claims[1].measured
    assert "did not improve" in (tmp_path / "tuned" / "README.md").read_text()


def test_controls_are_tuned_alike(tmp_path: Path) -> None:
    out = conversion(source("llama"), tmp_path / "out", **(TINY | {"controls": True}), finetune=3, finetune_lr=3e-3)
    frontier = out.table("frontier").set_index(["kind", "active"])["rise"]
    assert {"tuned", "random tuned", "static tuned"} <= set(frontier.index.get_level_values(0))
    assert list(frontier["random tuned"].index) == list(frontier["static tuned"].index) == [3]
    claims = {c.statement: c for c in out.claims}
    assert claims["perplexity rises by no more than 5.0%"].control.value == frontier["random tuned", 3]
    assert "fine-tuned alike: random split" in claims["perplexity rises by no more than 5.0%"].words
    assert set(out.table("finetuning")["kind"]) == {"tuned", "random tuned", "static tuned"}


def test_tuning_begins_where_the_refit_ends(tmp_path: Path) -> None:
    looks = {}
    for refit in (False, True):
        folder = tmp_path / str(refit)
        out = conversion(source("llama"), folder, **(TINY | {"refit": refit, "controls": True}), finetune=1, finetune_lr=1e-4)
        table = out.table("finetuning")
        looks[refit] = table[table["step"] == 0].set_index("kind")["validation"]
    assert (looks[True] != looks[False]).all()


def test_the_original_tuned_alike_stays_itself(dense: Any) -> None:
    model = source("llama")
    target = converted(model)[2]
    settings = ConvertSettings(finetune=3, finetune_lr=3e-3)
    assert untouched(model, target, windows(8, 32), settings, 0) == 0

    def every() -> list[Fixed]:
        return [Fixed(torch.ones(64)) for _ in range(model.n_layers)]

    assert finetune(model, target, every, windows(12, 32), windows(8, 32, seed=1), settings, 0).module is None


def test_divergence_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finite number at step \d+ with a learning rate of 1e\+30.*finetune_lr=1e\+29"):
        conversion(source("llama"), tmp_path / "out", **TINY, finetune=4, finetune_lr=1e30)
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]  # the layers that are split
    monkeypatch.setattr(finetuning, "RATES", (1e30, 1e-3))
    tuned, _ = tune(source("llama"), steps=10, rate=None)
    assert tuned.rate == 1e-3  # the rate that diverged when tried is not taken


def test_interruption_leaves_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning._Run, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conversion(source("llama"), tmp_path / "out", **TINY, finetune=2)
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]  # the layers that are split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--finetune", "0"], "--finetune: must be at least 1, got 0"),
        (["--finetune=-3"], "--finetune: must be at least 1, got -3"),
        (["--finetune", "5", "--finetune-rank", "0"], "--finetune-rank: must be at least 1 or full, got 0"),
        (["--finetune", "5", "--finetune-lr", "0"], "--finetune-lr: must be above 0, got 0"),
        (["--finetune-lr", "0.1"], "without --finetune STEPS"),
        (["--finetune-text", "short.txt"], "without --finetune STEPS"),
        (["--finetune", "5", "--finetune-text", "short.txt"], "at least 16 are needed"),
        (["--finetune", "5", "--finetune-text", "absent.txt"], "absent.txt: no such file"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too little to learn from.\n" * 20)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "dense-tiny", "-o", "out", "--calibration-tokens", "2048", "--no-speed", *options])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.strip().count("\n") == 0
    assert not Path("out").exists()


def test_without_peft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'moescope\[finetune\]'"):
        conversion(source("llama"), tmp_path / "out", **TINY, finetune=2)
    assert not list(tmp_path.iterdir())  # said before the work


def test_held_out_paragraphs_are_not_trained_on(dense: Any, tmp_path: Path) -> None:
    paragraphs = plain_text()
    text = tmp_path / "everything.txt"
    text.write_text("\n".join(paragraphs))
    settings = ConvertSettings(finetune=10**6, window=64)
    training, validation = read_tuning_windows(dense, text, None, None, settings, 256, 10**9, 0)
    held = len(paragraphs) - int(len(paragraphs) * 0.75)
    assert f"less {held} paragraphs that are held out" in training.source
    first, last = (dense.tokenizer(p, add_special_tokens=False)["input_ids"][5:25] for p in (paragraphs[0], paragraphs[-1]))
    rows = torch.cat([training.ids, validation.ids]).tolist()
    assert any(_within(first, row) for row in rows)
    assert not any(_within(last, row) for row in rows)
    assert not {tuple(row) for row in training.ids.tolist()} & {tuple(row) for row in validation.ids.tolist()}


def _within(part: list[int], row: list[int]) -> bool:
    return any(row[i : i + len(part)] == part for i in range(len(row) - len(part) + 1))


def test_the_choice_is_hard_forwards_and_soft_backwards() -> None:
    _, counts, _, found = converted(source("llama"))
    split, router = found.chosen[0]
    choice = TopK(split, router, 2)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    factor = choice(x)
    width = 64 // counts.experts
    assert torch.equal(factor.detach().round(), factor.detach().clamp(0, 1).round())
    assert ((factor.detach() > 0.5).sum(1) == 3 * width).all()
    assert (factor.detach()[:, split.shared] == 1).all()
    scores = x @ router.weight.T + router.bias
    best = torch.zeros(len(x), 7).scatter_(1, scores.topk(2, 1).indices, 1.0)
    assert torch.allclose(factor.detach()[:, split.routed].mean(-1), best, atol=1e-6)
    out = int(scores[0].topk(3).indices[2])  # the first expert that was left out by the first token
    factor[0, split.routed[out]].sum().backward()
    assert choice.bias.grad is not None
    assert choice.bias.grad[out] > 0
    assert choice.bias.grad.count_nonzero() == 1


def test_distance() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randn(2, 5, 7, generator=draw) for _ in range(2))
    states = [torch.randn(2, 5, 4, generator=draw) for _ in range(3)]
    same = distance(one, one, states, states)
    assert same.logits == same.hidden == 0
    found = distance(one, two, [s * 1.1 for s in states], states)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=two), torch.distributions.Categorical(logits=one)
    ).mean()
    assert found.logits == pytest.approx(float(expected), rel=1e-5)
    assert found.hidden == pytest.approx(0.01, rel=1e-4)
    # one token's massive activation weighs no more than any other's error
    states[0][0, 0] *= 1e4
    assert distance(one, two, [s * 1.1 for s in states], states).hidden == pytest.approx(0.01, rel=1e-4)
