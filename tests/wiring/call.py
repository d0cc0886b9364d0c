"""How each study is called: the one file that knows, so that a change of call forms is a change of this file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import moescope
from moescope.models import LoadedModel
from moescope.routing import RoutingTrace
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.mask import PruneMask
from moescope.study.result import StudyResult
from moescope.study.rows import calibrated
from moescope.tasks import Prompt, split_half
from moescope.tasks.passages import Passage
from moescope.types import Neuron, Task


def _run(options: dict[str, Any]) -> moescope.Run:
    """Takes out of ``options`` what is the run's."""
    return moescope.Run(**{name: options.pop(name) for name in ("seed", "batch_tokens", "max_tokens") if name in options})


def circuits(
    model: LoadedModel, *tasks: Task, k: int = 1, ablate: int | None = None, text_tokens: int = 64, **options: Any
) -> StudyResult:
    """The smallest study that has every table; ``ablate`` is the number of matched random sets."""
    run = _run(options)
    small: dict[str, Any] = {"n_permutations": 19, "n_label_permutations": 0, "n_random": 20, "twin": False, "ks": (k,)}
    small |= {"control_half_width": 0, "control_cost": 100.0}  # every row in every control: a sample of few could hide a fault
    if ablate is not None:
        small |= {"ablate": "mean", "ablate_random": ablate, "ablate_text_tokens": text_tokens}
    return moescope.circuits(model, tasks, moescope.CircuitSettings(**(small | {"k": k} | options)), run=run)


def ablation_selection(task: Task, seed: int = 0) -> np.ndarray:
    """bool (N,): the rows on which the circuit that is ablated is chosen; the others judge it."""
    return split_half([e.label for e in task.examples], [e.group for e in task.examples], seed)


def signatures(
    trace: RoutingTrace | None = None, prompts: Sequence[Prompt] | None = None, model: LoadedModel | None = None, **options: Any
) -> StudyResult:
    run = _run(options)
    if "n_null" in options:
        options["n_nulls"] = options.pop("n_null")
    small: dict[str, Any] = {"n_permutations": 99, "n_label_permutations": 0, "n_nulls": 19, "new_tokens": 0}
    source = trace if trace is not None else model
    return moescope.signatures(source, prompts, moescope.SignatureSettings(**(small | options)), run=run)


def distill(model: LoadedModel, layer: int, texts: Sequence[str], **options: Any) -> StudyResult:
    run = _run(options)
    return moescope.distill(model, texts, moescope.DistillSettings(layer=layer, **options), run=run)


def exit_split(task: Task, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that fit, rows that calibrate and rows that judge, of an exit's task (and of all of a router's tasks together)."""
    rows = calibrated("split", task, seed)
    return rows.fit, rows.calibrate, rows.judge


def exit(model: LoadedModel, task: Task, **options: Any) -> tuple[StudyResult, ExitClassifier]:
    run = _run(options)
    found = moescope.exit(model, [task], moescope.ExitSettings(timed_texts=1, **options), run=run)
    classifier = found.artifacts[f"exit/{task.name}"]
    assert isinstance(classifier, ExitClassifier)
    return found, classifier


def route(model: LoadedModel, tasks: Sequence[Task], **options: Any) -> StudyResult:
    run = _run(options)
    return moescope.route(model, tasks, moescope.RouteSettings(timed_texts=1, **options), run=run)


def prune(model: LoadedModel, passages: Sequence[Passage], **options: Any) -> tuple[StudyResult, PruneMask]:
    run = _run(options)
    if "tokens" in options:
        options["text_tokens"] = options.pop("tokens")
    found = moescope.prune(model, passages, moescope.PruneSettings(**({"guard": False} | options)), run=run)
    mask = found.artifacts["mask"]
    assert isinstance(mask, PruneMask)
    return found, mask


def steer(
    model: LoadedModel,
    passages: Sequence[Passage],
    *,
    ban: Sequence[tuple[int, int]] = (),
    neurons: Sequence[Neuron] = (),
    target: str | None = None,
    **options: Any,
) -> StudyResult:
    run = _run(options)
    edits: dict[str, Any] = {"ban": tuple(f"{layer}:{expert}" for layer, expert in ban)}
    with tempfile.TemporaryDirectory() as folder:
        if neurons:
            named = [{"site": n.site.kind, "layer": n.site.layer, "neuron": n.index} for n in neurons]
            edits["ablate"] = str(Path(folder) / "circuit.json")
            Path(edits["ablate"]).write_text(json.dumps({"neurons": named}))
        options["text_tokens"] = options.pop("tokens")
        settings = moescope.SteerSettings(**edits, target=target, new_tokens=0, **options)
        return moescope.steer(model, passages, settings, run=run)


def robustness(
    model: LoadedModel, prompts: Sequence[Prompt], attack: dict[str, Any] | None = None, **options: Any
) -> StudyResult:
    run = _run(options)
    small: dict[str, Any] = {"precision": False, "batches": False, "attacked": 0 if attack is None else 16}
    searched = {"suffix_tokens" if name == "length" else name: value for name, value in (attack or {}).items()}
    return moescope.robustness(model, prompts, moescope.RobustnessSettings(**(small | searched | options)), run=run)


def transfer(a: RoutingTrace, b: RoutingTrace, **options: Any) -> StudyResult:
    run = _run(options)
    # few draws show nothing at 0.05, and need not: what is looked at here is on what they are drawn
    small: dict[str, Any] = {"n_permutations": 99, "n_alignments": 39, "dimensions": 6, "n_folds": 2, "alpha": 0.4}
    return moescope.transfer(a, b, None, moescope.TransferSettings(**(small | options)), run=run)


def convert(model: LoadedModel, out: Path, **options: Any) -> StudyResult:
    run = _run(options)
    inputs = {name: options.pop(name) for name in ("texts", "heldout", "circuits") if name in options}
    settings = moescope.ConvertSettings(speed=False, **options)
    with patch("moescope.study.result.StudyResult.save"):  # the report, whose figures take longer than all else
        return moescope.convert(model, inputs.pop("texts", None), settings, **inputs, run=moescope.Run(out=out, seed=run.seed))
