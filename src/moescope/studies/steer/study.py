"""The steering study: what was done to experts or neurons, what it did to the loss, and whether random ones do as much."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.intervene.experts import ExpertEdits, edits_by_layer
from moescope.intervene.text_loss import Applied
from moescope.models import LoadedModel
from moescope.studies.steer.claims import FAMILY, export_claim, steering_claims
from moescope.studies.steer.effects import Plan, Texts, compare_effects, prepare_texts
from moescope.studies.steer.experts_effect import Usage, experts_plan, text_usage
from moescope.studies.steer.export import check_engine, check_patch, export
from moescope.studies.steer.neurons_effect import check_circuit_of, neurons_plan
from moescope.studies.steer.settings import SteerSettings
from moescope.studies.steer.steering import Steering, by_category, by_hand, categories
from moescope.studies.steer.unseen import beside_others, check_documents, few_prompts, for_unseen
from moescope.study.protocol import Context, ModelLike, PromptsLike, TextsLike
from moescope.study.repeat import verb
from moescope.study.result import Artifact, StudyResult
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.study.verdicts import check_draws
from moescope.tasks import Prompt
from moescope.tasks.passages import Passage
from moescope.tasks.wikitext import plain_text

WIKITEXT = "wikitext"
MOST = 1536
"""Tokens of each category's text where the settings name none"""
_LEAST = 256
_BUDGET = 5e13  # weights times forward tokens of one steering: a quarter of an hour on a few cores
_SETTINGS, _RUN = SteerSettings(), Run()


