"""Commands of routing traces: record or import one, export it, and which models can be traced."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from moescope.cli.options import COMMON, Common
from moescope.cli.output import print_json, progress
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.routing import RoutingTrace


def trace(
    model: str | None = None,
    /,
    *,
    prompts: Annotated[
        str, Parameter(help="routing-480, routing-80, or a JSONL, CSV or Parquet file: text, category, id, topic, template.")
    ] = "routing-480",
    tokens: Annotated[int, Parameter(help="Tokens generated after each prompt; 0 reads prompts alone.")] = 32,
    sample: Annotated[bool, Parameter(negative="", help="Sample instead of taking the likeliest token.")] = False,
    beams: Annotated[int, Parameter(help="Beams of a beam search.")] = 1,
    weights: Annotated[bool, Parameter(help="Keep the experts' weights, as float16.")] = True,
    scores: Annotated[bool, Parameter(negative="", help="Keep the routers' scores of all experts (large).")] = False,
    token_ids: Annotated[bool, Parameter(help="Keep the token ids, from which the text can be read.")] = True,
    limit: Annotated[int | None, Parameter(help="Use at most this many prompts.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Cut longer prompts, from the left.")] = None,
    vllm: Annotated[
        Path | None, Parameter(help="Import vLLM's routed experts: .jsonl of responses, .npy, .npz, a folder.")
    ] = None,
    sglang: Annotated[Path | None, Parameter(help="Import a converted SGLang expert-distribution dump (.npz).")] = None,
    experts: Annotated[int | None, Parameter(help="Experts per layer of an imported trace.")] = None,
    layers: Annotated[str | None, Parameter(help="True numbers of its layers with experts, as 3-60 or 1,3,5.")] = None,
    read: Annotated[Path | None, Parameter(help="Read a recorded trace, to look at or export it.")] = None,
    parquet: Annotated[Path | None, Parameter(help="Also export it as a Parquet table, one row per choice.")] = None,
    common: Common = COMMON,
) -> None:
    """Record which experts each token is sent to, or import that from vLLM or SGLang.

    MODEL is a Hub id, a local folder or an embedded name. An interrupted recording goes on with the same command. The
    trace goes to --out (default moescope-out/trace); `moescope signatures --trace` reads it.
    """
    from moescope.routing.store import load_trace

    given = {"MODEL": model, "--vllm": vllm, "--sglang": sglang, "--read": read}
    if sum(value is not None for value in given.values()) != 1:
        raise InputError(f"give one of {', '.join(given)}")
    if read is not None:
        _say(load_trace(read), read, parquet, common)
        return
    folder = _target(common)
    if model is not None:
        options = {"max_new_tokens": tokens, "weights": weights, "scores": scores, "tokens": token_ids}
        _record(model, prompts, limit, folder, common, max_tokens=max_tokens, sample=sample, beams=beams, options=options)
    else:
        from moescope.routing.importers import EngineModel, import_sglang, import_vllm
        from moescope.routing.store import save_trace

        if experts is None:
            raise InputError("--experts: an imported trace does not say how many experts a layer has; give their number")
        engine = EngineModel(experts, _layers(layers))
        save_trace(import_vllm(vllm, engine) if vllm is not None else import_sglang(sglang or "", engine), folder)
    _say(load_trace(folder), folder, parquet, common)


def _record(
    model: str,
    prompts: str,
    limit: int | None,
    folder: Path,
    common: Common,
    *,
    max_tokens: int | None,
    sample: bool,
    beams: int,
    options: dict[str, Any],
) -> None:
    from moescope.models import load
    from moescope.routing import Decoding
    from moescope.routing.store import trace_to_store
    from moescope.tasks import load_prompts

    texts = load_prompts(prompts, limit=limit, seed=common.seed)
    decoding = Decoding(sample=sample, beams=beams, seed=common.seed)
    loaded = load(model, head=options["max_new_tokens"] > 0, **common.load_options())
    try:
        with progress() as report:
            trace_to_store(
                loaded,
                texts,
                folder,
                max_tokens=max_tokens,
                decoding=decoding,
                batch_tokens=common.batch_tokens,
                progress=lambda done, total: report("prompts traced", done, total),
                **options,
            )
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with what is in {folder}", file=sys.stderr)
        sys.exit(130)


def coverage(
    types: list[str] | None = None,
    /,
    *,
    json: Annotated[bool, Parameter(negative="", help="Print JSON instead of a table.")] = False,
) -> None:
    """Which mixture-of-experts types of the installed transformers can be traced: each is built tiny and tried.

    TYPES are model types such as olmoe; without any, all are tried (about a minute).
    """
    from moescope.routing.coverage import check_type, moe_types

    known = moe_types()
    for name in types or ():
        if name not in known:
            raise InputError(f"model type {name!r} is not among the {len(known)} with experts: {', '.join(known)}")
    chosen = types or known
    found = []
    with progress() as report:
        for number, name in enumerate(chosen, 1):
            found.append(check_type(name))
            report("types", number, len(chosen))
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


def _target(common: Common) -> Path:
    """The folder of the trace, cleared of an older one that may be replaced."""
    from moescope.capture.manifest import FINISHED, UNFINISHED
    from moescope.routing.store import remove_trace

    folder = common.out or Path("moescope-out/trace")
    if common.overwrite and (folder / UNFINISHED).exists():
        remove_trace(folder)
    if (folder / FINISHED).exists():
        if common.out is not None and not common.overwrite:
            raise InputError(f"{folder}: a trace is there already; take another --out, or --overwrite")
        remove_trace(folder)
    return folder


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise InputError(f"--layers: {text!r} is not a list of layer numbers; write 3-60 or 1,3,5")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(numbers))


def _say(found: RoutingTrace, folder: Path, parquet: Path | None, common: Common) -> None:
    from moescope.routing.export import export_parquet

    facts: dict[str, Any] = {
        "trace": str(folder),
        "sequences": len(found.sequences),
        "tokens": len(found),
        "generated": int(found.generated.sum()),
        "layers": list(found.layers),
        "experts": max(found.n_experts),
        "top_k": found.top_k,
        "meta": found.meta,
    }
    if parquet is not None:
        facts |= {"parquet": str(parquet), "rows": export_parquet(found, parquet)}
    if common.json:
        print_json(facts)
        return
    for name, value in {**facts, **found.meta}.items():
        if value is not None and name != "meta":
            print(f"{name:12} {value}")
