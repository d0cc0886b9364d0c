"""Which experts a text reaches, how much of it would reach them all, and which to fine-tune for a category."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.manifest import FINISHED
from moescope.errors import InputError
from moescope.files.text import read_text
from moescope.models import LoadedModel
from moescope.models.experts import expert_layers
from moescope.routing.load import holds_load
from moescope.routing.store import load_trace
from moescope.routing.subject import Subject, subject_of
from moescope.routing.trace import RoutingTrace
from moescope.routing.traced import traced
from moescope.runtime.targets import Domain, Targets, expert_parameters
from moescope.studies.targets.claims import target_claims
from moescope.studies.targets.measure import (
    ALL,
    Carried,
    Reached,
    carried,
    carrier_table,
    documents,
    domain_table,
    expert_table,
    reach,
)
from moescope.studies.targets.settings import TargetSettings
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.study.verdicts import check_draws
from moescope.tasks import Prompt
from moescope.tasks.passages import load_passages

_SETTINGS, _RUN = TargetSettings(), Run()


@verb
def targets(
    model: ModelLike | RoutingTrace,
    texts: PromptsLike | None = None,
    settings: TargetSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Does this text reach every expert, how much of it would, and which experts carry which category of it?

    Args:
        model: a mixture of experts, which reads the texts; or a recorded trace, or the folder of one.
        texts: calibration or fine-tuning text: prompts as :func:`moescope.load_prompts` takes them (``topic`` is the document),
            or a ``.txt`` file of texts parted by blank lines; None: the shipped passages. A trace has its own.

    Returns:
        A result of kind ``"targets"``: tables ``layers``, ``experts`` and, where there are categories, ``carriers``
        and ``domains``; artifact ``targets``, a :class:`~moescope.runtime.targets.Targets` with PEFT's configurations.

    Raises:
        InputError: a dense model; fewer than two documents; a trace beside texts; counts without tokens; too few permutations
            for so many categories.

    >>> import moescope
    >>> result = moescope.targets("moe-tiny")  # doctest: +SKIP
    >>> result.artifacts["targets"].lora_config("code")["target_parameters"]  # doctest: +SKIP
    """
    context = Context("targets", settings, run, of=TargetSettings)
    recorded = _recorded(model)
    if recorded is None:
        asked = _texts(context, texts)
        _check_family(len({p.category for p in asked}), settings)
        loaded: LoadedModel | None = context.load(model)  # type: ignore[arg-type]
        assert loaded is not None
        names = expert_parameters(loaded)
        trace = traced(context, loaded, asked, "reading", new_tokens=0, weights=False)
    else:
        if texts is not None:
            raise InputError("a trace has texts of its own; give a model, or leave them out", "texts")
        trace = recorded
        context.stages.read(trace)
        _check_family(len({s.category for s in trace.sequences}), settings)
        loaded = None if settings.names is None else context.load(settings.names)
        names = {} if loaded is None else expert_parameters(loaded)
        if loaded is None:
            context.note("Note: the model is not at hand, so parameters are not named (names).")
        elif dict(zip(trace.layers, trace.n_experts, strict=True)) != _sizes(loaded):
            raise InputError(f"{loaded.name} has other layers or numbers of experts than the trace", "names")
    n = len(np.unique(documents(trace)))
    if n < 2:
        raise InputError("all of it is one document, so that nothing says how others differ; give several", "texts")
    if n < 20:
        context.note(f"Note: {n} documents; intervals over so few are wide.")
    context.tell("reach and carriers", 0, 2)
    found = context.stage("reach", partial(reach, trace, settings, run.seed))
    context.tell("reach and carriers", 1, 2)
    subject = _subject(trace)
    domains = None
    if subject is not None:
        domains = context.stage("experts of the categories", partial(carried, subject, settings, run.seed))
        _record(context, domains, settings)
    context.tell("reach and carriers", 2, 2)
    whole = found[-1]
    return context.result(
        model=loaded if loaded is not None else str(trace.meta.get("model", "unknown")),
        title=f"What a text of {len(trace):,} tokens reaches in {trace.meta.get('model', 'a recorded trace')}",
        claims=target_claims(whole, domains, settings),
        tables=_tables(trace, found, domains, settings),
        artifacts={"targets": _targets(trace, whole, domains, names, settings)},
        traced_tokens=len(trace),
        documents=n,
        moe_layers=list(trace.layers),
        experts=list(trace.n_experts),
    )


