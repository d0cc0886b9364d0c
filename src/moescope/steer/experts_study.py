"""The steering study: what was done to the experts, what it did to the loss, and whether random experts do as much."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from moescope.provenance import provenance
from moescope.result import StudyResult
from moescope.steer.experts import ExpertEdits, steer_experts
from moescope.steer.experts_effect import EffectSettings, Texts, prepare_texts, steering_effects
from moescope.tasks.passages import Passage
from moescope.tasks.wikitext import plain_text
from moescope.types import Claim, Verdict

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Report = Callable[[str, int, int], None]
WIKITEXT = "wikitext"


@dataclass(frozen=True)
class Steering:
    """One thing to do: a name for it, the edits, what they are meant to hurt or to help, and how that reads in a claim."""

    name: str
    edits: ExpertEdits
    target: str | None = None
    aim: Literal["harm", "help"] = "harm"


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
    """Measure each steering on every category's text and on WikiText, against matched random experts.

    Args:
        passages: texts by category, other than those by which the experts were chosen; WikiText is added.
        samples: prompt by name, continued greedily before and after.
        report: called with (stage, done, total).

    Returns:
        Kind ``"steer"``; tables ``effects`` (:func:`moescope.steer.experts_effect.steering_effects` with ``steering`` in
        front), ``experts`` (what was edited and its usage by category) and ``samples``.

    Raises:
        InputError: the model is dense or has no head, an expert that is not there, a category without texts.
    """
    settings = settings or EffectSettings()
    began = time.time()
    if all(p.category != WIKITEXT for p in passages):
        passages = [*passages, *(Passage(text, WIKITEXT, str(i)) for i, text in enumerate(plain_text()))]
    texts = prepare_texts(model, passages, settings)
    frames, experts, written = [], [], []
    for steering in steerings:
        stage = f"{steering.name}: against random experts"

        def count(done: int, total: int, stage: str = stage) -> None:
            if report is not None:
                report(stage, done, total)

        frame = steering_effects(model, steering.edits, texts, target=steering.target, settings=settings, progress=count)
        frame.insert(0, "steering", steering.name)
        frames.append(frame)
        experts += _expert_rows(steering, texts)
        written += _sample_rows(model, steering, samples or {}, max_new_tokens)
    if report is not None:
        report("done", 1, 1)
    effects = pd.concat(frames, ignore_index=True)
    tables = {"effects": effects, "experts": pd.DataFrame(experts)}
    if written:
        tables["samples"] = pd.DataFrame(written)
    meta = provenance(model, [], seed=settings.seed, settings=dataclasses.asdict(settings))
    meta["title"] = f"Steering the experts of {model.name}"
    meta["seconds"] = round(time.time() - began, 1)
    meta["texts"] = {
        c: {"texts": len(texts.rows(c)), "tokens": int(texts.encoded.lengths[texts.rows(c)].sum())} for c in texts.categories
    }
    claims = [claim for steering in steerings for claim in steering_claims(steering, effects)]
    return StudyResult("steer", meta, tuple(claims), tables=tables)


def steering_claims(steering: Steering, effects: pd.DataFrame) -> list[Claim]:
    """One claim per category that is no target, and for a target one per matching and one on its selectivity."""
    rows = effects.query("steering == @steering.name")
    claims = []
    for row in rows.to_dict("records"):
        if row["target"]:
            claims.append(_target_claim(steering, row))
        elif row["match"] == "overall":
            claims.append(_plain_claim(steering, row))
    return sorted(claims, key=lambda c: not c.details["target"])


_MATCHED = {"overall": "usage over all text", "target": "usage in the category"}


def _target_claim(steering: Steering, row: dict[str, Any]) -> Claim:
    verb, p = ("hurts", row["p_harm"]) if steering.aim == "harm" else ("helps", row["p_help"])
    sign = 1 if steering.aim == "harm" else -1
    clear = min(sign * row["excess_low"], sign * row["excess_high"]) > 0 and p < 0.05
    matched = f"matched random experts (layer, {_MATCHED[row['match']]})"
    if row["category"] == "selectivity":
        what = f"{steering.name}: {verb} {steering.target} more than other text, beyond {matched}"
    else:
        what = f"{steering.name}: {verb} {steering.target} more than {matched} do"
    verdict: Verdict = "measured" if clear else "explained by chance"
    answer = "it does" if clear else "it does not" if p >= 0.05 else "not beyond the interval"
    effect = f"effect {row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] nats a token"
    note = f"{answer}: {effect}; {_random(row)}; measured is the excess over their mean; usage ratio {row['usage_ratio']:.2f}"
    return Claim(
        name=what,
        measured=row["excess"],
        interval=(row["excess_low"], row["excess_high"]),
        null=0.0,
        p=p,
        verdict=verdict,
        note=note,
        details={"target": True, "match": row["match"]},
    )


def _plain_claim(steering: Steering, row: dict[str, Any]) -> Claim:
    p = min(1.0, 2 * min(row["p_harm"], row["p_help"]))
    return Claim(
        name=f"{steering.name}: loss on {row['category']}",
        measured=row["effect"],
        interval=(row["low"], row["high"]),
        null=row["random_mean"],
        p=p,
        verdict="measured" if p < 0.05 else "explained by chance",
        note=f"change from {row['baseline']:.3f} nats a token; {_random(row)}; p is two-sided",
        details={"target": False, "match": row["match"]},
    )


def _random(row: dict[str, Any]) -> str:
    return f"{row['n_random']} random sets {row['random_mean']:+.3f} [{row['random_low']:+.3f}, {row['random_high']:+.3f}]"


def _expert_rows(steering: Steering, texts: Texts) -> list[dict[str, Any]]:
    edits = steering.edits
    rows = []
    for expert in edits.experts:
        done = [name for name, members in (("ban", edits.ban), ("force", edits.force)) if expert in members]
        rows.append(
            {
                "steering": steering.name,
                "layer": expert.layer,
                "expert": expert.number,
                "edit": "+".join(done + [n for n, v in (("boost", edits.boost), ("scale", edits.scale)) if expert in v]),
                "boost": edits.boost.get(expert),
                "scale": edits.scale.get(expert),
                **{f"usage_{c}": float(u[expert.layer][expert.number]) for c, u in texts.usage.items()},
            }
        )
    return rows


def _sample_rows(model: LoadedModel, steering: Steering, samples: Mapping[str, str], tokens: int) -> list[dict[str, Any]]:
    rows = []
    for name, prompt in samples.items():
        before = continuation(model, prompt, tokens)
        with steer_experts(model, steering.edits):
            after = continuation(model, prompt, tokens)
        rows.append({"steering": steering.name, "sample": name, "prompt": prompt, "before": before, "after": after})
    return rows


@torch.no_grad()
def continuation(model: LoadedModel, prompt: str, max_new_tokens: int) -> str:
    """What the model writes after the prompt, greedily."""
    inputs = model.tokenizer(prompt, return_tensors="pt").to(model.device)
    module: Any = model.module
    out = module.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=max_new_tokens, do_sample=False
    )
    return str(model.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
