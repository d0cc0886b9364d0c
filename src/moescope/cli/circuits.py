"""The commands of the circuits study."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, SEARCH, Common, Search, Tasks, load_tasks
from moescope.cli.output import finish, prepare, progress


def circuits(
    model: str,
    /,
    *,
    task: Tasks,
    ablate: Annotated[
        Literal["mean", "resample", "zero", "patch"] | None,
        Parameter(help="Switch the circuits off inside the model, against matched random neurons."),
    ] = None,
    search: Search = SEARCH,
    common: Common = COMMON,
) -> None:
    """Find the neurons that carry each task, and test them against chance and trivial cues.

    MODEL is a Hub id, a local folder or an embedded name (`moescope models`).
    """
    from moescope.models import load
    from moescope.studies.circuits import AblationSettings
    from moescope.studies.circuits import circuits as study

    folder = prepare(common.out, "circuits", overwrite=common.overwrite)
    settings = search.settings(common)
    tasks = load_tasks(task, search.limit, common.seed)
    ablation = AblationSettings(mode=ablate, n_random=max(100, search.random)) if ablate else None
    with progress() as report:
        loaded = load(model, head=ablate is not None, **common.load_options())
        result = study(loaded, tasks, settings=settings, ablate=ablation, report=report)
    finish(result, folder, common)


def dynamics(
    models: Annotated[list[str], Parameter(help="Checkpoint folders, or one Hub id with --revision.")],
    /,
    *,
    task: Tasks,
    revision: Annotated[list[str] | None, Parameter(negative="", help="Hub revisions of the one model; repeat.")] = None,
    search: Search = SEARCH,
    common: Common = COMMON,
) -> None:
    """When does a circuit form? The same tasks over a series of checkpoints of one model."""
    from moescope.studies.circuits import formation

    folder = prepare(common.out, "dynamics", overwrite=common.overwrite)
    settings = search.settings(common)
    tasks = load_tasks(task, search.limit, common.seed)
    with progress() as report:
        result = formation(
            models, tasks, revisions=revision, settings=settings, report=report, load_options=common.load_options()
        )
    finish(result, folder, common)


def reproduce(
    study: Literal["circuits", "signatures", "secret-moe"],
    model: str | None = None,
    /,
    *,
    task: Annotated[list[str] | None, Parameter(name="--task", negative="", help="Instead of the published tasks.")] = None,
    prompts: Annotated[str | None, Parameter(help="signatures: instead of the shipped 80 prompts.")] = None,
    search: Search = SEARCH,
    common: Common = COMMON,
) -> None:
    """Print the published figures next to measured ones, in the published settings, with a verdict on each claim.

    Without MODEL, or without the Hub, the embedded model stands in, and the output says so.
    """
    from moescope.studies.circuits.reproduce import reproduce_circuits

    if study == "signatures":
        from moescope.cli.signatures import reproduce as reproduce_signatures

        reproduce_signatures(model, prompts, task, search, common)
        return
    if study == "secret-moe":
        from moescope.cli.distill import reproduce as reproduce_secret_moe

        reproduce_secret_moe(model, common)
        return
    folder = prepare(common.out, f"reproduce-{study}", overwrite=common.overwrite)
    with progress() as report:
        result = reproduce_circuits(
            model,
            task,
            settings=search.settings(common, selection="global", sigma="total"),
            limit=search.limit,
            report=report,
            load_options=common.load_options(),
        )
    finish(result, folder, common, tables=("published",))
