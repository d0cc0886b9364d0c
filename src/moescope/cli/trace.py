"""Commands of routing traces: record or import one, check, compare and export it, and which models can be traced."""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from moescope.cli.generate import Input, Verb, command
from moescope.cli.output import print_json
from moescope.cli.verbs import PROMPTS
from moescope.errors import InputError, Note

if TYPE_CHECKING:
    from moescope.routing import RoutingTrace
    from moescope.routing.engines import EngineModel
    from moescope.routing.load import RoutingLoad
    from moescope.studies.trace.settings import TraceSettings
    from moescope.study.run import Run

_TRACE = Verb(
    "trace",
    "TraceSettings",
    (
        Input("model", str | None, "Hub id, local folder or embedded name (`moescope models`).", default=None),
        PROMPTS,
        Input("vllm", Path | None, "Import vLLM's routed experts: .jsonl of answers, .npy, .npz, a folder.", "--vllm", None),
        Input(
            "sglang",
            Path | None,
            "Import SGLang's: .jsonl of answers, or a dump of its recorder (.npz, .csv).",
            "--sglang",
            None,
        ),
        Input("llama_cpp", Path | None, "Import the table of llama.cpp's moe-trace (.csv).", "--llama-cpp", None),
        Input("experts", int | None, "Experts per layer of an imported trace.", "--experts", None),
        Input("top_k", int | None, "Experts of a token in a layer, where the file does not tell.", "--top-k", None),
        Input("layers", str | None, "True numbers of its layers with experts, as 3-60 or 1,3,5.", "--layers", None),
        Input("read", Path | None, "Read a recorded trace, to look at or export it.", "--read", None),
        Input("parquet", Path | None, "Also export it as a Parquet table, one row per choice.", "--parquet", None),
    ),
    module="record",
)


def _trace(given: dict[str, Any], settings: TraceSettings, run: Run, *, json: bool, quiet: bool) -> None:
    from moescope.cli.place import folder_for, name_of
    from moescope.routing.engines import import_routing
    from moescope.routing.export import check_export_target, export_parquet
    from moescope.routing.load import RoutingLoad, check_load_target
    from moescope.routing.place import check_trace_target
    from moescope.routing.store import save_trace

    def check_import_target(folder: Path, *, overwrite: bool) -> None:
        check_trace_target(folder, overwrite=overwrite)
        check_load_target(folder, overwrite=overwrite)

    sources = {"MODEL": "model", "--vllm": "vllm", "--sglang": "sglang", "--llama-cpp": "llama_cpp", "--read": "read"}
    if sum(given[name] is not None for name in sources.values()) != 1:
        raise InputError(f"give one of {', '.join(sources)}")
    parquet: Path | None = given["parquet"]
    if parquet is not None:
        check_export_target(parquet, overwrite=run.overwrite)
    found: RoutingTrace | RoutingLoad
    if given["read"] is not None:
        folder = given["read"]
        found = _stored(folder)
    elif given["model"] is not None:
        folder, found = _recorded(given["model"], given["prompts"], settings, run, quiet=quiet)
    else:
        with folder_for(run, name_of("trace", given), check=check_import_target) as folder:
            file = next(given[name] for name in ("vllm", "sglang", "llama_cpp") if given[name] is not None)
            found = import_routing(file, _engine(given["experts"], given["layers"], given["top_k"]))
            if isinstance(found, RoutingLoad):
                found.save(folder, overwrite=run.overwrite)
            else:
                save_trace(found, folder, overwrite=run.overwrite)
    if isinstance(found, RoutingLoad):
        if parquet is not None:
            raise InputError("counts of experts without tokens are no trace; a trace alone is exported", "parquet")
        return _print_load(found, {"load": str(folder)}, json=json)
    facts = _facts(found, folder)
    if parquet is not None:
        facts |= {"parquet": str(parquet), "rows": export_parquet(found, parquet, overwrite=run.overwrite)}
    _print(facts, json=json)


