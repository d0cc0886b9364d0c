"""The command that says what another would take."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

from cyclopts import Parameter

from moescope.cli.generate import told, translated
from moescope.cli.output import print_json
from moescope.errors import InputError

_MODELS = ("model", "model_a", "checkpoints", "models")


def plan(
    command: str,
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True, help="MODEL and options, as COMMAND takes them.")],
    flops: Annotated[
        float | None, Parameter(help="FLOP a second of the machine meant (default: this one's, measured).")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON instead of a table.")] = False,
) -> None:
    """What COMMAND would take: parameters, forward tokens, FLOPs, memory, disk and time. Nothing is run or loaded.

    MODEL may be a config.json alone, or a folder that holds no more.
    """
    from moescope.cli import app
    from moescope.cli.trace import _TRACE
    from moescope.cli.verbs import VERBS
    from moescope.planning import plan as planned
    from moescope.planning import plan_series

    verbs = {
        **{name: v for name, v in VERBS.items() if "_" not in name and any(i.name in _MODELS for i in v.inputs)},
        "trace": _TRACE,
    }
    verb = verbs.get(command)
    if verb is None:
        raise InputError(f"plan: {command!r} is no command that it knows; there is {', '.join(sorted(verbs))}")
    if flops is not None and not flops > 0:
        raise InputError(f"--flops: must be above 0, got {flops:g}")
    _, bound, _ = app.parse_args([command, *arguments], exit_on_error=False, print_error=False)
    try:
        inputs, settings, run, options = told(verb, bound.args, dict(bound.kwargs))
    except InputError as error:
        raise translated(error, {i.name: i.option or i.name.upper() for i in verb.inputs}) from error
    model = next((inputs[name] for name in _MODELS if inputs.get(name)), None)
    if isinstance(model, list) and inputs.get("revisions"):
        model = model * len(inputs["revisions"])
    if not isinstance(model, str | list):
        raise InputError("plan: give MODEL, one that is to be run; a recorded trace costs nothing to read")
    verb.verb()  # its modules, and those that draw its result, are part of what the command takes
    if command != "trace":
        import_module("moescope.report.html")
    if isinstance(model, list):
        series = plan_series(command, model, inputs, settings, run, flop_s=flops)
        found, show = series.json(), _print_series
    else:
        found, show = planned(command, model, inputs, settings, run, flop_s=flops).json(), _print
    if json or options["json"]:
        print_json(found)
    else:
        show(found)


def _print_series(found: dict[str, Any]) -> None:
    """A line for each model, and what all take."""
    from moescope.files.memory import gib

    for one in found["models"]:
        size = f"{one['parameters']:,} parameters, {gib(one['weight_bytes'])} in {one['dtype']}"
        reads = f"{sum(one['forward_tokens'].values()):,} tokens in {_words(one['seconds'])}"
        print(f"{'model':12} {one['model']}: {size}; {reads}, {gib(one['peak_bytes'])} at most")
    every = found["together"]
    rows = {
        "reads": _tokens(every),
        "work": f"{every['flops']:.3g} FLOPs",
        "memory": f"{gib(every['peak_bytes'])} at most, one model after the other; {gib(every['free_bytes'])} are free",
        "disk": gib(every["disk_bytes"]),
        "time": f"{_words(every['seconds'])} to read; statistics come on top",
    }
    _print_rows(rows, found["models"])


def _tokens(found: dict[str, Any]) -> str:
    tokens = ", ".join(f"{n:,} {purpose}" for purpose, n in found["forward_tokens"].items())
    return f"{tokens or 'no text that is known beforehand'} tokens"


def _print(found: dict[str, Any]) -> None:
    from moescope.files.memory import gib

    parts = ", ".join(f"{name} {gib(n)}" for name, n in found["memory"].items() if n)
    rows = {
        "model": f"{found['model']}: {found['parameters']:,} parameters, {found['active_parameters']:,} of them for a token",
        "coordinates": ", ".join(f"{kind} {n:,}" for kind, n in found["coordinates"].items()),
        "weights": f"{gib(found['weight_bytes'])} in {found['dtype']}",
        "reads": _tokens(found),
        "work": f"{found['flops']:.3g} FLOPs, {found['flops_a_token']:.3g} a token",
        "memory": f"{gib(found['peak_bytes'])} at most ({parts}); {gib(found['free_bytes'])} are free",
        "disk": gib(found["disk_bytes"]),
        "time": f"{_words(found['seconds'])} to read, at {found['flop_s'] / 1e9:,.0f} GFLOP/s; statistics come on top",
    }
    _print_rows(rows, [found])


def _print_rows(rows: dict[str, str], plans: list[dict[str, Any]]) -> None:
    """These lines, and what the plans say besides, each thing once."""
    for name, text in rows.items():
        print(f"{name:12} {text}")
    for name in ("missing", "advice", "notes"):
        for text in dict.fromkeys(text for one in plans for text in one[name]):
            print(f"{name:12} {text}")


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
