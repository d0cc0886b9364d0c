"""The second study, whole: from a model and prompts, or a trace, to signatures, their nulls, and claims with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture import activations
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.routing.cards import expert_cards
from moescope.routing.chosen import choice_of
from moescope.routing.nulls import uniform_router
from moescope.routing.separation import Estimate, estimate, two_sided
from moescope.routing.signatures import Signatures, signatures_of
from moescope.routing.similarity import similarity
from moescope.routing.subject import Subject, check_categories, subject_of
from moescope.routing.trace import RoutingTrace
from moescope.routing.traced import is_trace, read_routing
from moescope.studies.signatures.cards import chosen_experts
from moescope.studies.signatures.claims import signature_claims
from moescope.studies.signatures.classifications import classification_tables
from moescope.studies.signatures.evidence import Evidence
from moescope.studies.signatures.experts import expert_table, layer_table
from moescope.studies.signatures.maps import map_table, matrix_tables
from moescope.studies.signatures.overflow import overflow_table
from moescope.studies.signatures.published import RECORD
from moescope.studies.signatures.rivals import separation_rivals
from moescope.studies.signatures.separations import layer_nulls, null_table, random_curve, similarity_table, twin_row
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.structure import depth_trend, load_table, preference, silhouette
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.run import Run

_SETTINGS, _RUN = SignatureSettings(), Run()


@verb
def signatures(
    model: ModelLike | RoutingTrace,
    prompts: PromptsLike | None = None,
    settings: SignatureSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Does a mixture-of-experts model route by task? The published comparison beside what chance and trivial cues give.

    Implements "Task-Conditioned Routing Signatures in Sparse Mixture-of-Experts Transformers" (arXiv 2603.11114), with the
    controls that it lacks.

    Args:
        model: Hub id, local folder, embedded name, or a loaded model (with its head, if tokens are to be generated); or a
            recorded trace (:func:`moescope.trace`), or as a ``Path`` the folder of one that is not a model's.
        prompts: labelled prompts, the name of a shipped set, or a file; by default ``routing-480``, and for a trace what it
            says of its sequences.

    Returns:
        A result of kind ``"signatures"``: tables ``similarity``, ``routing_nulls``, ``routing_accuracy``, ``confusion``,
        ``routing_layers``, ``layer_nulls``, ``random_curve``, ``experts`` with the cards ``expert_tokens``,
        ``expert_categories`` and ``expert_contexts``, ``signature_map``, ``category_similarity``, ``similarity_matrix``.

    Raises:
        InputError: the input cannot be used: a dense model without ``neuron_share`` or ``dense_experts``, categories missing or
            of one prompt, a damaged trace, a trace in which all prompts are routed alike, …

    >>> import moescope
    >>> result = moescope.signatures("moe-tiny", "routing-80", run=moescope.Run(seed=1))  # doctest: +SKIP
    >>> result.table("routing_nulls")  # doctest: +SKIP
    """
    context = Context("signatures", settings, run, of=SignatureSettings, spread=True)
    trace, labelled, loaded, twin = read_routing(
        context,
        model,
        prompts,
        check=lambda given: check_categories([p.id for p in given], [p.category for p in given]),
        new_tokens=settings.new_tokens,
        dense_experts=settings.dense_experts,
        twin=settings.twin,
        tokenizer=settings.tokenizer,
        choice=(lambda model: None) if settings.dense_experts else partial(choice_of, share=settings.neuron_share),
    )
    subject = subject_of(trace, labelled, None if loaded is None else loaded.tokenizer)
    grouped, chosen = "experts" in trace.meta, trace.meta.get("neurons")
    if chosen:
        context.note(
            f"Note: an expert is here a neuron of an MLP, chosen for each token as by `moescope sparsify`: {_span(chosen)} of "
            f"{_span(trace.n_experts)} in each layer{'' if settings.neuron_share is None else ', while all run'}. "
            "Prompts alone are read, without a chat template's tokens."
        )
    elif grouped:
        context.note(
            f"Note: a dense model routes nothing. An expert is here one of {trace.n_experts[0]} groups of an MLP's neurons "
            f"that fire on the same tokens of these prompts; the {trace.top_k} most active on a token, each over its usual "
            "activity, count as chosen. Prompts alone are read, without a chat template's tokens."
        )
    stream = _stream(context, loaded, subject) if chosen and not is_trace(model) else None
    _note_lengths(context, subject, 0 if is_trace(model) else settings.new_tokens)
    name = trace.meta.get("model") or "a recorded trace" if loaded is None else loaded.name
    whole = loaded is None or loaded.quantisation is None
    same = whole and _published_protocol(str(name), subject, settings)
    tables, found = context.stage(
        "signatures and their nulls", lambda: _tables(context, subject, settings, twin, stream, same=same), subject=subject
    )
    return context.result(
        model=loaded or name,
        title=f"{'Neuron-choice' if chosen else 'Neuron-group' if grouped else 'Routing'} signatures of {name}",
        claims=signature_claims(tables, found),
        tables=tables,
        tasks=[] if subject.texts is None else [subject.task()],
        categories=subject.categories,
        trace=dict(trace.meta),
        moe_layers=list(trace.layers),
        experts=list(trace.n_experts),
        top_k=trace.top_k,
        prompts=len(subject),
        traced_tokens=len(trace),
        tokens_of_prompts=[int(trace.lengths.min()), int(trace.lengths.max())],
    )


