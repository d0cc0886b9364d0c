"""A dense model in, a mixture-of-experts checkpoint with its verdict out."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from moescope.errors import InputError
from moescope.files.atomic import cannot_write
from moescope.models import LoadedModel, load
from moescope.studies.convert.build import build_model
from moescope.studies.convert.card import RECIPE, write_card, write_recipe
from moescope.studies.convert.finetune import WINDOWS, require_peft
from moescope.studies.convert.frontier import measure_frontier
from moescope.studies.convert.layers import circuit_neurons, convert_layers
from moescope.studies.convert.settings import ConvertSettings, Counts, counts_of
from moescope.studies.convert.speed import WORKLOADS, Runner, active_share, ceilings, measure
from moescope.studies.convert.target import set_active, target_of
from moescope.studies.convert.tasks import evaluate_tasks
from moescope.studies.convert.text import Windows, read_tuning_windows, read_windows
from moescope.studies.convert.tuning import STATIC, TUNED, Tuning, tune_all
from moescope.studies.convert.verdict import convert_claims, recommend
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.types import Circuit

Report = Callable[[str, int, int], None]
IMPLEMENTATIONS = ("moescope", "grouped_mm")


def convert(
    model: str | LoadedModel,
    out: str | Path,
    *,
    calibration: str | Path | None = None,
    finetune_text: str | Path | None = None,
    heldout: str | Path | None = None,
    circuits: Sequence[Circuit] = (),
    eval_tasks: Sequence[str] = (),
    eval_include: str | Path | None = None,
    eval_limit: int | None = None,
    settings: ConvertSettings | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    **options: Any,
) -> StudyResult:
    """Turn each MLP of a dense language model into experts, write the checkpoint, and say whether it pays.

    Args:
        model: Hub id, local folder, embedded name, or a model loaded with its head.
        out: the checkpoint's folder. It appears whole, at the end, or not at all.
        calibration: UTF-8 text that decides which neurons go together; the shipped WikiText excerpt by default.
        finetune_text: UTF-8 text to fine-tune on, where ``finetune`` says how long; the calibration text by default.
        heldout: UTF-8 text on which quality is measured; the last quarter of the calibration text by default, which then
            does not calibrate.
        circuits: whose neurons stay together under ``method="circuits"``.
        eval_tasks: lm-evaluation-harness tasks to run on both models.
        settings: see :class:`ConvertSettings`; or give its fields as keyword options.
        overwrite: replace a conversion that stands in ``out``.
        report: called with (stage, done, total) for progress.

    Returns:
        A :class:`moescope.study.result.StudyResult` of kind ``"convert"``, also saved in ``out/report``; its first claim is the
        recommendation. Tables: ``layers``, ``frontier``, and, where measured, ``finetuning``, ``speed`` and ``tasks``.

    Raises:
        InputError: the model cannot be converted, a text is too short, the folder is taken; one line with the mend.
    """
    settings = dataclasses.replace(settings or ConvertSettings(), **options)
    folder = Path(os.path.abspath(out))
    check_folder(folder, overwrite)
    loaded = load(model, head=True) if isinstance(model, str) else model
    target = target_of(loaded.module, loaded.config)
    counts = counts_of(settings, loaded.config.intermediate_size, has_shared=target.has_shared)
    if settings.method == "circuits":
        circuit_neurons(circuits, loaded)
    calibrating, testing = read_windows(loaded, calibration, heldout, settings, target.max_positions)
    text = _tuning_text(loaded, finetune_text, calibration, heldout, settings, target.max_positions)
    began = time.time()

    def stage(name: str) -> Callable[[int, int], None]:
        return lambda done, total: report(name, done, total) if report is not None else None

    found = convert_layers(loaded, target, counts, calibrating, settings, circuits, stage("splitting the MLPs"))
    made = {"converted": build_model(loaded, target, counts, found.chosen)}
    pruned: dict[str, Any] = {}
    if found.random:
        made["random"] = build_model(loaded, target, counts, found.random)
        pruned["static"] = loaded.module
    tuning = tune_all(loaded, target, counts, found, *text, settings, stage) if text else None
    for kind, tuned in tuning.models.items() if tuning else ():
        (pruned if kind == STATIC else made)[kind] = tuned
    chosen = TUNED if TUNED in made else "converted"
    minutes = (time.time() - began) / 60
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=_made(folder.parent)))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        made[chosen].save_pretrained(draft)
        loaded.tokenizer.save_pretrained(draft)
        # What is measured is what was written.
        converted = transformers.AutoModelForCausalLM.from_pretrained(draft, dtype=loaded.dtype).eval().requires_grad_(False)
        made[chosen] = converted
        # of what was split: a model that was tuned is another one, however many experts are active
        equality = relative_difference(loaded.module, made["converted"], counts, testing)
        frontier, qualities = measure_frontier(
            loaded, made, pruned, found, counts, testing, seed=settings.seed, report=stage("held-out text")
        )
        tables = {"layers": found.table, "frontier": frontier} | ({"finetuning": tuning.table} if tuning else {})
        limits = ceilings(loaded.module, converted)
        speed = None
        if settings.speed:
            runners = [Runner("dense", loaded.module), *(Runner(name, converted, name) for name in IMPLEMENTATIONS)]
            speed = pd.DataFrame(measure(runners, fitting(target.max_positions), report=stage("tokens per second")))
            for bound in ("ceiling", "ceiling_reading"):
                here = speed["workload"].map({name: limit[bound] for name, limit in limits.items()})
                speed[bound] = here.where(speed["runner"] != "dense")
            tables["speed"] = speed
        if eval_tasks:
            tables["tasks"] = evaluate_tasks(
                {"original": loaded.module, "converted": converted},
                loaded.tokenizer,
                eval_tasks,
                include=eval_include,
                limit=eval_limit,
                seed=settings.seed,
            )
        here = frontier[(frontier["kind"] == chosen) & (frontier["active"] == counts.active)].iloc[0]
        advice = recommend(float(here["rise"]), speed, settings.tolerance)
        share = active_share(loaded.module, converted)
        claims = convert_claims(counts, share, equality, qualities, frontier, speed, limits, advice, tuning)
        meta = provenance(loaded, [], seed=settings.seed, settings=dataclasses.asdict(settings))
        meta |= {
            "title": f"{loaded.name} as a mixture of experts, {counts.active} of {counts.experts} active",
            "counts": dataclasses.asdict(counts),
            "target": dataclasses.asdict(target),
            "text": {"calibration": _described(calibrating), "held-out": _described(testing)} | _tuning_described(tuning),
            "tuned": chosen == TUNED,
            "circuits": {c.task: [str(n) for n in c.neurons] for c in circuits},
            "minutes_to_convert": round(minutes, 2),
            "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
            "notes": [*([advice.text] if advice else []), *target.notes],
        }
        result = StudyResult("convert", meta, tuple(claims), {}, tables)
        write_recipe(draft, result)
        write_card(draft, result)
        result.save(draft / "report")
        _put_in_place(draft, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return result


@torch.no_grad()
def relative_difference(dense: Any, converted: Any, counts: Counts, windows: Windows) -> float:
    """Norm of the logits' difference over that of the dense model's logits: every expert active, 1,024 held-out tokens."""
    ids = next(windows.batches(1024))
    reference = dense(input_ids=ids.to(dense.device), use_cache=False).logits.float().cpu()
    set_active(converted, counts.experts)
    try:
        found = converted(input_ids=ids, use_cache=False).logits.float()
    finally:
        set_active(converted, counts.active)
    return float((found - reference).norm() / reference.norm())


def fitting(positions: int) -> list[Any]:
    """The workloads, a prompt cut to the positions that the model has."""
    return [dataclasses.replace(w, prompt=min(w.prompt, positions - w.steps)) for w in WORKLOADS]


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse, before any work, a folder that is something else than a conversion, or one that may not be replaced."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder / RECIPE).is_file():
        raise InputError(f"--out: {folder} exists and is not a conversion of moescope's; name a new folder")
    if folder.exists() and not overwrite:
        raise InputError(f"--out: {folder} already holds a conversion; name another folder or give --overwrite")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _put_in_place(draft: Path, folder: Path) -> None:
    """Rename ``draft`` to ``folder``, whole; a conversion that stood there is removed after."""
    draft.chmod(0o755)  # mkdtemp made it private
    if not folder.exists():
        os.rename(draft, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    os.rename(folder, old)
    os.rename(draft, folder)
    shutil.rmtree(old, ignore_errors=True)


def _tuning_text(
    model: LoadedModel,
    text: str | Path | None,
    calibration: str | Path | None,
    heldout: str | Path | None,
    settings: ConvertSettings,
    positions: int,
) -> tuple[Windows, Windows] | None:
    if settings.finetune is None:
        if text is not None:
            raise InputError("--finetune-text: nothing is fine-tuned without --finetune STEPS")
        return None
    if settings.finetune_rank != "full":
        require_peft()
    elif model.dtype != torch.float32:
        raise InputError("--finetune-rank full trains the weights in their own precision: give --dtype fp32, or a rank")
    most = settings.finetune * WINDOWS
    return read_tuning_windows(model, text, calibration, heldout, settings, positions, most)


def _tuning_described(tuning: Tuning | None) -> dict[str, Any]:
    return {} if tuning is None else {"fine-tuning": _described(tuning.training), "validation": _described(tuning.validation)}


def _described(windows: Windows) -> dict[str, Any]:
    return {"source": windows.source, "tokens": windows.tokens, "sha256": windows.sha256}