def _recorded(model: Any) -> RoutingTrace | None:
    """The trace that ``model`` is, or whose folder it names."""
    if isinstance(model, RoutingTrace):
        return model.validate()
    if not isinstance(model, str | Path):
        return None
    if holds_load(Path(model)):
        raise InputError(f"{model}: counts of experts without tokens; how documents differ is not known from them", "model")
    return load_trace(model) if (Path(model) / FINISHED).is_file() else None


def _texts(context: Context, texts: PromptsLike | None) -> list[Prompt]:
    if texts is None:
        return [Prompt(str(i), p.text, p.category, p.group.replace("/", ":")) for i, p in enumerate(load_passages())]
    if isinstance(texts, str | Path) and Path(texts).suffix.lower() == ".txt":
        parts = [part.strip() for part in read_text(Path(texts)).split("\n\n")]
        found = [Prompt(str(i), part) for i, part in enumerate(parts) if part]
        if len(found) < 2:
            raise InputError(f"{texts}: one text; part several by blank lines, so that each is a document", "texts")
        return list(context.prompts(found))
    return list(context.prompts(texts))


def _check_family(categories: int, settings: TargetSettings) -> None:
    if categories > 1:
        check_draws(settings.n_permutations, categories, "n_permutations", settings.alpha, sides=2)


def _sizes(model: LoadedModel) -> dict[int, int]:
    return {layer.layer: layer.n_experts for layer in expert_layers(model)}


def _subject(trace: RoutingTrace) -> Subject | None:
    """The trace with its categories; None where it has no two of two texts each."""
    names = [s.category for s in trace.sequences]
    known = {name for name in names if name}
    if len(known) < 2 or not all(names) or min(names.count(name) for name in known) < 2:
        return None
    if ALL in known:
        raise InputError(f"a category is called {ALL!r}, which here means every category; rename it", "texts")
    return subject_of(trace)


def _record(context: Context, found: Carried, settings: TargetSettings) -> None:
    cells = found.shares.cells
    context.rows(Rows("cells, all for each expert's p", np.arange(len(cells.y)), select=np.arange(len(cells.y))))
    labels = cells.labels(1, context.run.seed)[0]
    moved = float((labels != cells.y).mean())
    context.control("permuted categories", differs=moved > 0, evidence=f"{moved:.0%} of the cells have another category")
    if found.shares.beyond is not None:
        off = float(np.abs(found.shares.beyond - found.shares.shares).mean())
        context.control(
            "the same tokens elsewhere", differs=off > 0, evidence=f"they explain {off:.2%} of all tokens on average"
        )
    if cells.confounded and cells.unit == "template":
        context.note("Note: every category has templates of its own, which are told apart from it by nothing here.")


def _tables(
    trace: RoutingTrace, found: list[Reached], domains: Carried | None, settings: TargetSettings
) -> dict[str, pd.DataFrame]:
    tables = {"layers": pd.DataFrame([part.row for part in found]), "experts": expert_table(trace, found[-1].rates)}
    if domains is not None:
        tables |= {
            "carriers": carrier_table(trace, domains, settings.alpha),
            "domains": domain_table(domains, settings.alpha),
        }
    return tables


def _targets(
    trace: RoutingTrace, whole: Reached, found: Carried | None, names: dict[int, list[str]], settings: TargetSettings
) -> Targets:
    layer, number = trace.experts

    def by_layer(chosen: np.ndarray) -> dict[str, list[int]]:
        return {str(n): number[chosen & (layer == n)].tolist() for n in trace.layers if (chosen & (layer == n)).any()}

    def domain(chosen: np.ndarray) -> Domain:
        experts = by_layer(chosen)
        return Domain(experts, [name for n in experts for name in names.get(int(n), [])])

    domains = {ALL: domain(np.ones(len(layer), bool))}
    if found is not None:
        domains |= {c: domain(chosen) for c, chosen in zip(found.categories, found.carries(settings.alpha), strict=True)}
    return Targets(
        model=str(trace.meta.get("model", "unknown")),
        fingerprint=trace.meta.get("fingerprint"),
        n_experts={str(n): int(size) for n, size in zip(trace.layers, trace.n_experts, strict=True)},
        domains=domains,
        unreached=by_layer(whole.rates.reached < settings.least),
        rank=settings.rank,
    )
