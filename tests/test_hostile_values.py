"""Values that mean nothing, inside models and texts: each ends in one line that says where, and no figure is lost to a text."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import moescope
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing import trace_prompts
from moescope.studies.circuits.geometry import _components
from moescope.study.protocol import ControlFault
from moescope.tasks import Prompt
from tests.architectures import tiny_model

PROMPTS = [Prompt(str(i), f"text {i}", "ab"[i % 2]) for i in range(6)]


def test_a_router_that_is_not_finite_is_refused_by_its_layer() -> None:
    model = tiny_model("olmoe")
    with torch.no_grad():
        model.body.layers[1].mlp.gate.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"layer 1.*not finite"):
        trace_prompts(model, PROMPTS)


def test_constant_activations_have_no_directions() -> None:
    share, projection = _components(np.zeros((40, 8)))
    assert share == 0
    assert projection.shape == (40, 2)
    assert not projection.any()


def test_two_texts_again_and_again_have_one_direction() -> None:
    x = np.tile([[1.0] * 50, [-1.0] * 50], (10, 1))  # centred, so that a start of ones is turned to nought
    share, projection = _components(x)
    assert share == pytest.approx(1)
    assert np.abs(projection[:, 0]) == pytest.approx(np.sqrt(50))
    assert projection[:, 1] == pytest.approx(0, abs=1e-6)


def test_categories_of_one_text_each_are_refused() -> None:
    prompts = [Prompt(str(i), ["The same text.", "Another one, longer."][i % 2], "ab"[i % 2]) for i in range(20)]
    with pytest.raises(InputError, match="prompts: those of one category are all routed alike"):
        moescope.robustness("moe-tiny", prompts, moescope.RobustnessSettings(attacked=0))


def made_of(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libx.so: failed to map segment from shared object"),
        SystemError("error return without exception set"),
        made_of(ValueError("no such font"), MemoryError()),
    ],
)
def test_a_machine_without_memory_is_one_line(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def starved(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("moescope.cli.app", starved)
    with pytest.raises(SystemExit, match="2"):
        main(["list"])
    assert capsys.readouterr().err.startswith("error: out of memory; ")


def test_a_control_at_fault_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unsound(*_: object, **__: object) -> None:
        raise ControlFault("circuits: the control 'random twin' is what it controls (0 of 9 differ)")

    monkeypatch.setattr("moescope.cli.app", unsound)
    with pytest.raises(SystemExit, match="1"):
        main(["list"])
    said = capsys.readouterr().err
    assert said.startswith("error: circuits: the control 'random twin' is what it controls (0 of 9 differ); nothing was ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 5000, "/tmp/" + "y" * 300, "loop"])
@pytest.mark.parametrize(
    "command",
    [
        "circuits dense-tiny --task",
        "circuits dense-tiny --task certainty=halueval -o",
        "compare",
        "convert dense-tiny -o",
        "list",
        "plan signatures",
        "residency",
        "serve dense-tiny --route",
        "show",
        "targets",
        "trace moe-tiny -o",
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit, match="2"):
        main([*command.split(), name])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert len(said) < 3500


def test_a_folder_that_no_name_can_be_given_is_refused_in_python() -> None:
    with pytest.raises(InputError, match="ame too long; name another folder"):
        moescope.load("x" * 5000)


def test_messages_are_one_printable_line_of_bounded_length() -> None:
    text = str(InputError("a\x1b[2Jb\n\ud800" + "x" * 10_000 + " the mend"))
    assert text.isprintable()
    assert len(text) < 2000
    assert text.startswith("a\\x1b[2Jb")
    assert text.endswith("the mend")
