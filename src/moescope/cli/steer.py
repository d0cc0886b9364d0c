"""The commands that put a model's experts to use: steer, prune, and how far their routing can be trusted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, Common
from moescope.cli.output import finish, prepare, progress
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.studies.steer import Steering

Prompts = Annotated[str, Parameter(name="--prompts", help="Prompt set or file with text, category.")]
Text = Annotated[Path | None, Parameter(name="--text", help="File with text, category (and group) to measure loss on.")]
Repeat = Parameter(negative="")


def steer(
    model: str,
    /,
    *,
    ban_expert: Annotated[list[str] | None, Repeat] = None,
    force_expert: Annotated[list[str] | None, Repeat] = None,
    boost: Annotated[list[str] | None, Repeat] = None,
    scale: Annotated[list[str] | None, Repeat] = None,
    ban_top: Annotated[list[str] | None, Repeat] = None,
    like: Annotated[list[str] | None, Repeat] = None,
    like_text: str | None = None,
    ablate: Path | None = None,
    mode: Literal["mean", "zero"] = "mean",
    target: str | None = None,
    prompts: Prompts = "routing-480",
    text: Text = None,
    random: int = 100,
    text_tokens: int = 1536,
    new_tokens: int = 40,
    common: Common = COMMON,
) -> None:
    """Ban, force, boost or scale experts (or ablate neurons), and measure what that does, beside random ones.

    Args:
        ban_expert: LAYER:EXPERT, e.g. 5:17; never chosen. Repeat, or separate by commas.
        force_expert: LAYER:EXPERT; always chosen.
        boost: LAYER:EXPERT=NUMBER, added to the router's logit.
        scale: LAYER:EXPERT=FACTOR on the expert's output weight.
        ban_top: CATEGORY or CATEGORY=N: ban the N (2) experts of each layer that the category uses beyond the others;
            "each" does so for every category.
        like: CATEGORY or CATEGORY=STRENGTH: boost all experts so that any text routes like the category.
        like_text: boost all experts so that any text routes like this one.
        ablate: circuit to switch off: a circuits result, or JSON with a list of neurons.
        mode: what ablated neurons are set to.
        target: category that the edits by hand are about.
        random: matched random sets of experts or neurons.
        text_tokens: of each category's text.
        new_tokens: of the sample before and after; 0 for none.
    """
    from moescope.models import load
    from moescope.studies.steer import EffectSettings, steer_study
    from moescope.tasks.passages import load_passages
    from moescope.tasks.prompts import load_prompts

    folder = prepare(common.out, "steer", overwrite=common.overwrite)
    asked = load_prompts(prompts)
    passages = load_passages(text)
    by_hand = {"ban": ban_expert, "force": force_expert, "boost": boost, "scale": scale}
    steerings = _by_hand(by_hand, ablate, mode, target)
    settings = EffectSettings(n_random=random, tokens=text_tokens, seed=common.seed, batch_tokens=common.batch_tokens)
    samples = {p.category or p.id: p.text for p in reversed(asked)} if new_tokens else {}
    with progress() as report:
        loaded = load(model, head=True, **common.load_options())
        if ban_top or like or like_text:
            steerings += _by_category(loaded, asked, ban_top or [], like or [], like_text, common.batch_tokens)
        result = steer_study(
            loaded, steerings, passages, settings=settings, samples=samples, max_new_tokens=new_tokens, report=report
        )
    finish(result, folder, common)


def _by_hand(
    edits: dict[str, list[str] | None], ablate: Path | None, mode: Literal["mean", "zero"], target: str | None
) -> list[Steering]:
    from moescope.intervene import ExpertEdits
    from moescope.studies.steer import Ablation, Steering
    from moescope.studies.steer.experts_choose import parse_experts, parse_values
    from moescope.studies.steer.neurons_effect import load_circuit

    found = []
    if any(edits.values()):
        chosen = ExpertEdits(
            parse_experts("--ban-expert", edits["ban"] or []),
            parse_experts("--force-expert", edits["force"] or []),
            parse_values("--boost", edits["boost"] or []),
            parse_values("--scale", edits["scale"] or []),
        )
        found.append(Steering(str(chosen), chosen, target))
    if ablate is not None:
        circuit = load_circuit(ablate)
        found.append(Steering(f"ablate {circuit.task}", Ablation(circuit.neurons, mode), target))
    return found


def _by_category(
    model: LoadedModel, prompts: list[Any], ban_top: list[str], like: list[str], like_text: str | None, batch_tokens: int
) -> list[Steering]:
    from moescope.intervene import ExpertEdits
    from moescope.routing import trace_prompts
    from moescope.studies.steer import Steering
    from moescope.studies.steer.experts_choose import route_like, top_experts

    if like_text is not None:
        own = "--like-text"
        prompts = [*prompts, replace(prompts[0], id=own, text=like_text, category=own)]
    trace = trace_prompts(model, prompts, weights=False, tokens=False, batch_tokens=batch_tokens)
    categories = list(dict.fromkeys(p.category for p in prompts if p.category not in (None, "--like-text")))
    found = []
    for category, count in (_amount("--ban-top", item, 2) for item in ban_top):
        for name in categories if category == "each" else [category]:
            experts = top_experts(trace, name, int(count))
            found.append(Steering(f"ban the top experts of {name}", ExpertEdits(ban=frozenset(experts)), name))
    for category, strength in (_amount("--like", item, 1.0) for item in like):
        found.append(Steering(f"route like {category}", route_like(trace, category, strength), category, "help"))
    if like_text is not None:
        found.append(Steering("route like the text", route_like(trace, "--like-text")))
    return found


def _amount(option: str, text: str, default: float) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        return name, float(number) if equals else default
    except ValueError:
        raise InputError(f"{option} {text!r}: {number!r} is not a number") from None


def robustness(
    model: str,
    /,
    *,
    prompts: Prompts = "routing-480",
    attacked: int = 24,
    queries: int = 256,
    suffix_tokens: int = 8,
    experts: int = 16,
    active: int = 4,
    common: Common = COMMON,
) -> None:
    """How far a routing monitor can be trusted: rewritten prompts, other precision and batches, and a searched suffix.

    Args:
        attacked: prompts for which a suffix is searched; 0 for none.
        queries: suffixes tried per prompt, by the search and by the random baseline alike.
        suffix_tokens: length of a suffix.
        experts: pseudo-experts of each layer of a dense model.
        active: of them, per token.
    """
    from moescope.models import load
    from moescope.studies.robustness.attack import AttackSettings
    from moescope.studies.robustness.study import RobustnessSettings, robustness_study
    from moescope.tasks.prompts import load_prompts

    folder = prepare(common.out, "robustness", overwrite=common.overwrite)
    asked = load_prompts(prompts)
    settings = RobustnessSettings(
        attacked=attacked,
        attack=AttackSettings(length=suffix_tokens, queries=queries, start=max(1, min(64, queries // 4))),
        seed=common.seed,
        batch_tokens=common.batch_tokens,
    )
    with progress() as report:
        loaded = load(model, **common.load_options())
        make = _pseudo(loaded, asked, experts, active, common)
        result = robustness_study(loaded, asked, settings=settings, make_counter=make, report=report)
    finish(result, folder, common)


def _pseudo(model: LoadedModel, prompts: list[Any], experts: int, active: int, common: Common) -> Any:
    """How to count a dense model's pseudo-experts; None for a mixture of experts."""
    from moescope.routing.dense import fit_dense_experts, is_dense

    if not is_dense(model):
        return None
    fitted = fit_dense_experts(model, [p.text for p in prompts], n_experts=experts, k=active, seed=common.seed)
    return lambda other: partial(fitted.counts, other, batch_tokens=common.batch_tokens)