def _recorded(
    model: str, prompts: str, settings: TraceSettings, run: Run, *, quiet: bool
) -> tuple[Path, RoutingTrace | RoutingLoad]:
    """A model's trace and its folder, where a recording that was cut off goes on."""
    from moescope.capture.manifest import UNFINISHED
    from moescope.cli.place import begin, end, folder_for, name_of
    from moescope.files.folder import settled
    from moescope.routing.place import beside, check_trace_target
    from moescope.study.repeat import record_of

    verb: Any = _TRACE.verb()
    what = record_of(verb, model, prompts, settings, run=run)
    with folder_for(run, name_of("trace", {"model": model}), what, check=check_trace_target) as folder:
        if run.out is None:
            begin(folder, what)
        try:
            found: RoutingTrace = verb(model, prompts, settings, run=replace(run, out=folder, quiet=quiet))
        except KeyboardInterrupt as error:
            begun = any((place / UNFINISHED).exists() for place in (folder, beside(settled(folder))))
            said = f"interrupted; the same command goes on with what was traced, in {folder}" if begun else ""
            raise type(error)(said) from error
        except InputError:
            end(folder)
            raise
        end(folder)
    return folder, found


record = command(_TRACE, _trace)
trace = App(name="trace", result_action="return_value")
trace.default(record)
trace.command("moescope.cli.verbs:agreement", name="compare", help="Do two recordings of the same tokens route alike?")


@trace.command
def check(
    source: Path,
    /,
    *,
    experts: Annotated[int | None, Parameter(help="Experts per layer, of an engine's file.")] = None,
    top_k: Annotated[int | None, Parameter(help="Experts of a token in a layer, where the file does not tell.")] = None,
    layers: Annotated[str | None, Parameter(help="True numbers of its layers with experts, as 3-60 or 1,3,5.")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
) -> None:
    """Can this be routing? A trace folder, or a file of vLLM, SGLang or llama.cpp; what cannot be is refused.

    Nothing is written. Exit code 2 where a token has an expert twice, slots were never written, or ids or lengths cannot be.
    """
    from moescope.capture.manifest import FINISHED
    from moescope.routing.engines import import_routing
    from moescope.routing.load import RoutingLoad, holds_load
    from moescope.routing.sense import check_sense

    found: RoutingTrace | RoutingLoad
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Note)
        if holds_load(source) or (source / FINISHED).exists():
            found = _stored(source)
            if not isinstance(found, RoutingLoad):
                check_sense(found, str(source))
        else:
            found = import_routing(source, _engine(experts, layers, top_k))
    odd = [str(w.message) for w in caught if issubclass(w.category, Note)]
    if isinstance(found, RoutingLoad):
        return _print_load(found, {"source": str(source), "odd": odd}, json=json)
    _print({**_facts(found, source), "odd": odd}, json=json)


def _stored(folder: Path) -> RoutingTrace | RoutingLoad:
    from moescope.routing.load import holds_load, load_load
    from moescope.routing.store import load_trace

    return load_load(folder) if holds_load(folder) else load_trace(folder)


def _engine(experts: int | None, layers: str | None, top_k: int | None) -> EngineModel:
    from moescope.routing.engines import EngineModel

    if experts is None:
        raise InputError("an imported trace does not say how many a layer has; give their number", "experts")
    return EngineModel(experts, _layers(layers), top_k=top_k)


def _print(facts: dict[str, Any], *, json: bool) -> None:
    if json:
        return print_json(facts)
    for name, value in {**facts, **facts["meta"]}.items():
        for line in value if name == "odd" else [value]:
            if line is not None and name != "meta":
                print(f"{name:12} {line}")
    if facts.get("odd") == []:
        print(f"{'odd':12} nothing")


def _print_load(found: RoutingLoad, facts: dict[str, Any], *, json: bool) -> None:
    table = found.table()
    facts |= {"steps": len(found.counts), "layers": list(found.layers), "experts": found.n_experts}
    facts |= {"choices": int(found.counts.sum()), "meta": found.meta}
    if json:
        return print_json({**facts, "table": table.to_dict("records")})
    _print(facts, json=False)
    print()
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))


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
    from moescope.study.progress import progress

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
    from moescope.study.progress import progress

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
