"""A monitor in two stages: its promise over many splits, its two stages in one pass, and what it is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.runtime.monitor import MonitorCascade, calibrated, cascade_path, load_monitor
from moescope.runtime.route.watch import prompt_features
from moescope.tasks import Prompt, load_prompts


def scores(n: int, rng: np.random.Generator, useful: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of both stages of n prompts, half of them of the watched category, which has so much more on average."""
    y = np.arange(n) % 2 == 0
    return rng.normal(useful[0] * y), rng.normal(useful[1] * y), y


@pytest.mark.parametrize("useful", [(1.5, 3.0), (0.0, 3.0), (0.0, 0.0)])
@pytest.mark.parametrize("risk", [0.1, 0.2])
def test_the_promise_holds_over_splits(useful: tuple[float, float], risk: float) -> None:
    rng = np.random.default_rng(3)
    first, second, y = scores(40_000, rng, useful)
    broken, flagged = 0, []
    for _ in range(240):
        path = cascade_path(*scores(100, rng, useful))
        a, b, own = scores(2 * 60, rng, useful)
        chosen, promise = calibrated(path, a[own], b[own], risk, 0.1)
        found, _ = chosen.decisions(first, second)
        broken += (~found[y]).mean() > risk
        flagged.append(found[~y].mean())
        assert promise.prompts == 60
    assert broken / 240 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 240)
    if useful == (1.5, 3.0):
        assert np.mean(flagged) < 0.45  # and is not bought by flagging everything
        assert broken > 0
    if useful == (0.0, 0.0):
        assert np.mean(flagged) > 1 - risk - 0.05


SMALL = moescope.RobustnessSettings(
    monitor="code", risk=0.3, delta=0.2, attacked=0, precision=False, batches=False, perturbations=("identity", "typo")
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[moescope.StudyResult, Path]:
    out = tmp_path_factory.mktemp("monitor") / "out"
    return moescope.robustness("moe-tiny", settings=SMALL, run=moescope.Run(out=out, limit=240)), out


def test_what_it_says_and_costs(result: tuple[moescope.StudyResult, Path]) -> None:
    found, out = result
    table = found.table("monitor").set_index("monitor")
    assert table["prompts"].eq(60).all()
    assert table["others"].eq(180).all()
    claims = {c.statement: c for c in found.claims}
    assert claims["the cascade misses no more code prompts than it promises"].outcome == "holds"
    alarms = claims["the cascade lets other prompts pass, at 30% of code missed"]
    assert alarms.outcome == "holds"
    assert alarms.control is not None
    assert alarms.control.value == table.loc["bag of words", "alarms"]
    assert alarms.measured == table.loc["cascade", "alarms"]
    assert 0 < table.loc["cascade", "second_stage"] < 1
    changes = found.table("monitor_changes").set_index("change")
    assert changes.loc["identity", "misses"] == table.loc["cascade", "misses"]
    assert changes.loc["identity", "alarms"] == table.loc["cascade", "alarms"]
    turns = [row for row in found.rows if row["name"].startswith("monitor")]
    assert len(turns) == 5
    assert all({"fit", "calibrate", "judge"} <= row.keys() for row in turns)
    assert (out / "figures" / "monitor.png").is_file()


def test_one_pass_gives_what_the_two_stages_give(result: tuple[moescope.StudyResult, Path]) -> None:
    monitor = load_monitor(result[1] / "monitor")
    texts = [p.text for p in load_prompts("routing-80")]
    first = monitor.first.of(prompt_features(monitor.model, texts, "routing", monitor.layer)[0])
    flagged, asked = monitor.thresholds.decisions(first, monitor.whole(texts))
    watched = monitor.run(texts)
    assert 0 < asked.sum() < len(texts)
    assert (watched.flagged == flagged).all()
    assert (watched.asked == asked).all()
    alone = [monitor([text])[0] for text in texts[:8]]
    assert alone == flagged[:8].tolist()
    last = MonitorCascade(
        monitor.model, "code", 4, monitor.first._replace(weight=np.tile(monitor.first.weight, 5)[: 5 * 16]), monitor.second,
        monitor.thresholds, monitor.promise,
    )  # fmt: skip
    both = last.first.of(prompt_features(last.model, texts, "routing", 4)[0]), last.whole(texts)
    assert (last.run(texts).flagged == last.thresholds.decisions(*both)[0]).all()
    with pytest.raises(InputError, match="no tokens"):
        monitor([""])


def test_a_saved_monitor_is_itself_or_refused(result: tuple[moescope.StudyResult, Path], tmp_path: Path) -> None:
    made = result[0].artifacts["monitor"]
    assert isinstance(made, MonitorCascade)
    loaded = load_monitor(made.write(tmp_path / "m"))
    assert (loaded.thresholds, loaded.promise, loaded.layer) == (made.thresholds, made.promise, made.layer)
    assert (loaded.first.weight == made.first.weight).all()
    data = bytearray((tmp_path / "m" / "monitor.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "m" / "monitor.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        load_monitor(tmp_path / "m")


def test_a_category_that_is_none_is_not_told() -> None:
    rng = np.random.default_rng(0)
    prompts = [Prompt(p.id, p.text, ("code", "other")[rng.integers(2)]) for p in load_prompts("routing-480", limit=160)]
    found = moescope.robustness("moe-tiny", prompts, SMALL)
    claims = {c.statement: c for c in found.claims}
    assert claims["the cascade misses no more code prompts than it promises"].outcome != "contradicted"
    assert claims["the cascade lets other prompts pass, at 30% of code missed"].outcome != "holds"


def test_what_cannot_be_promised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="needs at least 45 calibration prompts of 'code'"):
        moescope.robustness("moe-tiny", "routing-80", moescope.RobustnessSettings(monitor="code", risk=0.05))
    with pytest.raises(InputError, match="'cod' is none of the prompts' categories"):
        moescope.robustness("moe-tiny", settings=moescope.RobustnessSettings(monitor="cod"))
    with pytest.raises(InputError, match="no routing to read"):
        moescope.robustness("dense-tiny", settings=moescope.RobustnessSettings(monitor="code"))
    with pytest.raises(SystemExit):
        main(["robustness", "moe-tiny", "--monitor", "code", "--layer", "9"])
    assert "--layer: layer 9 does not exist" in capsys.readouterr().err
