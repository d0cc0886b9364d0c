"""The steering study: what was done to experts or neurons, what it did to the loss, and whether random ones do as much."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from moescope.errors import InputError
from moescope.intervene.experts import ExpertEdits, edits_by_layer, steer_experts
from moescope.intervene.text_loss import Applied
from moescope.studies.steer.effects import EffectSettings, Texts, prepare_texts
from moescope.studies.steer.experts_effect import Usage, steering_effects, text_usage
from moescope.studies.steer.neurons_effect import ablated, ablation_effects, neuron_moments
from moescope.studies.steer.settings import Ablation, Steering
from moescope.studies.steer.verdicts import steering_claims
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks.passages import Passage
from moescope.tasks.wikitext import plain_text

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Report = Callable[[str, int, int], None]
WIKITEXT = "wikitext"


def steer_study(
    model: LoadedModel,
    steerings: Sequence[Steering],
    passages: Sequence[Passage],
    *,
    settings: EffectSettings | None = None,
    samples: Mapping[str, str] | None = None,
    max_new_tokens: int = 40,
    report: Report | None = None,
) -> StudyResult:
    """Measure each steering on every category's text and on WikiText, against matched random experts or neurons.

    Args:
        passages: texts by category, other than those by which the experts were chosen; WikiText is added.
        samples: prompt by name, continued greedily before and after.
        report: called with (stage, done, total).

    Returns:
        Kind ``"steer"``; tables ``effects`` (:func:`compare_effects` with ``steering`` in front),
        ``experts`` or ``neurons`` (what was edited, experts with their usage by category) and ``samples``.

    Raises:
        InputError: nothing to do, a model without its head, an expert or neuron that is not there, a category without
            texts.
    """
    settings = settings or EffectSettings()
    if not steerings:
        raise InputError("nothing to steer: give --ban-expert, --ban-top, --like, --ablate or another edit")
    for steering in steerings:  # before the model runs for minutes
        if isinstance(steering.edits, ExpertEdits):
            edits_by_layer(model, steering.edits)
    began = time.time()
    if all(p.category != WIKITEXT for p in passages):
        passages = [*passages, *_wikitext()]
    texts = prepare_texts(model, passages, settings)
    usage: Usage = {}
    if any(isinstance(s.edits, ExpertEdits) for s in steerings):
        usage = text_usage(model, texts, batch_tokens=settings.batch_tokens)
    frames: list[pd.DataFrame] = []
    rows: dict[str, list[dict[str, Any]]] = {"experts": [], "neurons": [], "samples": []}
    for steering in steerings:
        frame = _effects(model, steering, texts, usage, settings, report)
        frame.insert(0, "steering", steering.name)
        frames.append(frame)
        if isinstance(steering.edits, ExpertEdits):
            rows["experts"] += _expert_rows(steering.name, steering.edits, usage)
        else:
            rows["neurons"] += [{"steering": steering.name, "neuron": str(n)} for n in steering.edits.neurons]
        rows["samples"] += _sample_rows(model, steering, texts, settings, samples or {}, max_new_tokens)
    if report is not None:
        report("done", 1, 1)
    effects = pd.concat(frames, ignore_index=True)
    meta = provenance(model, [], seed=settings.seed, settings=dataclasses.asdict(settings))
    meta["title"] = f"Steering {model.name}"
    meta["seconds"] = round(time.time() - began, 1)
    meta["texts"] = {
        c: {"texts": len(texts.rows(c)), "tokens": int(texts.encoded.lengths[texts.rows(c)].sum())} for c in texts.categories
    }
    claims = [claim for steering in steerings for claim in steering_claims(steering, effects)]
    tables = {"effects": effects} | {name: pd.DataFrame(found) for name, found in rows.items() if found}
    return StudyResult("steer", meta, tuple(claims), tables=tables)


def _wikitext() -> list[Passage]:
    """Paragraphs from all over the shipped excerpt, so that a few come from many articles."""
    paragraphs = plain_text()
    return [Passage(text, WIKITEXT, str(i)) for i, text in enumerate(paragraphs[:: max(1, len(paragraphs) // 60)])]


def _effects(
    model: LoadedModel, steering: Steering, texts: Texts, usage: Usage, settings: EffectSettings, report: Report | None
) -> pd.DataFrame:
    def count(done: int, total: int) -> None:
        if report is not None:
            report(f"{steering.name}: against random ones", done, total)

    options: dict[str, Any] = {"target": steering.target, "settings": settings, "progress": count}
    if isinstance(steering.edits, ExpertEdits):
        return steering_effects(model, steering.edits, texts, usage, **options)
    return ablation_effects(model, steering.edits.neurons, texts, mode=steering.edits.mode, **options)


def _expert_rows(name: str, edits: ExpertEdits, usage: Usage) -> list[dict[str, Any]]:
    rows = []
    for expert in edits.experts:
        done = [word for word, members in (("ban", edits.ban), ("force", edits.force)) if expert in members]
        done += [word for word, values in (("boost", edits.boost), ("scale", edits.scale)) if expert in values]
        row = {"steering": name, "layer": expert.layer, "expert": expert.number, "edit": "+".join(done)}
        row |= {"boost": edits.boost.get(expert), "scale": edits.scale.get(expert)}
        rows.append(row | {f"usage_{c}": float(u[expert.layer][expert.number]) for c, u in usage.items()})
    return rows


def _sample_rows(
    model: LoadedModel,
    steering: Steering,
    texts: Texts,
    settings: EffectSettings,
    samples: Mapping[str, str],
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    if not samples:
        return []
    applied: Applied = (
        partial(steer_experts, model, steering.edits)
        if isinstance(steering.edits, ExpertEdits)
        else _ablated(model, steering.edits, texts, settings)
    )
    rows = []
    for name, prompt in samples.items():
        before = continuation(model, prompt, max_new_tokens)
        with applied():
            after = continuation(model, prompt, max_new_tokens)
        rows.append({"steering": steering.name, "sample": name, "prompt": prompt, "before": before, "after": after})
    return rows


def _ablated(model: LoadedModel, ablation: Ablation, texts: Texts, settings: EffectSettings) -> Applied:
    means, _ = neuron_moments(model, ablation.neurons, texts, batch_tokens=settings.batch_tokens)
    return ablated(model, ablation.neurons, ablation.mode, means)


@torch.no_grad()
def continuation(model: LoadedModel, prompt: str, max_new_tokens: int) -> str:
    """What the model writes after the prompt, greedily."""
    inputs = model.tokenizer(prompt, return_tensors="pt")
    module: Any = model.module
    out = module.generate(
        inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return str(model.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
