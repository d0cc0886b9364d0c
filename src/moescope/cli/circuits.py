"""The command that sets published figures beside measured ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, SEARCH, Common, Search
from moescope.cli.output import finish, prepare, progress
from moescope.errors import InputError


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
    from moescope.study.run import Run

    if study == "signatures":
        from moescope.cli import verbs

        if task:
            raise InputError("--task: the signatures study has no tasks; name its prompts with --prompts")
        verbs.reproduce_signatures(
            model,
            prompts=prompts,
            n_folds=search.folds,
            n_permutations=search.permutations,
            n_label_permutations=search.label_permutations,
            twin=search.twin,
            max_tokens=search.max_tokens,
            limit=search.limit,
            **asdict(common),
        )
        return
    if study == "secret-moe":
        from moescope.studies.distill.reproduce import reproduce as reproduce_secret_moe

        folder = prepare(common.out, "reproduce-secret-moe", overwrite=common.overwrite)
        with progress() as report:
            result = reproduce_secret_moe(model, run=common.run(report))
        finish(result, folder, common, tables=("published",))
        return
    folder = prepare(common.out, f"reproduce-{study}", overwrite=common.overwrite)
    with progress() as report:
        result = reproduce_circuits(
            model,
            task,
            search.settings(selection="global", sigma="total"),
            run=Run(
                seed=common.seed,
                batch_tokens=common.batch_tokens,
                max_tokens=search.max_tokens,
                limit=search.limit,
                progress=report,
                **common.load_options(),
            ),
        )
    finish(result, folder, common, tables=("published",))