def transfer(
    model_a: str,
    model_b: str,
    /,
    *,
    prompts: Prompts = "routing-480",
    dtype_b: Literal["fp32", "bf16", "fp16"] | None = None,
    experts: int = 16,
    active: int = 4,
    dimensions: int = 16,
    alignments: int = 100,
    common: Common = COMMON,
) -> None:
    """What two models' routing of the same prompts has in common; two checkpoints or precisions expert by expert too.

    Args:
        dtype_b: precision of MODEL_B, where it differs; with one model twice, its precisions are compared.
        experts: pseudo-experts of each layer of a dense model.
        active: of them, per token.
        dimensions: principal components that are rotated onto each other.
        alignments: shuffled pairings of the prompts, as the null.
    """
    from moescope.models import load
    from moescope.routing.dense import any_trace
    from moescope.studies.transfer.study import TransferSettings, transfer_study
    from moescope.tasks.prompts import load_prompts

    folder = prepare(common.out, "transfer", overwrite=common.overwrite)
    asked = load_prompts(prompts)
    options = common.load_options()
    settings = TransferSettings(dimensions=dimensions, n_alignments=alignments, seed=common.seed)
    with progress() as report:
        models = [load(model_a, **options), load(model_b, **(options | {"dtype": dtype_b or options["dtype"]}))]
        traces = [
            any_trace(
                model,
                asked,
                n_experts=experts,
                k=active,
                seed=common.seed,
                batch_tokens=common.batch_tokens,
                progress=partial(report, f"reading model {name}"),
            )
            for name, model in zip("AB", models, strict=True)
        ]
        result = transfer_study(traces[0], traces[1], asked, models=models, settings=settings, report=report)
    finish(result, folder, common)