def _stream(context: Context, model: LoadedModel | None, subject: Subject) -> np.ndarray:
    """float32 (N, L * D): the residual stream after every layer, a mean over a prompt's tokens."""
    assert model is not None
    assert subject.texts is not None
    limits: dict[str, Any] = {"batch_tokens": context.run.batch_tokens, "max_tokens": context.run.max_tokens}
    reading = partial(activations, model, subject.texts, "resid", position="mean", **limits)
    read = context.stage("residual stream", partial(reading, progress=context.counter("residual stream")))
    return np.asarray(read).reshape(len(read), -1)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _published_protocol(name: str, subject: Subject, settings: SignatureSettings) -> bool:
    """Whether model and protocol are the source's: its figures can then be reproduced."""
    protocol = RECORD["protocol"]
    alike = (len(subject), sorted(subject.categories), settings.new_tokens, settings.quantity)
    theirs = (protocol["prompts"], sorted(protocol["categories"]), protocol["generated_tokens"], "frequency")
    return name.rpartition("/")[2] == RECORD["model"] and alike == theirs


def _tables(
    context: Context,
    subject: Subject,
    settings: SignatureSettings,
    twin: RoutingTrace | None,
    stream: np.ndarray | None,
    *,
    same: bool,
) -> tuple[dict[str, pd.DataFrame], Evidence]:
    """All tables of the study and the evidence; ``twin`` is the trace of a randomly initialised model on the same prompts,
    ``stream`` (N, D) their residual stream where that is compared with the choice of neurons."""
    head = _varied(signatures_of(subject.trace, quantity=settings.quantity))
    seed, cells = context.run.seed, subject.cells()
    labels = cells.labels(settings.n_permutations, seed)
    tables: dict[str, pd.DataFrame] = {}
    tell, total = context.counter("signatures and their nulls"), 8
    tell(0, total)
    tables["similarity"] = similarity_table(subject, settings, seed)
    tell(1, total)
    nulls, beyond, not_run = null_table(subject, settings, context)
    if twin is not None:
        row, beyond["random model"] = twin_row(subject, twin, context)
        nulls = pd.concat([nulls, pd.DataFrame([row])], ignore_index=True)
    tables["routing_nulls"] = nulls
    rivals, lacking = separation_rivals(subject, similarity(head.flat()), tables["similarity"], beyond, settings, seed)
    tell(2, total)
    tables["routing_layers"], without = layer_table(head, cells, labels)
    d = tables["routing_layers"]["d"].to_numpy()
    judged = len(d) > 2 and np.ptp(d) > 0 and not np.isnan(without).any()
    trend = depth_trend(d, without, cells) if judged else None
    tables["layer_nulls"] = layer_nulls(subject, settings, seed)
    tell(3, total)
    tables["random_curve"] = random_curve(subject, seed)
    tell(4, total)
    told_tables, told = classification_tables(subject, settings, context, stream)
    tell(5, total)
    tables |= told_tables
    tables["experts"], null = expert_table(head, subject, labels)
    chosen = chosen_experts(tables["experts"], settings)
    tables |= expert_cards(subject.trace, chosen, decode=subject.decode, seed=seed)
    value, left = preference(head, cells)
    experts = estimate(value - float(null.mean()), left - float(null.mean()), cells)._replace(p=two_sided(value, null))
    twin_experts, twin_carrying = (None, "") if twin is None else _beside_twin(subject, twin, labels, settings)
    tell(6, total)
    balanced = uniform_router(subject.trace)
    tables["routing_load"], load = load_table(subject.trace, cells, balanced, settings.n_nulls, seed)
    if "experts" not in subject.trace.meta:
        factors = (settings.capacity_factors, settings.batches)
        tables["overflow"] = overflow_table(subject.trace, cells, *factors, settings.n_nulls, seed)
    clusters = silhouette(similarity(head.flat()), cells, labels)
    tables["signature_map"] = map_table(head, subject, seed=seed)
    tell(7, total)
    tables |= matrix_tables(head, subject)
    return tables, Evidence(
        subject, settings, rivals, (*not_run, *lacking), beyond, told, trend, clusters, experts, twin_experts, twin_carrying,
        load, same,
    )  # fmt: skip


def _beside_twin(subject: Subject, twin: RoutingTrace, labels: np.ndarray, settings: SignatureSettings) -> tuple[Estimate, str]:
    """How much more of the experts' use the categories explain than in the twin, on prompt tokens; and the twin's own count."""
    cells = subject.cells()
    own, other = (signatures_of(trace, part="prompt") for trace in (subject.trace, twin))
    (a, a_left), (b, b_left) = (preference(found, cells) for found in (own, other))
    table, _ = expert_table(other, subject, labels)
    carrying = int((table["p_family"] <= settings.alpha).sum())
    return estimate(a - b, a_left - b_left, cells), f"{carrying} of {len(table)} experts"


def _varied(found: Signatures) -> Signatures:
    """``found``, if any two prompts differ in it.

    Raises:
        InputError: none do, so that no null could differ from what was measured.
    """
    if not np.ptp(found.values, axis=0).any():
        raise InputError("every prompt is routed alike (to all experts, or to the same): there are no signatures to compare")
    return found


def _note_lengths(context: Context, subject: Subject, new_tokens: int) -> None:
    """What a reader must know of the prompts before any cosine: how long each category's are.

    ``new_tokens``: how many were asked for; 0 where a recorded trace does not say.
    """
    trace = subject.trace
    generated = np.bincount(trace.sequence[trace.generated], minlength=len(subject))
    what = " with what was generated" if trace.generated.any() else ""
    middle = [f"{c} {np.median(trace.lengths[subject.y == i]):.0f}" for i, c in enumerate(subject.categories)]
    context.note(f"Note: median tokens of a prompt{what}: {', '.join(middle)}.")
    # The last generated token is never fed back to the model, so it has no routing.
    short = float((generated < new_tokens - 1).mean())
    if trace.generated.any() and short > 0.1:
        context.note(f"Note: {short:.0%} of the texts ended before {new_tokens} tokens were generated.")
