"""Commands of routing traces: record or import one, export it, and which models can be traced."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from moescope.cli.generate import Input, Verb, command
from moescope.cli.output import print_json, progress
from moescope.cli.verbs import PROMPTS
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.routing import RoutingTrace
    from moescope.studies.trace.settings import TraceSettings
    from moescope.study.run import Run

_TRACE = Verb(
    "trace",
    "TraceSettings",
    (
        Input("model", str | None, "Hub id, local folder or embedded name (`moescope models`).", default=None),
        PROMPTS,
        Input("vllm", Path | None, "Import vLLM's routed experts: .jsonl of responses, .npy, .npz, a folder.", "--vllm", None),
        Input("sglang", Path | None, "Import a converted SGLang expert-distribution dump (.npz).", "--sglang", None),
        Input("experts", int | None, "Experts per layer of an imported trace.", "--experts", None),
        Input("layers", str | None, "True numbers of its layers with experts, as 3-60 or 1,3,5.", "--layers", None),
        Input("read", Path | None, "Read a recorded trace, to look at or export it.", "--read", None),
        Input("parquet", Path | None, "Also export it as a Parquet table, one row per choice.", "--parquet", None),
    ),
    module="record",
)


def _trace(given: dict[str, Any], settings: TraceSettings, run: Run, *, json: bool, quiet: bool) -> None:
    from moescope.routing.export import check_export_target, export_parquet
    from moescope.routing.importers import EngineModel, import_sglang, import_vllm
    from moescope.routing.place import check_trace_target
    from moescope.routing.store import load_trace, save_trace

    sources = {"MODEL": "model", "--vllm": "vllm", "--sglang": "sglang", "--read": "read"}
    if sum(given[name] is not None for name in sources.values()) != 1:
        raise InputError(f"give one of {', '.join(sources)}")
    # The default folder is ours to replace; one that the user names is theirs.
    folder, overwrite = run.out or Path("moescope-out/trace"), run.overwrite or run.out is None
    parquet: Path | None = given["parquet"]
    if parquet is not None:
        check_export_target(parquet, overwrite=run.overwrite)
    if given["read"] is not None:
        folder = given["read"]
        found = load_trace(folder)
    elif given["model"] is not None:
        with progress(quiet=quiet) as report:
            place = replace(run, out=folder, overwrite=overwrite, progress=report)
            try:
                found = _TRACE.verb()(given["model"], given["prompts"], settings, run=place)  # type: ignore[assignment]
            except KeyboardInterrupt as error:
                raise type(error)("interrupted; the same command goes on with what was traced") from error
    else:
        if given["experts"] is None:
            raise InputError("an imported trace does not say how many a layer has; give their number", "experts")
        check_trace_target(folder, overwrite=overwrite)
        engine = EngineModel(given["experts"], _layers(given["layers"]))
        found = import_vllm(given["vllm"], engine) if given["vllm"] else import_sglang(given["sglang"], engine)
        save_trace(found, folder, overwrite=overwrite)
    facts = _facts(found, folder)
    if parquet is not None:
        facts |= {"parquet": str(parquet), "rows": export_parquet(found, parquet, overwrite=run.overwrite)}
    if json:
        print_json(facts)
        return
    for name, value in {**facts, **found.meta}.items():
        if value is not None and name != "meta":
            print(f"{name:12} {value}")


trace = command(_TRACE, _trace)


def coverage(
    types: list[str] | None = None,
    /,
    *,
    sites: Annotated[bool, Parameter(negative="", help="Which types, dense ones too, have sites that can be read.")] = False,
    json: Annotated[bool, Parameter(negative="", help="Print JSON instead of a table.")] = False,
) -> None:
    """Which mixture-of-experts types of the installed transformers can be traced: each is built tiny and tried.

    TYPES are model types such as olmoe; without any, all are tried (about a minute; with --sites some minutes).
    """
    from moescope.routing import coverage as tried

    if sites:
        _readable(types, json)
        return
    with progress() as report:
        found = tried.coverage(types, progress=lambda done, total: report("types", done, total))
    if json:
        print_json([{k: None if v != v else v for k, v in asdict(row).items()} for row in found])
        return
    for row in found:
        if not row.supported:
            print(f"{row.model_type:22} refused: {row.reason}")
            continue
        where = f"{len(row.layers)} of {row.n_layers} layers"
        how = row.gating or f"scores: {row.scores}"
        print(f"{row.model_type:22} traced, {where}, {row.n_experts} experts, recomputed to {row.error:.0e}; {how}")
    print(f"{sum(row.supported for row in found)} of {len(found)} types can be traced")


def _readable(types: list[str] | None, json: bool) -> None:
    from moescope.models.architectures import architectures

    with progress() as report:
        found = architectures(types, progress=lambda done, total: report("types", done, total))
    if json:
        print_json([asdict(row) for row in found])
        return
    for row in found:
        print(f"{row.model_type:22} " + (f"read: {row.sites}; {row.stream}" if row.read else f"refused: {row.reason}"))
    print(f"{sum(row.read for row in found)} of {len(found)} types can be read")


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if match is None:
            raise InputError(f"{text!r} is not a list of layer numbers; write 3-60 or 1,3,5", "layers")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(numbers))


def _facts(found: RoutingTrace, folder: Path) -> dict[str, Any]:
    return {
        "trace": str(folder),
        "sequences": len(found.sequences),
        "tokens": len(found),
        "generated": int(found.generated.sum()),
        "layers": list(found.layers),
        "experts": max(found.n_experts),
        "top_k": found.top_k,
        "meta": found.meta,
    }
