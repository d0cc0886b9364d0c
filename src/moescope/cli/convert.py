"""The command that writes a mixture of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, Common
from moescope.cli.output import print_claims, print_json, progress
from moescope.errors import InputError
from moescope.types import Circuit


def convert(
    model: str,
    /,
    *,
    experts: Annotated[int | None, Parameter(help="Experts of each MLP, shared ones included (default: about 64).")] = None,
    active: Annotated[int | None, Parameter(help="Of these, active on each token (default: a quarter).")] = None,
    shared: Annotated[int | None, Parameter(help="Of these, active on every token (default: a sixteenth of all).")] = None,
    method: Annotated[
        Literal["coactivation", "circuits", "random"],
        Parameter(help="Neurons that work together; also those of a circuit; at random."),
    ] = "coactivation",
    router: Annotated[
        Literal["ridge", "centroid", "distilled"],
        Parameter(help="Least squares; from the weights alone; trained a little."),
    ] = "ridge",
    circuits: Annotated[
        Path | None, Parameter(help="Result of `moescope circuits --site mlp_act`, for --method circuits.")
    ] = None,
    calibration: Annotated[Path | None, Parameter(help="Text that decides the split (default: shipped WikiText).")] = None,
    heldout: Annotated[Path | None, Parameter(name=("--heldout", "--text"), help="Text that judges it.")] = None,
    calibration_tokens: Annotated[int, Parameter(help="Tokens of the calibration text to read, at most.")] = 32768,
    heldout_tokens: Annotated[int, Parameter(help="Tokens of the held-out text to read, at most.")] = 8192,
    window: Annotated[int, Parameter(help="Tokens of one sequence, at most.")] = 512,
    finetune: Annotated[
        int | None, Parameter(help="Steps of training against MODEL (LoRA; needs the extra `finetune`).")
    ] = None,
    finetune_rank: Annotated[
        int | Literal["full"], Parameter(help="Rank of the LoRA adapters, which are merged; full: the weights themselves.")
    ] = 32,
    finetune_lr: Annotated[float | None, Parameter(help="Learning rate (default: the better of two).")] = None,
    finetune_text: Annotated[Path | None, Parameter(help="Text to train on (default: the calibration text).")] = None,
    tolerance: Annotated[float, Parameter(help="Relative rise in perplexity that may be recommended.")] = 0.05,
    speed: Annotated[bool, Parameter(help="Measure tokens per second.")] = True,
    controls: Annotated[bool, Parameter(help="Compare with a random split and with static pruning.")] = True,
    eval_task: Annotated[list[str] | None, Parameter(negative="", help="lm-evaluation-harness task; repeat for more.")] = None,
    eval_include: Annotated[Path | None, Parameter(help="Folder with harness tasks of your own.")] = None,
    eval_limit: Annotated[int | None, Parameter(help="Examples of each harness task, at most.")] = None,
    common: Common = COMMON,
) -> None:
    """Turn each MLP of a dense model into experts: a standard checkpoint, and a verdict on whether it pays.

    MODEL is a Hub id, a local folder or an embedded name. The checkpoint loads in transformers without remote code.
    """
    from moescope.models import load
    from moescope.studies.convert import ConvertSettings
    from moescope.studies.convert import convert as study
    from moescope.studies.convert.study import check_folder

    settings = ConvertSettings(
        experts=experts,
        active=active,
        shared=shared,
        method=method,
        router=router,
        calibration_tokens=calibration_tokens,
        heldout_tokens=heldout_tokens,
        window=window,
        tolerance=tolerance,
        speed=speed,
        controls=controls,
        finetune=finetune,
        finetune_rank=finetune_rank,
        finetune_lr=finetune_lr,
        seed=common.seed,
    )
    # The default folder is ours to replace; one that the user names is theirs.
    out = (common.out or Path("moescope-out") / "convert").absolute()
    overwrite = common.overwrite or common.out is None
    check_folder(out, overwrite)
    with progress() as report:
        result = study(
            load(model, head=True, **common.load_options()),
            out,
            calibration=calibration,
            finetune_text=finetune_text,
            heldout=heldout,
            circuits=_circuits(circuits),
            eval_tasks=eval_task or (),
            eval_include=eval_include,
            eval_limit=eval_limit,
            settings=settings,
            overwrite=overwrite,
            report=report,
        )
    if common.json:
        print_json({**result.json(), "folder": str(out)})
        return
    print_claims(result)
    for name in ("frontier", *(n for n in ("speed", "tasks") if n in result.tables)):
        print(result.to_frame(name).to_string(index=False), end="\n\n")
    for note in result.meta["notes"]:
        print(note)
    print(f"checkpoint: {out}\nreport: {out / 'report' / 'report.html'}")


def _circuits(folder: Path | None) -> tuple[Circuit, ...]:
    if folder is None:
        return ()
    from moescope.study.result import load

    found = tuple(load(folder).circuits.values())
    if not found:
        raise InputError(f"--circuits: {folder} holds no circuits; give a result of `moescope circuits`")
    return found
