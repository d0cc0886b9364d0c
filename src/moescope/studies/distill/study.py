"""The third study, whole: a layer's MLP distilled into tiny experts, beside what Gaussian inputs give."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.capture import ActivationStore
from moescope.capture.encode import model_limit
from moescope.errors import InputError
from moescope.models import LoadedModel, load, random_twin
from moescope.studies.distill.accounting import per_neuron, spec_cost
from moescope.studies.distill.baselines import baseline_fvu
from moescope.studies.distill.claims import ACTIVATIONS, distill_claims, ratio_table, summary_table
from moescope.studies.distill.controls import control_pairs
from moescope.studies.distill.data import SPLITS, Pairs, count
from moescope.studies.distill.expert_study import circuits_of, expert_study
from moescope.studies.distill.layer_data import DataSettings, model_pairs, pieces, store_pairs
from moescope.studies.distill.neighbours import load_dictionary
from moescope.studies.distill.runs import Runs, run_students
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.splice import generation_table, splice_table
from moescope.studies.distill.students import LayerShape, Student
from moescope.studies.distill.teacher import Teacher
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import plain_text
from moescope.types import Claim

Report = Callable[[str, int, int], None]
_HOLD, _HELD = 20, 100  # every 20th text, at most 100


def distill(
    model: str | LoadedModel,
    layer: int | None = None,
    *,
    texts: Sequence[str] | None = None,
    store: str | Path | None = None,
    settings: DistillSettings | None = None,
    circuits: StudyResult | str | Path | None = None,
    dictionary: str | Path | None = None,
    checkpoint: Path | None = None,
    report: Report | None = None,
    **options: Any,
) -> tuple[StudyResult, dict[str, Student]]:
    """Distil one MLP layer into dense and mixture-of-experts students, on its activations and on the controls.

    Implements "Secret mixtures of experts inside your LLM" (arXiv 2512.18452) with the nulls that it lacks.

    Args:
        model: Hub id, local folder, embedded name, or a loaded model. With its head, the model's loss with a student in
            place of the layer is measured too.
        layer: may stand in ``settings`` instead.
        texts: what to read activations on; None: the shipped excerpt of WikiText-2.
        store: an :class:`~moescope.capture.ActivationStore` of ``mlp_in`` and ``mlp_out`` of the layer, instead of texts.
        settings: see :class:`DistillSettings`; or give its fields as keyword options.
        circuits: a result of :func:`moescope.circuits` on this model, or its folder: experts are compared with its neurons.
        dictionary: a safetensors file with the decoder (``W_dec``) of a sparse autoencoder of the layer's output or of the
            residual stream: experts are compared with its directions.
        checkpoint: file name for checkpoints; a run that was cut off goes on from there.
        report: called with (stage, done, total) for progress.

    Returns:
        The result, of kind ``"distill"``, and the students of the first seed on activations by name.

    Raises:
        InputError: when the input cannot be used; the message is one line.
    """
    if settings is None:
        if layer is None:
            raise InputError("--layer: name the layer to distil, e.g. --layer 3")
        settings = DistillSettings(layer=layer, **options)
    else:
        if layer is not None:
            options["layer"] = layer
        settings = dataclasses.replace(settings, **options)
    began = time.time()
    loaded = load(model) if isinstance(model, str) else model
    teacher = Teacher(loaded, settings.layer)
    shape = teacher.shape
    known = circuits_of(circuits, loaded)
    directions = None if dictionary is None else load_dictionary(dictionary, shape.d_out)
    context = model_limit(loaded) or 1024
    given = pieces(plain_text() if texts is None else texts, 2 * context)  # a token is seldom under two characters
    # for the spliced model's loss and for reading experts: texts that no student is trained on
    held = given[::_HOLD][:_HELD]
    read = [text for number, text in enumerate(given) if number % _HOLD or number >= _HOLD * _HELD]
    pairs = _read(teacher, read, store, settings, report)
    specs = settings.students()
    if settings.equal_cost:
        specs |= equal_cost_students(specs, shape, _width(teacher))
    tables: dict[str, list[pd.DataFrame]] = {"students": [], "curves": [], "baselines": []}
    found: dict[str, Runs] = {}
    body: Any = loaded.body
    embedding = body.get_input_embeddings().weight.detach().float().cpu()
    for name in (ACTIVATIONS, *settings.controls):
        here, labeller = pairs, teacher
        if name == "twin":
            labeller = Teacher(random_twin(loaded, settings.seed), settings.layer)
            here = _read(labeller, read, None, settings, report)
        elif name != ACTIVATIONS:
            here = control_pairs(name, pairs, teacher, seed=settings.seed)
        found[name] = run_students(
            here,
            {n: _start(spec, name) for n, spec in specs.items()},
            shape,
            settings,
            teacher=labeller,
            checkpoint=None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}-{name}"),
            progress=_stage(report, f"training on {name}"),
        )
        tables["students"].append(found[name].rows.assign(data=name))
        tables["curves"].append(found[name].curves.assign(data=name))
        baselines = baseline_fvu(here, embedding)
        tables["baselines"].append(pd.DataFrame({"data": name, "baseline": [*baselines], "fvu": [*baselines.values()]}))
    frames = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    frames["summary"] = summary_table(frames["students"])
    frames["ratio"] = ratio_table(frames["students"])
    best = found[ACTIVATIONS].best
    frames["load"] = _loads(found[ACTIVATIONS])
    if loaded.has_head:
        frames["splice"] = splice_table(teacher, best, held, batch_tokens=settings.batch_tokens)
        frames["generation"] = generation_table(teacher, best, held)
    about_experts: list[Claim] = []
    read_one = next((n for n in best if specs[n].kind != "dense"), None)
    if read_one is not None:
        found_experts, about_experts = expert_study(
            teacher,
            read_one,
            best[read_one],
            held,
            circuits=known,
            dictionary=directions,
            characters=2 * context,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
        )
        frames |= found_experts
    meta = provenance(loaded, [], seed=settings.seed, settings=dataclasses.asdict(settings))
    meta |= {
        "title": f"Layer {settings.layer} of {loaded.name} distilled",
        "data": dict[str, Any](source=pairs.name, **{split: count(pairs, split) for split in SPLITS}),
        "teacher": {**dataclasses.asdict(shape), "width": _width(teacher)},
        "seconds": round(time.time() - began, 1),
    }
    claims = [*distill_claims(frames, settings, shape, _width(teacher), loaded.name), *about_experts]
    if report is not None:
        report("done", 1, 1)
    return StudyResult("distill", meta, tuple(claims), {}, frames), best


def equal_cost_students(specs: dict[str, StudentSpec], shape: LayerShape, widest: int | None) -> dict[str, StudentSpec]:
    """A dense student for each expert student, with as many multiply-adds, router included; at most as wide as the
    teacher, which needs no more."""
    extra: dict[str, StudentSpec] = {}
    for spec in specs.values():
        if spec.kind != "dense":
            width = max(1, spec_cost(spec, shape)[0] // per_neuron(shape, shape.glu))
            dense = StudentSpec(kind="dense", shared=min(width, widest) if widest else width, start=spec.start)
            extra[dense.name] = dense
    return extra


def _start(spec: StudentSpec, data: str) -> StudentSpec:
    """The teacher's neurons are a start where the labels are the teacher's."""
    return dataclasses.replace(spec, start="random") if data in ("shuffled-teacher", "twin") else spec


def _read(
    teacher: Teacher, texts: list[str], store: str | Path | None, settings: DistillSettings, report: Report | None
) -> Pairs:
    data = DataSettings(
        tokens=settings.tokens,
        buffer=settings.buffer,
        memory=int(settings.memory * 2**30),
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
    )
    if store is not None:
        return store_pairs(teacher, ActivationStore.open(store), data)
    return model_pairs(teacher, texts, data, _stage(report, f"reading {teacher.model.name}"))


def _width(teacher: Teacher) -> int | None:
    """Neurons of the teacher; None for a block of experts."""
    inner = [site for site in teacher.model.sites("mlp_act") if site.layer == teacher.layer]
    return teacher.model.width(inner[0]) if inner else None


def _loads(runs: Runs) -> pd.DataFrame:
    """How often the experts of each student ran, most used first, at 64 ranks."""
    rows: list[dict[str, Any]] = []
    for name, found in runs.loads.items():
        if found.load is None:
            continue
        load = sorted(found.load, reverse=True)
        ranks = sorted({round((len(load) - 1) * i / 63) for i in range(64)})
        rows += [{"student": name, "rank": rank, "load": float(load[rank])} for rank in ranks]
    return pd.DataFrame(rows, columns=["student", "rank", "load"])


def _stage(report: Report | None, stage: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(stage, done, total)
