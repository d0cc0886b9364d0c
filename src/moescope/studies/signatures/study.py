"""The second study, whole: from a model and prompts, or a trace, to signatures, their nulls, and claims with verdicts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel, load, random_twin
from moescope.routing.capture import trace_prompts
from moescope.routing.dense import dense_trace, is_dense
from moescope.routing.signatures import signatures_of
from moescope.routing.subject import Subject, check_categories, subject_of
from moescope.routing.trace import RoutingTrace
from moescope.studies.signatures.cards import card_tables
from moescope.studies.signatures.classifications import classification_tables
from moescope.studies.signatures.experts import expert_table, layer_table
from moescope.studies.signatures.maps import map_table, matrix_tables
from moescope.studies.signatures.separations import layer_nulls, null_table, random_curve, similarity_table, twin_row
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.verdicts import signature_claims
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks.prompts import Prompt, load_prompts

Report = Callable[[str, int, int], None]
DEFAULT_PROMPTS = "routing-480"


def signatures(
    model: str | LoadedModel | None = None,
    prompts: Sequence[Prompt] | str | None = None,
    *,
    trace: RoutingTrace | None = None,
    settings: SignatureSettings | None = None,
    report: Report | None = None,
    **options: Any,
) -> StudyResult:
    """Does a mixture-of-experts model route by task? The published comparison beside what chance and trivial cues give.

    Implements "Task-Conditioned Routing Signatures in Sparse Mixture-of-Experts Transformers" (arXiv 2603.11114), with the
    controls that it lacks.

    Args:
        model: Hub id, local folder, embedded name, or a model loaded with its head. Not needed with ``trace``; given
            beside one, its tokenizer reads the tokens.
        prompts: labelled prompts, the name of a shipped set, or a file; by default ``routing-480`` (with ``trace``: what
            the trace says of its sequences).
        trace: a recorded trace to study instead of running the model.
        settings: see :class:`SignatureSettings`; or give its fields as keyword options.
        report: called with (stage, done, total) for progress.

    Returns:
        A :class:`moescope.study.result.StudyResult` of kind ``"signatures"``.

    Raises:
        InputError: when the input cannot be used (neither model nor trace, a dense model, categories missing or of one
            prompt, …); the message is one line.
    """
    settings = dataclasses.replace(settings or SignatureSettings(), **options)
    began = time.time()
    tell = report or (lambda stage, done, total: None)
    if isinstance(prompts, str) or (prompts is None and trace is None):
        prompts = load_prompts(prompts or DEFAULT_PROMPTS)
    loaded = load(model, head=settings.new_tokens > 0 and trace is None) if isinstance(model, str) else model
    twin_trace = None
    if trace is None:
        if loaded is None:
            raise InputError("MODEL: name a model to run, or give --trace with a recorded trace")
        assert prompts is not None
        # Before the model runs for minutes.
        check_categories([p.id for p in prompts], [p.category for p in prompts])
        trace = _trace(loaded, prompts, settings, tell, "reading and generating", settings.new_tokens)
        if settings.twin:
            twin = random_twin(loaded, settings.seed)
            twin_trace = _trace(twin, prompts, settings, tell, "a random model's routing", 0)
    subject = subject_of(trace, prompts, None if loaded is None else loaded.tokenizer)
    tables = study_tables(subject, settings, tell, twin_trace)
    claims = signature_claims(tables, subject)
    meta = _meta(subject, loaded, settings)
    meta["seconds"] = round(time.time() - began, 1)
    tell("done", 1, 1)
    return StudyResult("signatures", meta, tuple(claims), {}, tables)


def study_tables(
    subject: Subject, settings: SignatureSettings, tell: Report, twin: RoutingTrace | None = None
) -> dict[str, pd.DataFrame]:
    """All tables of the study; ``twin`` is the trace of a randomly initialised model on the same prompts."""
    head = signatures_of(subject.trace, quantity=settings.quantity)
    blocks = subject.blocks()
    shared: dict[str, Any] = {"groups": blocks, "n_permutations": settings.n_permutations, "seed": settings.seed}
    tables: dict[str, pd.DataFrame] = {}
    stage, total = "signatures and their nulls", 8
    tell(stage, 0, total)
    tables["similarity"] = similarity_table(subject, settings)
    tell(stage, 1, total)
    tables["routing_nulls"] = null_table(subject, settings)
    if twin is not None:
        row = twin_row(subject, twin)
        tables["routing_nulls"] = pd.concat([tables["routing_nulls"], pd.DataFrame([row])], ignore_index=True)
    tell(stage, 2, total)
    tables["routing_layers"] = layer_table(head, subject.y, **shared)
    tables["layer_nulls"] = layer_nulls(subject, settings)
    tell(stage, 3, total)
    tables["random_curve"] = random_curve(subject, settings)
    tell(stage, 4, total)
    tables |= classification_tables(subject, settings)
    tell(stage, 5, total)
    tables["experts"] = expert_table(head, subject.y, subject.categories, **shared)
    tables |= card_tables(subject, tables["experts"], settings)
    tell(stage, 6, total)
    tables["signature_map"] = map_table(head, subject, seed=settings.seed)
    tell(stage, 7, total)
    return tables | matrix_tables(head, subject)


def _trace(
    model: LoadedModel, prompts: Sequence[Prompt], settings: SignatureSettings, tell: Report, stage: str, new_tokens: int
) -> RoutingTrace:
    if is_dense(model):
        if not settings.dense_experts:
            raise InputError(
                f"model {model.name} is dense: it has no experts to trace; give --dense-experts 16 to read groups of its "
                "neurons as experts, or study it with `moescope circuits`"
            )
        return dense_trace(
            model,
            prompts,
            n_experts=settings.dense_experts,
            k=max(1, settings.dense_experts // 4),
            max_tokens=settings.max_tokens,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            progress=lambda done, total: tell("reading", done, total),
        )
    return trace_prompts(
        model,
        prompts,
        max_new_tokens=new_tokens,
        max_tokens=settings.max_tokens,
        batch_tokens=settings.batch_tokens,
        progress=lambda done, total: tell(stage, done, total),
    )


def _meta(subject: Subject, model: LoadedModel | None, settings: SignatureSettings) -> dict[str, Any]:
    trace = subject.trace
    tasks = [] if subject.texts is None else [subject.task()]
    if model is not None:
        meta = provenance(model, tasks, seed=settings.seed, settings=dataclasses.asdict(settings))
    else:
        meta = {"seed": settings.seed, "settings": dataclasses.asdict(settings)}
    name = meta.get("model") or trace.meta.get("model") or "a recorded trace"
    return {
        **meta,
        "notes": _notes(subject, settings),
        "model": name,
        "title": f"Routing signatures of {name}",
        "tasks": subject.categories,
        "trace": dict(trace.meta),
        "moe_layers": list(trace.layers),
        "experts": list(trace.n_experts),
        "top_k": trace.top_k,
        "prompts": len(subject),
        "traced_tokens": len(trace),
        "tokens_of_prompts": [int(trace.lengths.min()), int(trace.lengths.max())],
    }


def _notes(subject: Subject, settings: SignatureSettings) -> list[str]:
    """What a reader must know of the prompts before any cosine: how long each category's are."""
    trace = subject.trace
    generated = np.bincount(trace.sequence[trace.generated], minlength=len(subject))
    middle = [f"{c} {np.median(trace.lengths[subject.y == i]):.0f}" for i, c in enumerate(subject.categories)]
    notes = [f"Note: median tokens of a prompt with what was generated: {', '.join(middle)}."]
    # The last generated token is never fed back to the model, so it has no routing.
    short = float((generated < settings.new_tokens - 1).mean())
    if trace.generated.any() and short > 0.1:
        notes.append(f"Note: {short:.0%} of the texts ended before {settings.new_tokens} tokens were generated.")
    return notes