@verb
def steer(
    model: ModelLike,
    texts: TextsLike = None,
    settings: SteerSettings = _SETTINGS,
    *,
    prompts: PromptsLike = "routing-480",
    run: Run = _RUN,
) -> StudyResult:
    """Ban, force, boost or scale experts, or ablate neurons, and measure what that does to the loss, beside random ones.

    Each edit is measured on every category's text and on WikiText. Edits by hand are one steering together; each category
    of ``ban_top``, ``like`` and ``unseen`` is one of its own.

    Args:
        model: with its head where it is loaded already.
        texts: passages with category and group, or a file of them; None: the shipped ones. WikiText is added.
        prompts: with categories, by which ``ban_top``, ``like`` and ``unseen`` choose experts; the first of each is continued
            greedily before and after.

    Returns:
        A result of kind ``"steer"``: tables ``effects``, ``experts`` or ``neurons`` (what was edited), ``samples``, with
        ``settings.unseen`` the table ``others`` (boosts by other categories' prompts), and with ``settings.export`` the
        table ``export`` and the artifact ``checkpoint``.

    Raises:
        InputError: nothing to do, a model without its head, an expert or neuron that is not there, a circuit of another model,
            a category without texts, too few random sets for a verdict; an export that this architecture cannot have.

    >>> import moescope
    >>> settings = moescope.SteerSettings(ban=("1:2",), target="code")
    >>> moescope.steer("moe-tiny", settings=settings).claims[0].outcome  # doctest: +SKIP
    """
    context = Context("steer", settings, run, of=SteerSettings)
    asked, passages = list(context.prompts(prompts)), list(context.passages(texts))
    if all(p.category != WIKITEXT for p in passages):
        passages += _wikitext()
    if settings.export is not None:
        check_engine(settings.export)
    steerings = by_hand(settings)
    chosen = categories(settings, asked)
    if not (steerings or chosen or settings.like_text):
        raise InputError("nothing to steer: give ban=5:17, ban_top=each, like=code, ablate=FILE or another edit")
    without_target = settings.like_text is not None or bool(steerings and settings.target is None)
    family = len({p.category for p in passages}) if without_target else FAMILY
    check_draws(settings.n_random, family, "n_random", settings.alpha, sides=2)
    _check_texts([*chosen, *([] if settings.target is None else [settings.target])], passages)
    traced = bool(settings.ban_top or settings.like or settings.like_text)
    selecting = asked if traced else []
    if settings.unseen:
        few = few_prompts(asked, max(n for _, n in settings.unseen_prompts), run.seed)
        check_documents(few, passages, [category for category, _ in settings.unseen_prompts])
        selecting = selecting or few
    _check_apart(selecting, passages)
    loaded = context.load(model, head=True)
    if settings.ablate is not None:
        check_circuit_of(settings.ablate, loaded)
    if traced:
        steerings += context.stage("choosing experts", lambda: by_category(loaded, asked, settings, run))
    if settings.unseen:
        boosts = partial(for_unseen, loaded, asked, settings.unseen_prompts, run)
        steerings += context.stage("boosts by a few prompts", boosts)
    for steering in steerings:  # before the model runs for minutes
        if isinstance(steering.edits, ExpertEdits):
            edits_by_layer(loaded, steering.edits)
    if settings.export is not None:
        if len(steerings) > 1:
            raise InputError(f"one checkpoint holds one steering, and these are {len(steerings)}; ask for one", "export")
        check_patch(loaded, steerings[0].edits)
    sets = [_sets(steering, settings) for steering in steerings]
    tokens = settings.text_tokens
    if tokens is None:
        tokens = _affordable(loaded, max(sets) * len({p.category for p in passages}))

    def prepare() -> tuple[Texts, float]:
        began = time.perf_counter()
        return prepare_texts(loaded, passages, tokens, settings, run), time.perf_counter() - began

    prepared, took = context.stage("loss without steering", prepare)
    forward = _announce(context, prepared, steerings, sets, took)
    if tokens < (MOST if settings.text_tokens is None else 0):
        context.note(
            f"Note: {tokens} tokens of each category's text judge instead of {MOST}, for what {loaded.name} would take to read "
            "(text_tokens)."
        )
    context.rows(_rows(selecting, prepared))
    usage: Usage = {}
    if any(isinstance(s.edits, ExpertEdits) for s in steerings):
        usage = context.stage("use of the experts", lambda: text_usage(loaded, prepared, batch_tokens=run.batch_tokens))
    samples = {p.category or p.id: p.text for p in reversed(asked)} if settings.new_tokens else {}
    continued = partial(_continued, loaded, samples, settings.new_tokens)
    before = context.stage("continuing the samples", continued)
    frames: list[pd.DataFrame] = []
    beside: list[pd.DataFrame] = []
    rows: dict[str, list[dict[str, Any]]] = {"experts": [], "neurons": [], "samples": []}
    for steering in steerings:
        if isinstance(steering.edits, ExpertEdits):
            plan = experts_plan(loaded, steering.edits, prepared, usage, target=steering.target, settings=settings, run=run)
            rows["experts"] += _expert_rows(steering.name, steering.edits, usage)
        else:
            neurons, mode = steering.edits.neurons, steering.edits.mode
            plan = neurons_plan(loaded, neurons, prepared, settings=settings, mode=mode, run=run)
            rows["neurons"] += [{"steering": steering.name, "neuron": str(n)} for n in neurons]
        _record(context, steering, plan)
        name = f"{steering.name}: against random ones"
        against = partial(compare_effects, prepared, plan, target=steering.target, run=run, progress=context.counter(name))
        frame = context.stage(name, against)
        frame.insert(0, "steering", steering.name)
        frames.append(frame)
        if steering.others:
            name = f"{steering.name}: against boosts by other categories"
            boosted = partial(beside_others, loaded, steering, prepared, run, context.counter(name))
            beside.append(context.stage(name, boosted))
        after = context.stage(f"{steering.name}: continuing the samples", partial(continued, plan.own))
        rows["samples"] += [
            {"steering": steering.name, "sample": name, "prompt": text, "before": before[name], "after": after[name]}
            for name, text in samples.items()
        ]
    effects = pd.concat(frames, ignore_index=True)
    others = pd.concat(beside, ignore_index=True) if beside else None
    claims = [c for s in steerings for c in steering_claims(s, effects, settings.margin, settings.alpha, others)]
    artifacts: dict[str, Artifact] = {}
    if settings.export is not None:
        edits = steerings[0].edits
        assert isinstance(edits, ExpertEdits)
        written = export(loaded, edits, prepared.encoded)
        claims.append(export_claim(written, settings.export, loaded.config.model_type))
        rows["export"] = [vars(change) for change in written.patch.changes]
        artifacts["checkpoint"] = written.checkpoint
    return context.result(
        model=loaded,
        title=f"Steering {loaded.name}",
        claims=claims,
        artifacts=artifacts,
        tables={"effects": effects}
        | ({} if others is None else {"others": others})
        | {name: pd.DataFrame(found) for name, found in rows.items() if found},
        texts={c: _size(prepared, c) for c in prepared.categories},
        forward_tokens={"steered": forward},
    )


def _sets(steering: Steering, settings: SteerSettings) -> int:
    """How often the texts are run for a steering: its own, and every random set."""
    # what helps boosts every expert: its values are shuffled over a layer, and usage, on which sets are matched, does not enter
    matched = isinstance(steering.edits, ExpertEdits) and steering.target is not None and steering.aim == "harm"
    return 1 + settings.n_random * (len(settings.match) if matched else 1)


