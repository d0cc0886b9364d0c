"""A dense model in, the neurons that work on a token chosen by few bits of its weights, with a verdict on whether that pays."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.errors import InputError
from moescope.files.folder import draft_of, settled, system_errors
from moescope.intervene.held_out import Source, Windows, put_on_record, read_windows
from moescope.intervene.quality import EIGHT, Contender, compare
from moescope.models import LoadedModel
from moescope.models.gated import gated_mlps
from moescope.studies.sparsify.build import checked_equality, read_sparse, write_sparse
from moescope.studies.sparsify.calibration import Calibrated, calibrate, even, greedy
from moescope.studies.sparsify.card import card_text
from moescope.studies.sparsify.claims import budget_table, sparsify_claims
from moescope.studies.sparsify.frontier import entrants, measure_frontier
from moescope.studies.sparsify.methods import ANOTHER, CHANCE, ByNeuron, Layer, by_planes, coded, replaced
from moescope.studies.sparsify.search import search
from moescope.studies.sparsify.settings import Format, SparsifySettings
from moescope.studies.sparsify.speed import beside, measure, missing_kernels
from moescope.studies.sparsify.speed_claims import speed_claims
from moescope.study.checkpoint import Checkpoint
from moescope.study.choice_tasks import task_cases, task_table
from moescope.study.harness import check_tasks, language_model
from moescope.study.protocol import Context, ModelLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.study.verdicts import verdicts

_SETTINGS, _RUN = SparsifySettings(), Run()
_VALIDATION = 4  # one window in so many of the calibration text validates budgets


@verb
def sparsify(
    model: ModelLike,
    texts: Source = None,
    settings: SparsifySettings = _SETTINGS,
    *,
    heldout: Source = None,
    run: Run = _RUN,
) -> StudyResult:
    """Let a few bits of each MLP's weights choose the neurons that work on a token, and say whether that beats plain weights of
    few bits.

    Args:
        model: dense, its MLPs gated, with its head where it is loaded already.
        texts: file of UTF-8 text from which thresholds, averages, axes and what is left open are taken; None: the shipped
            WikiText excerpt.
        heldout: file of text on which quality is measured; None: the last quarter of ``texts``, which then does not calibrate.

    Returns:
        A result of kind ``"sparsify"``, whose first claim is the recommendation. Tables: ``layers``, ``frontier``, ``search``
        where the settings leave open how many neurons or bits, ``budgets`` where they were greedy, ``speed`` and ``tasks``.
        Artifact: ``checkpoint``, which is saved in the result's own folder: what ``run.out`` names is what
        :func:`moescope.load_model` loads and every command takes as MODEL.

    Raises:
        InputError: the model has experts, or MLPs that are not gated, or weights that are codes; a text is too short; or what
            was written is not the model; nothing is written then.

    >>> import moescope
    >>> run = moescope.Run(out="sparse")
    >>> result = moescope.sparsify("dense-tiny", settings=moescope.SparsifySettings(share=0.5), run=run)  # doctest: +SKIP
    >>> moescope.load_model("sparse", head=True)  # doctest: +SKIP
    """
    context = Context("sparsify", settings, run, of=SparsifySettings)
    loaded = context.load(model, head=True)
    if settings.eval_task:
        check_tasks(settings.eval_task, settings.eval_include)
    mlps = gated_mlps(loaded)
    if len({(mlp.width, mlp.neurons) for mlp in mlps}) > 1:
        raise InputError(f"{loaded.name}: its MLPs are of several widths, and one share of bytes cannot be of all", "model")
    positions = int(getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or settings.window)
    with context.noted():
        calibrating, testing = read_windows(loaded, texts, heldout, settings, positions)
    parts = {"fit": calibrating, "judge": testing}
    formats = settings.formats()
    if settings.budgets == "greedy" or len(formats) > 1:
        fitting, validating = _validation(calibrating)
        parts = {"fit": fitting, "select": validating, "judge": testing}
    _check_units(parts["judge"], settings)
    parts = dict(zip(parts, put_on_record(context, "text", **parts), strict=True))
    context.stages.read(*parts.values())
    text = {"calibration": parts["fit"], "validation": parts.get("select"), "held-out": parts["judge"]}
    tables: dict[str, Any] = {}
    form = formats[0]
    if len(formats) > 1:
        searching = partial(search, loaded, mlps, formats, parts["select"], settings.tolerance, run.seed)
        told = context.counter("bits and shares on validation text")
        form, tables["search"] = context.stage("bits and shares", partial(searching, told))
    layers = coded(mlps, form.bits)
    counts = even(layers, form.share)
    reading = partial(calibrate, loaded, layers, parts["fit"], counts, form.choose, run.seed)
    found = context.stage("calibration", partial(reading, context.counter("calibration")))
    _control(context, found, layers, counts)
    if settings.budgets == "greedy":
        counts, tables["budgets"] = _budgets(context, loaded, layers, found, counts, parts["select"], form)
    with contextlib.ExitStack() as stack:
        if run.out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moescope-")))
        else:
            folder = stack.enter_context(draft_of(settled(run.out)))
        with system_errors(run.out or folder):
            write_sparse(loaded, layers, counts, form, folder)
            # what is measured is what was written
            written = read_sparse(folder, loaded)
        equality = checked_equality(loaded, layers, written, parts["judge"])
        lines = entrants(loaded, layers, found, written, form, settings, run.seed)
        told = context.counter("held-out text")
        frontier, qualities = measure_frontier(loaded, lines, parts["judge"], seed=run.seed, report=told, each=context.each)
        tables |= {"layers": found.table(layers, counts), "frontier": frontier}
        claims = sparsify_claims(
            frontier, qualities, form, settings, equality, parts["judge"].unit, run.seed, copy=loaded.quantisation
        )
        if settings.speed:
            missing = missing_kernels(loaded, mlps, form)
            clock: dict[str, Any] = {"rows": [], "difference": None}
            if EIGHT not in missing:
                every = {**{share: even(layers, share) for share in settings.shares}, form.share: counts}
                timing = partial(measure, loaded, mlps, written, every, form, parts["judge"], settings.timed_seconds)
                clock = context.stage("tokens per second", partial(timing, context.counter("tokens per second")))
                tables["speed"] = pd.DataFrame(clock["rows"])
                tables["frontier"] = beside(frontier, tables["speed"])
            said = speed_claims(tables.get("speed"), qualities, form, settings, run.seed, missing, clock["difference"])
            claims[1:1] = said
        if settings.eval_task:
            models = {"original": loaded.module, "sparse": written}
            as_harness = {name: language_model(it, loaded.tokenizer) for name, it in models.items()}
            options: Any = {"include": settings.eval_include, "limit": run.limit, "seed": run.seed}
            evaluating = partial(task_table, as_harness, settings.eval_task, **options)
            tables["tasks"] = context.stage("evaluating tasks", evaluating)
            claims += verdicts(task_cases(tables["tasks"], "original", "sparse"), settings.alpha)
        context.note(claims[0].words.partition("; a decision")[0])
        facts: dict[str, Any] = {
            "title": f"{loaded.name} with {form.share:.0%} of its neurons at work on a token",
            "format": dataclasses.asdict(form),
            "text": {name: w.facts for name, w in text.items() if w is not None},
            "budgets": "greedy" if tables.get("budgets") is not None and counts != even(layers, form.share) else "uniform",
            "neurons": counts,
            "unit": parts["judge"].unit,
        }
        card = card_text(loaded.name, facts, form, run.seed, claims, tables)
        (folder / "README.md").write_text(card, encoding="utf-8")
        checkpoint = Checkpoint(folder)
        result = context.result(model=loaded, claims=claims, tables=tables, artifacts={"checkpoint": checkpoint}, **facts)
        if run.out is None:
            checkpoint.draft = stack.pop_all()
        else:
            checkpoint.folder = settled(run.out)
    return result


def _check_units(windows: Windows, settings: SparsifySettings) -> None:
    """Refuse, before any work, so little text that no p of the claims that are judged together could fall to alpha."""
    claims = 3 + len([name for name in settings.rivals if name != "static"])
    # losses of two ways are exchanged document by document, in 2 ** n ways of which two are as far apart as they can be
    least = math.ceil(math.log2(2 * claims / settings.alpha)) + 1
    count = len(np.unique(windows.groups))
    if count < least:
        raise InputError(
            f"held-out text ({windows.source}) is {count} {windows.unit}s, by which {claims} claims cannot be judged together; "
            f"at least {least} are needed: give more heldout_tokens or a longer text, a shorter window, or fewer rivals",
            "heldout",
        )


def _validation(windows: Windows) -> tuple[Windows, Windows]:
    """The windows without every fourth, and those."""
    at = np.arange(len(windows)) % _VALIDATION == _VALIDATION - 1
    if not at.any():
        raise InputError(f"{len(windows)} windows of calibration text are too few for greedy budgets: give more", "texts")
    fitting, validating = (windows.chosen(torch.from_numpy(np.flatnonzero(part))) for part in (~at, at))
    return fitting, validating


def _budgets(
    context: Context,
    model: LoadedModel,
    layers: list[Layer],
    found: Calibrated,
    uniform: list[int],
    windows: Windows,
    form: Format,
) -> tuple[list[int], Any]:
    """The numbers of neurons that validate better, and the table ``budgets``."""
    counts = {"uniform": uniform, "greedy": greedy(layers, found, form.share)}

    def losses() -> dict[str, float]:
        ways = {name: ByNeuron(layers, by_planes(form.choose), each) for name, each in counts.items()}
        contenders = [Contender(name, model.module, partial(replaced, way)) for name, way in ways.items()]
        return {q.name: q.loss for q in compare(model.module, contenders, windows, seed=context.run.seed)[1:]}

    validated = context.stage("budgets on validation text", losses)
    kept = min(validated, key=lambda name: validated[name])
    return counts[kept], budget_table(validated, counts, kept)


def _control(context: Context, found: Calibrated, layers: list[Layer], counts: list[int]) -> None:
    """Put on record that neurons at random, and those of another token, are others than the token's own."""
    every = all(count == layer.mlp.neurons for layer, count in zip(layers, counts, strict=True))
    for name in (CHANCE, ANOTHER):
        same = sum(seen.captured[name] for seen in found.layers) / sum(seen.captured["chosen"] for seen in found.layers)
        context.control(
            name, differs=every or same < 1, evidence=f"{same:.1%} of the neurons are those of the token's own choice"
        )
