"""The third study, whole: a layer's MLP distilled into tiny experts, beside what Gaussian inputs give."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture import ActivationStore
from moescope.capture.encode import model_limit
from moescope.capture.record import Recorded
from moescope.errors import InputError
from moescope.models import LoadedModel, random_twin
from moescope.studies.distill.baselines import baseline_fvu
from moescope.studies.distill.claims import distill_claims
from moescope.studies.distill.controls import control_pairs, distances
from moescope.studies.distill.data import SPLITS, Pairs, count
from moescope.studies.distill.evidence import ACTIVATIONS, Evidence
from moescope.studies.distill.expert_study import expert_study
from moescope.studies.distill.gathered import equal_cost_students, gathered, sizes
from moescope.studies.distill.layer_data import model_pairs, read_texts, store_pairs, units_of
from moescope.studies.distill.module_study import distill_module, read_module
from moescope.studies.distill.neighbours import load_dictionary
from moescope.studies.distill.runs import Runs, run_students
from moescope.studies.distill.save import DistilledStudent
from moescope.studies.distill.settings import EXPERT_CLAIMS, NO_PADDING, DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.splice import generation_table, splice_table
from moescope.studies.distill.teacher import Teacher
from moescope.study.names import slug
from moescope.study.protocol import CircuitsLike, Context, ModelLike
from moescope.study.repeat import verb
from moescope.study.result import Artifact, StudyResult
from moescope.study.rows import halves
from moescope.study.run import Run
from moescope.study.verdicts import Case, check_draws
from moescope.types import Claim

_HOLD, _HELD = 20, 100  # every 20th text, at most 100
_SETTINGS, _RUN = DistillSettings(), Run()


@verb
def distill(
    model: ModelLike | Recorded,
    texts: Sequence[str] | str | Path | None = None,
    settings: DistillSettings = _SETTINGS,
    *,
    store: str | Path | None = None,
    circuits: CircuitsLike = None,
    dictionary: str | Path | None = None,
    run: Run = _RUN,
) -> StudyResult:
    """Distil one MLP layer into dense and mixture-of-experts students, on its activations and on the controls.

    Implements "Secret mixtures of experts inside your LLM" (arXiv 2512.18452) with the nulls that it lacks.

    Args:
        model: loaded with its head where it is given by name; the model's loss with a student in the layer's place needs it.
            Or what :func:`moescope.record` recorded of any module of any torch model: then nothing is read.
        texts: what to read activations on, or a file of texts parted by blank lines, raw WikiText by articles; None: the
            shipped WikiText-2 excerpt.
        store: an :class:`~moescope.capture.ActivationStore` of ``mlp_in`` and ``mlp_out`` of the layer, read instead of the
            texts that train.
        circuits: of this model: experts are compared with their neurons.
        dictionary: a safetensors file with the decoder (``W_dec``) of a sparse autoencoder of the layer's output or of the
            residual stream: experts are compared with its directions.

    Returns:
        A result of kind ``"distill"``. Tables: ``students``, ``documents``, ``curves``, ``baselines``, ``summary``, ``ratio``,
        ``load``, ``experts`` and, where they could be measured, ``expert_circuits``, ``splice`` and ``generation``. Artifacts:
        ``students/NAME``, the :class:`~moescope.studies.distill.save.DistilledStudent` of each structure, of the first seed on
        activations.

    Raises:
        InputError: there is no such layer or no MLP in it, too little text, an input that is of another model, or no
            student whose training did not diverge.

    >>> import moescope
    >>> settings = moescope.DistillSettings(layer=3, experts=1024, steps=250)
    >>> result = moescope.distill("dense-tiny", settings=settings)  # doctest: +SKIP
    >>> result.table("ratio")  # doctest: +SKIP
    """
    recorded = isinstance(model, Recorded)
    named = recorded or settings.module is not None
    context = Context("distill", settings, run, of=DistillSettings, spread=not named, images=named)
    if named:
        unused = {"store": store, "circuits": circuits, "dictionary": dictionary} | ({"texts": texts} if recorded else {})
        beside = next((name for name, given in unused.items() if given is not None), None)
        if beside is not None:
            raise InputError("does not go with a module that is named or recorded; leave it out", beside)
        if recorded and settings.module is not None:
            raise InputError("what was recorded is of one module already; leave it out", "module")
    if isinstance(model, Recorded):
        return distill_module(context, model, settings)
    if named:
        return distill_module(context, read_module(context, context.load(model), texts, settings), settings)
    with context.noted():
        given = read_texts(texts)
    context.stages.read(list(given))
    loaded = context.load(model, head=True, required=False)
    layer = loaded.n_layers // 2 if settings.layer is None else settings.layer
    teacher = Teacher(loaded, layer)
    shape, width = teacher.shape, _width(teacher)
    known = context.circuits(circuits, loaded)
    directions = None if dictionary is None else load_dictionary(dictionary, shape.d_out)
    context.stages.read(directions)
    check_draws(settings.n_permutations, EXPERT_CLAIMS + len(known), "n_permutations", settings.alpha)
    characters = 2 * (model_limit(loaded) or 1024)  # a token is seldom under two characters
    parts, of = units_of(given, characters, settings.padding)
    # for the spliced model's loss and for reading experts: texts that no student is trained on
    rows = context.rows(halves("pieces of text", of, (of % _HOLD != 0) | (of >= _HOLD * _HELD)))
    read, held = ([parts[i] for i in which] for which in (rows.fit, rows.judge))
    if store is None:
        reading = context.counter(f"reading {loaded.name}")
        with_rows: Any = {"documents": of[rows.fit], "record": context.rows, "keep": context.stage}
        pairs = model_pairs(teacher, read, settings, run, progress=reading, **with_rows)
    else:
        opened = ActivationStore.open(store)
        context.stages.read([[shard.file, shard.sha256] for shard in opened.manifest.shards])
        pairs = store_pairs(teacher, opened, settings, run, record=context.rows)
    specs = settings.students()
    if settings.equal_cost:
        specs |= equal_cost_students(specs, shape, width)
    body: Any = loaded.body
    embedding = body.get_input_embeddings().weight.detach().float().cpu()
    found: dict[str, Runs] = {}
    sources: dict[str, dict[str, float]] = {}
    baselines: list[pd.DataFrame] = []
    unpadded: Pairs | None = None
    if any(name.startswith(NO_PADDING) for name in settings.control):
        plain, reading = dataclasses.replace(settings, padding="drop", control=()), context.counter("reading without padding")
        unpadded = model_pairs(
            teacher, read, plain, run, documents=of[rows.fit], progress=reading, record=context.rows, keep=context.stage
        )
    for name in (ACTIVATIONS, *settings.control):
        here, labeller = pairs, teacher
        if name != ACTIVATIONS:
            here, labeller = _control(context, name, pairs, teacher, read, of[rows.fit], settings, unpadded)
        found[name] = run_students(
            here,
            {n: _start(spec, name) for n, spec in specs.items()},
            shape,
            settings,
            seed=run.seed,
            teacher=labeller,
            checkpoint=context.stages.place(f"training on {name}"),
            progress=context.counter(f"training on {name}"),
        )
        sources[name] = sizes(here, found[name].scaling)
        if not found[ACTIVATIONS].best:
            raise InputError("every student diverged; give lower ones", "lr")
        explained = context.stage(f"baselines on {name}", partial(baseline_fvu, here, embedding))
        baselines.append(pd.DataFrame({"data": name, "baseline": [*explained], "fvu": [*explained.values()]}))
    frames = gathered(found, baselines)
    best = found[ACTIVATIONS].best
    if loaded.has_head:
        spliced = partial(splice_table, teacher, best, held, documents=of[rows.judge], seed=run.seed)
        frames["splice"] = context.stage("splicing students in", partial(spliced, batch_tokens=run.batch_tokens))
        frames["generation"] = context.stage("generating with students", partial(generation_table, teacher, best, held))
    about_experts: list[Case | Claim] = []
    for read_one, untrained in found[ACTIVATIONS].untrained.items():
        reading_experts = partial(
            expert_study,
            teacher,
            read_one,
            best[read_one],
            held,
            settings,
            untrained=untrained,
            circuits=known,
            dictionary=directions,
            characters=characters,
            run=run,
        )
        found_experts, about_experts = context.stage(f"reading experts of {read_one}", reading_experts)
        frames |= found_experts
    students: dict[str, Artifact] = {
        f"students/{slug(name)}": DistilledStudent(student, loaded.fingerprint, layer) for name, student in best.items()
    }
    return context.result(
        model=loaded,
        title=f"Layer {layer} of {loaded.name} distilled",
        claims=[*distill_claims(Evidence(frames, settings), shape, width), *about_experts],
        tables=frames,
        artifacts=students,
        layer=layer,
        data={"source": pairs.name, **{split: count(pairs, split) for split in SPLITS}},
        sources=sources,
        teacher={**dataclasses.asdict(shape), "width": width},
    )


def _control(
    context: Context,
    name: str,
    pairs: Pairs,
    teacher: Teacher,
    texts: Sequence[str],
    documents: np.ndarray,
    settings: DistillSettings,
    unpadded: Pairs | None,
) -> tuple[Pairs, Teacher]:
    """The control's data and the layer that they come from, its distance from the real ones put on record."""
    labeller, run, evidence = teacher, context.run, ""
    if name == "twin":
        twin: LoadedModel = random_twin(teacher.model, run.seed)
        labeller, evidence = Teacher(twin, teacher.layer), f"fingerprint {twin.fingerprint}, not {teacher.model.fingerprint}; "
        reading = context.counter(f"reading {twin.name}")
        here = model_pairs(
            labeller, texts, settings, run, documents=documents, progress=reading, record=context.rows, keep=context.stage
        )
    elif unpadded is not None and name.startswith(NO_PADDING):
        here = unpadded if name == NO_PADDING else control_pairs("gaussian", unpadded, teacher, seed=run.seed)
        pairs = pairs if name == NO_PADDING else unpadded
    else:
        here = control_pairs(name, pairs, teacher, seed=run.seed)
    inputs, outputs = distances(here, pairs)
    context.control(
        name,
        differs=max(inputs, outputs) > 0.01,
        evidence=f"{evidence}inputs differ by {inputs:.2f} and outputs by {outputs:.2f} of the real ones' norm",
    )
    return here, labeller


def _start(spec: StudentSpec, data: str) -> StudentSpec:
    """The teacher's neurons are a start where the labels are the teacher's."""
    return dataclasses.replace(spec, start="random") if data in ("shuffled-teacher", "twin") else spec


def _width(teacher: Teacher) -> int | None:
    """Neurons of the teacher; None for a block of experts."""
    inner = [site for site in teacher.model.sites("mlp_act") if site.layer == teacher.layer]
    return teacher.model.width(inner[0]) if inner else None
