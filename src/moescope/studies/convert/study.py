"""A dense model in, a mixture-of-experts checkpoint with its verdict out."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

from moescope.errors import InputError
from moescope.files.folder import draft_of, settled, system_errors
from moescope.intervene.held_out import Source, Windows, put_on_record, read_windows
from moescope.models import LoadedModel
from moescope.studies.convert.bounds import bounds_of
from moescope.studies.convert.build import build_model
from moescope.studies.convert.card import card_text
from moescope.studies.convert.claims import convert_claims
from moescope.studies.convert.equality import checked_equality
from moescope.studies.convert.finetune import WINDOWS, require_peft
from moescope.studies.convert.frontier import measure_frontier
from moescope.studies.convert.layers import Converted, circuit_neurons, convert_layers
from moescope.studies.convert.refit import REFIT, refit_all, refit_windows
from moescope.studies.convert.settings import ConvertSettings, counts_of
from moescope.studies.convert.speed import WORKLOADS, Runner, active_share, ceilings, measure
from moescope.studies.convert.student import students_of
from moescope.studies.convert.target import target_of
from moescope.studies.convert.text import read_tuning_windows
from moescope.studies.convert.tuning import STATIC, TUNED, tune_all
from moescope.study.checkpoint import Checkpoint
from moescope.study.choice_tasks import task_cases, task_table
from moescope.study.harness import check_tasks, language_model
from moescope.study.protocol import CircuitsLike, Context, ModelLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.study.verdicts import verdicts

IMPLEMENTATIONS = ("moescope", "grouped_mm")
_SETTINGS, _RUN = ConvertSettings(), Run()


@verb
def convert(
    model: ModelLike,
    texts: Source = None,
    settings: ConvertSettings = _SETTINGS,
    *,
    heldout: Source = None,
    finetune_text: Source = None,
    circuits: CircuitsLike = None,
    run: Run = _RUN,
) -> StudyResult:
    """Turn each MLP of a dense language model into experts, and say whether it pays.

    Args:
        model: dense, with its head where it is loaded already.
        texts: file of UTF-8 text that decides which neurons go together; None: the shipped WikiText excerpt.
        heldout: file of text on which quality is measured; None: the last quarter of ``texts``, which then does not calibrate.
        finetune_text: file of text to fine-tune on, where ``settings.finetune`` says how long; None: ``texts``.
        circuits: whose neurons stay together under ``method="circuits"``.

    Returns:
        A result of kind ``"convert"``, whose first claim is the recommendation. Tables: ``layers``, ``frontier``, and, where
        measured, ``refit``, ``finetuning``, ``speed`` and ``tasks``. Artifact: ``checkpoint``, which is saved in the result's
        own folder: what ``run.out`` names is what transformers loads.

    Raises:
        InputError: the model cannot be converted, a text is too short, or the conversion with every expert active is not the
            dense model; nothing is written then.

    >>> import moescope
    >>> run = moescope.Run(out="moe")
    >>> result = moescope.convert("dense-tiny", settings=moescope.ConvertSettings(active=16), run=run)  # doctest: +SKIP
    >>> transformers.AutoModelForCausalLM.from_pretrained("moe")  # doctest: +SKIP
    """
    context = Context("convert", settings, run, of=ConvertSettings, spread=True)
    loaded = context.load(model, head=True)
    target = target_of(loaded.module, loaded.config)
    counts = counts_of(settings, loaded.config.intermediate_size, has_shared=target.has_shared)
    if settings.eval_task:
        check_tasks(settings.eval_task, settings.eval_include)
    seats = context.circuits(circuits, loaded)
    if settings.method == "circuits":
        circuit_neurons(tuple(seats.values()), loaded)
    with context.noted():
        calibrating, testing = read_windows(loaded, texts, heldout, settings, target.max_positions)
    calibrating, testing = put_on_record(context, "calibration", fit=calibrating, judge=testing)
    context.stages.read(calibrating, testing)
    text = {"calibration": calibrating, "held-out": testing}
    tuning = None
    if settings.refit:
        fit, select = refit_windows(calibrating, run.seed)
        fit, select, _ = put_on_record(context, "refit", fit=fit, select=select, judge=testing)
    if settings.finetune is None:
        if finetune_text is not None:
            raise InputError("nothing is fine-tuned without finetune=STEPS", "finetune_text")
    else:
        training, validation = _tuning_windows(loaded, finetune_text, texts, heldout, settings, run, target.max_positions)
        training, validation, _ = put_on_record(context, "fine-tuning", fit=training, select=validation, judge=testing)
        context.stages.read(training, validation)
        text |= {"fine-tuning": training, "validation": validation}
    began = time.monotonic()
    splitting = context.counter("splitting the MLPs")
    found = convert_layers(
        loaded, target, counts, calibrating, settings, run.seed, tuple(seats.values()), splitting, context.each
    )
    made = {"converted": build_model(loaded, target, counts, found.chosen)}
    # of what was split: a model that was refitted or tuned is another one, however many experts are active
    equality = checked_equality(loaded, made["converted"], counts, testing)
    pruned: dict[str, Any] = {}
    if found.random:
        _control(context, found)
        made["random"] = build_model(loaded, target, counts, found.random)
        pruned["static"] = loaded.module
    refitted, starts = None, {}
    if settings.refit:
        students = {kind: choices() for kind, choices in students_of(found, counts, REFIT).items()}
        refitted = refit_all(loaded, target, students, fit, select, context)
        starts = refitted.models
        for kind, dense in starts.items():
            layers = found.random if kind.startswith("random") else found.chosen
            if kind.startswith("static"):
                pruned[kind] = dense
            else:
                made[kind] = build_model(loaded, target, counts, layers, module=dense)
    if settings.finetune is not None:
        tuning = tune_all(loaded, target, counts, found, training, validation, settings, run.seed, context, starts)
        for kind, tuned in tuning.models.items():
            (pruned if kind == STATIC else made)[kind] = tuned
    chosen = next(kind for kind in (TUNED, REFIT, "converted") if kind in made)
    minutes = (time.monotonic() - began + context.stages.seconds) / 60
    with contextlib.ExitStack() as stack:
        if run.out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moescope-")))
        else:
            folder = stack.enter_context(draft_of(settled(run.out)))
        with system_errors(run.out or folder):
            made[chosen].save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)
        # What is measured is what was written.
        converted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=loaded.dtype).eval().requires_grad_(False)
        made[chosen] = converted
        if chosen == "converted":
            equality = checked_equality(loaded, converted, counts, testing)
        said: Any = {"seed": run.seed, "report": context.counter("held-out text"), "each": context.each}
        bounds = bounds_of(loaded, target, counts, found.chosen) if settings.controls else {}
        frontier, qualities = measure_frontier(loaded, made, pruned, bounds, found, counts, testing, **said)
        tables = {"layers": found.table, "frontier": frontier}
        tables |= {"refit": refitted.table} if refitted else {}
        tables |= {"finetuning": tuning.table} if tuning else {}
        limits = ceilings(loaded.module, converted)
        speed = None
        if settings.speed:
            runners = [Runner("dense", loaded.module), *(Runner(name, converted, name) for name in IMPLEMENTATIONS)]
            clock = partial(measure, runners, fitting(target.max_positions), report=context.counter("tokens per second"))
            speed = pd.DataFrame(context.stage("tokens per second", clock))
            for bound in ("ceiling", "ceiling_reading"):
                of_work = speed["workload"].map({name: limit[bound] for name, limit in limits.items()})
                speed[bound] = of_work.where(speed["runner"] != "dense")
            tables["speed"] = speed
        if settings.eval_task:
            models = {"original": loaded.module, "converted": converted}
            as_harness = {name: language_model(it, loaded.tokenizer) for name, it in models.items()}
            options: Any = {"include": settings.eval_include, "limit": run.limit, "seed": run.seed}
            evaluating = partial(task_table, as_harness, settings.eval_task, **options)
            tables["tasks"] = context.stage("evaluating tasks", evaluating)
        share = active_share(loaded.module, converted)
        claims = convert_claims(counts, share, equality, qualities, frontier, speed, limits, settings, run.seed, tuning)
        if "tasks" in tables:
            claims += verdicts(task_cases(tables["tasks"], "original", "converted"), settings.alpha)
        for note in (claims[0].words.partition("; a decision")[0], *target.notes):
            context.note(note)
        facts: dict[str, Any] = {
            "title": f"{loaded.name} as a mixture of experts, {counts.active} of {counts.experts} active",
            "counts": dataclasses.asdict(counts),
            "target": dataclasses.asdict(target),
            "text": {name: w.facts for name, w in text.items()},
            "refit": refitted is not None,
            "tuned": chosen == TUNED,
            "minutes_to_convert": round(minutes, 2),
            "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        }
        (folder / "README.md").write_text(card_text(loaded.name, facts, settings, run.seed, claims, tables), encoding="utf-8")
        checkpoint = Checkpoint(folder)
        result = context.result(
            model=loaded,
            claims=claims,
            tables=tables,
            circuits=seats,
            artifacts={"checkpoint": checkpoint},
            **facts,
        )
        if run.out is None:
            checkpoint.draft = stack.pop_all()
        else:
            checkpoint.folder = settled(run.out)
    return result


def _control(context: Context, found: Converted) -> None:
    """Put on record that a random split is another one: how many pairs of neurons that share an expert still do."""
    same = total = 0
    for (split, _), (other, _) in zip(found.chosen, found.random, strict=True):
        expert = np.full(split.shared.size + split.routed.size, -1)
        expert[other.routed] = np.arange(len(other.routed))[:, None]
        theirs = expert[split.routed]  # (E, w)
        pairs = (theirs[:, :, None] == theirs[:, None]) & (theirs >= 0)[:, :, None]
        same += int(pairs.sum()) - int((theirs >= 0).sum())
        total += split.routed.size * (split.routed.shape[1] - 1)
    context.control(
        "random split",
        differs=same < total,
        evidence=f"{same / total:.1%} of the pairs of neurons that share an expert still do",
    )


@torch.no_grad()
def fitting(positions: int) -> list[Any]:
    """The workloads, a prompt cut to the positions that the model has."""
    return [dataclasses.replace(w, prompt=min(w.prompt, positions - w.steps)) for w in WORKLOADS]


def _tuning_windows(
    model: LoadedModel,
    text: Source,
    calibration: Source,
    heldout: Source,
    settings: ConvertSettings,
    run: Run,
    positions: int,
) -> tuple[Windows, Windows]:
    if settings.finetune_rank != "full":
        require_peft()
    elif model.dtype != torch.float32:
        raise InputError("finetune_rank=full trains the weights in their own precision: give dtype=fp32, or a rank")
    most = (settings.finetune or 0) * WINDOWS
    return read_tuning_windows(model, text, calibration, heldout, settings, positions, most, run.seed)
