"""The commands that leave a model early, and that name a prompt's task while it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, Common, Tasks, integers, load_tasks
from moescope.cli.output import finish, prepare, progress

Limit = Annotated[int | None, Parameter(help="Use at most this many examples of each task.")]
MaxTokens = Annotated[int | None, Parameter(help="Cut longer texts, from the left.")]


def exit_(
    model: str,
    /,
    *,
    task: Tasks,
    risk: Annotated[float, Parameter(help="What leaving early may cost, as a share of rows.")] = 0.02,
    delta: Annotated[float, Parameter(help="Probability with which the bound may fail (Learn-then-Test).")] = 0.1,
    loss: Annotated[
        Literal["accuracy", "disagreement"],
        Parameter(help="Count rows that full depth gets right and the exit wrong, or all that differ."),
    ] = "accuracy",
    method: Annotated[
        Literal["ltt", "crc"], Parameter(help="Learn-then-Test (with high probability) or conformal risk control (on average).")
    ] = "ltt",
    head: Annotated[
        Literal["auto", "circuit", "linear", "pooled"],
        Parameter(help="What decides at each depth; auto takes the best in training."),
    ] = "auto",
    k: Annotated[int, Parameter(help="Neurons of a circuit head.")] = 10,
    layers: Annotated[str | None, Parameter(help="Layers after which a row may leave, as 3,7,11 (default: all).")] = None,
    timed_texts: Annotated[int, Parameter(help="Test texts that go on the clock, at most.")] = 64,
    limit: Limit = None,
    max_tokens: MaxTokens = None,
    common: Common = COMMON,
) -> None:
    """A classifier that leaves the model as soon as it may, with a bound on what that costs; and whether it pays.

    MODEL is a Hub id, a local folder or an embedded name. The classifier is saved in OUT/exit/TASK.
    """
    from moescope.models import load
    from moescope.runtime.exit import save_exit
    from moescope.studies.exit import ExitSettings, early_exit
    from moescope.study.names import slug

    folder = prepare(common.out, "exit", overwrite=common.overwrite)
    settings = ExitSettings(
        risk=risk,
        delta=delta,
        loss=loss,
        method=method,
        head=head,
        k=k,
        layers=None if layers is None else integers("--layers", layers),
        max_tokens=max_tokens,
        batch_tokens=common.batch_tokens,
        timed_texts=timed_texts,
        seed=common.seed,
    )
    tasks = load_tasks(task, limit, common.seed)
    with progress() as report:
        study = early_exit(load(model, **common.load_options()), tasks, settings=settings, report=report)
    finish(study.result, folder, common)
    for name, classifier in study.classifiers.items():
        save_exit(classifier, folder / "exit" / slug(name))


def route(
    model: str,
    /,
    *,
    task: Tasks,
    unknown: Annotated[float, Parameter(help="Share of prompts of known tasks that may be called unknown.")] = 0.05,
    layer: Annotated[int | None, Parameter(help="Last layer that is read (default: a quarter of the way up).")] = None,
    features: Annotated[
        Literal["auto", "residual", "routing"], Parameter(help="auto: routing in a mixture of experts, else residual.")
    ] = "auto",
    limit: Limit = None,
    max_tokens: MaxTokens = None,
    common: Common = COMMON,
) -> None:
    """Name the task of a prompt from the model's first layers, or call it unknown, at a calibrated rate.

    MODEL is a Hub id, a local folder or an embedded name. The router is saved in OUT/route.
    """
    from moescope.models import load
    from moescope.runtime.route import save_router
    from moescope.studies.route import RouteSettings
    from moescope.studies.route import route as study_route

    folder = prepare(common.out, "route", overwrite=common.overwrite)
    settings = RouteSettings(
        unknown=unknown,
        layer=layer,
        features=features,
        max_tokens=max_tokens,
        batch_tokens=common.batch_tokens,
        seed=common.seed,
    )
    tasks = load_tasks(task, limit, common.seed)
    with progress() as report:
        study = study_route(load(model, **common.load_options()), tasks, settings=settings, report=report)
    finish(study.result, folder, common, tables=("named", "unknown"))
    save_router(study.router, study.model, folder / "route")
