"""The commands on a model folder: what they write, and one line for a user's mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moescope.cli import main
from moescope.runtime.mask import PruneMask
from moescope.study.result import load
from tests.architectures import build, tiny_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in ("olmoe", "llama"):
        build(name, head=True).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ("olmoe", "llama")}


SMALL = ["--alpha", "0.45", "--random", "22", "--text-tokens", "150", "--new-tokens", "2", "--prompts", "routing-80"]


def test_steer_by_hand_by_category_and_like_one(folders: dict[str, Path], tmp_path: Path) -> None:
    edits = ["--ban", "0:1,2:3", "--boost", "1:2=+1.5", "--target", "code", "--ban-top", "math=1", "--like", "story=2"]
    main(["steer", str(folders["olmoe"]), *edits, *SMALL, "--like-text", "ABC def", "--out", str(tmp_path / "out")])
    result = load(tmp_path / "out")
    assert result.kind == "steer"
    experts = result.table("experts").groupby("steering", sort=False)
    names = list(experts.groups)
    assert names[0] == "ban 0:1, ban 2:3, boost 1:2=+1.5"
    assert names[1:] == ["ban the top experts of math", "route like story", "route like the text"]
    assert experts.size().tolist() == [3, 3, 18, 18]
    assert set(result.table("samples")["sample"]) == {"code", "math", "story", "factual"}


def test_ablate_takes_a_circuit_of_a_dense_model(folders: dict[str, Path], tmp_path: Path) -> None:
    circuit = tmp_path / "circuit.json"
    circuit.write_text(json.dumps({"neurons": [{"site": "resid", "layer": 2, "neuron": 5}]}))
    main(["steer", str(folders["llama"]), "--ablate", str(circuit), *SMALL, "--out", str(tmp_path / "out")])
    assert load(tmp_path / "out").table("neurons")["neuron"].tolist() == ["resid:2/5"]


def test_prune_writes_its_mask(folders: dict[str, Path], tmp_path: Path) -> None:
    out = ["--alpha", "0.45", "--random", "22", "--text-tokens", "300", "--ratio", "0.5", "--out", str(tmp_path / "out")]
    main(["prune", str(folders["olmoe"]), *out])
    mask = PruneMask.load(tmp_path / "out" / "mask" / "mask.safetensors")
    assert mask.ratio == 0.5
    assert mask.meta["criterion"] == "reap"


def test_transfer_between_a_mixture_and_a_dense_model(folders: dict[str, Path], tmp_path: Path) -> None:
    draws = ["--alpha", "0.4", "--permutations", "19", "--alignments", "19"]
    options = ["--prompts", "routing-80", *draws, "--out", str(tmp_path / "out")]
    main(["transfer", str(folders["olmoe"]), str(folders["llama"]), *options])
    assert load(tmp_path / "out").kind == "transfer"


def test_robustness_of_a_dense_model(folders: dict[str, Path], tmp_path: Path) -> None:
    options = ["--prompts", "routing-80", "--attacked", "2", "--queries", "8", "--out", str(tmp_path / "out")]
    main(["robustness", str(folders["llama"]), *options])
    assert len(load(tmp_path / "out").table("attack")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steer", "olmoe"], "nothing to steer"),
        (["steer", "olmoe", "--ban", "5-17"], "--ban: '5-17' is not LAYER:EXPERT"),
        (["steer", "olmoe", "--ban", "9:0"], "layer 9 has no experts"),
        (["steer", "olmoe", "--ban-top", "poem"], "category 'poem' is not among"),
        (["steer", "olmoe", "--like", "code=much"], "'much' is not a number"),
        (["steer", "olmoe", "--unseen", "code=0"], "--unseen: 0 prompts make no boost"),
        (["steer", "olmoe", "--unseen", "code=21"], "--unseen: 21 prompts asked for and category 'code' has 20"),
        (["steer", "olmoe", "--ban", "0:0", "--target", "poem"], "category 'poem' has no texts"),
        (["steer", "olmoe", "--ablate", "nowhere.json"], "nowhere.json: no such file"),
        (["steer", "llama", "--ban", "0:0"], "dense"),
        (["prune", "llama"], "dense"),
        (["prune", "olmoe", "--ratio", "0.9"], "--ratio: 0.9 leaves"),
        (["prune", "olmoe", "--ratio", "1"], "--ratio: must be from 0 and below 1, got 1"),
        (["prune", "olmoe", "--random", "0"], "--random: must be at least 1, got 0"),
        (["prune", "olmoe", "--by", "taste"], "taste"),
        (["robustness", "olmoe", "--queries", "0"], "--queries: must be at least 2, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command, model, *rest = arguments
    small = SMALL if command == "steer" else []
    with pytest.raises(SystemExit) as stopped:
        main([command, str(folders[model]), *rest, *small, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