def _affordable(model: LoadedModel, runs: int) -> int:
    """Tokens of a category's text, of which each is run ``runs`` times: by what a token costs, so that it is the same on every
    machine."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    weights = 0.0
    for layer in model.structure.layers:
        for name, weight in layer.named_parameters():
            routed = ".experts." in f".{name}" and weight.dim() == 3
            weights += weight.numel() * (chosen / len(weight) if chosen and routed else 1)
    return int(np.clip(_BUDGET / (weights * runs), _LEAST, MOST))


def _announce(context: Context, texts: Texts, steerings: Sequence[Steering], sets: Sequence[int], seconds: float) -> int:
    """Say what the work will be, from the clean pass, before it is begun; returns the forward tokens."""
    whole = int(texts.encoded.lengths.sum())
    beside = sum((1 + len(s.others)) * _size(texts, s.target)["tokens"] for s in steerings if s.others and s.target)
    forward = whole * sum(sets) + beside
    minutes = seconds * forward / whole / 60
    context.tell(f"{forward:,} forward tokens, at most {max(1, round(minutes))} min", 1, 1)
    return forward


def _wikitext() -> list[Passage]:
    """Paragraphs from all over the shipped excerpt, so that a few come from many articles."""
    paragraphs = plain_text()
    return [Passage(text, WIKITEXT, str(i)) for i, text in enumerate(paragraphs[:: max(1, len(paragraphs) // 60)])]


def _check_texts(named: Collection[str], passages: Sequence[Passage]) -> None:
    have = list(dict.fromkeys(p.category for p in passages))
    absent = next((name for name in named if name not in have), None)
    if absent is not None:
        raise InputError(f"category {absent!r} has no texts to measure the loss on; those that have are {', '.join(have)}")


def _check_apart(prompts: Sequence[Prompt], passages: Sequence[Passage]) -> None:
    texts = {p.text.strip() for p in passages}
    both = next((p.id for p in prompts if p.text.strip() in texts), None)
    if both is not None:
        raise InputError(
            f"prompt {both!r} chooses experts and is also among the texts that judge; leave it out of one", "prompts"
        )


def _rows(prompts: Sequence[Prompt], texts: Texts) -> Rows:
    """Prompts choose experts, the documents' texts judge what that does."""
    documents = texts.groups(np.arange(len(texts.passages)))
    groups = np.array([*(f"prompt {p.id}" for p in prompts), *documents])
    return Rows("prompts, then texts", groups, select=np.arange(len(prompts)), judge=np.arange(len(prompts), len(groups)))


def _record(context: Context, steering: Steering, plan: Plan) -> None:
    for match, shared in plan.shared.items():
        context.control(
            f"{steering.name}: random sets matched on {match}",
            differs=shared < 1,
            evidence=f"{plan.sizes[match]} sets share {shared:.1%} of what is done with it on average; "
            f"usage or norm ratio {plan.ratios[match]:.2f}",
        )


def _size(texts: Texts, category: str) -> dict[str, int]:
    rows = texts.rows(category)
    return {"texts": len(rows), "tokens": int(texts.encoded.lengths[rows].sum())}


def _expert_rows(name: str, edits: ExpertEdits, usage: Usage) -> list[dict[str, Any]]:
    rows = []
    for expert in edits.experts:
        done = [word for word, members in (("ban", edits.ban), ("force", edits.force)) if expert in members]
        done += [word for word, values in (("boost", edits.boost), ("scale", edits.scale)) if expert in values]
        row = {"steering": name, "layer": expert.layer, "expert": expert.number, "edit": "+".join(done)}
        row |= {"boost": edits.boost.get(expert), "scale": edits.scale.get(expert)}
        rows.append(row | {f"usage_{c}": float(u[expert.layer][expert.number]) for c, u in usage.items()})
    return rows


def _continued(
    model: LoadedModel, samples: Mapping[str, str], new_tokens: int, applied: Applied = contextlib.nullcontext
) -> dict[str, str]:
    """What the model writes after each sample."""
    with applied():
        return {name: continuation(model, text, new_tokens) for name, text in samples.items()}


@torch.no_grad()
def continuation(model: LoadedModel, prompt: str, max_new_tokens: int) -> str:
    """What the model writes after the prompt, greedily."""
    ids = torch.from_numpy(encode(model, [prompt])[0].astype(np.int64))[None].to(model.device)
    module: Any = model.module
    out = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return str(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
