"""The residency study: would a cache of experts help, what should it hold, and which device should hold what?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from moescope.errors import InputError
from moescope.routing.cache import served, uniform_trace
from moescope.routing.lookahead import guessed_ids
from moescope.routing.store import trace_of
from moescope.routing.trace import RoutingTrace
from moescope.studies.residency.cached import (
    domain_table,
    layer_table,
    measure,
    part_of,
    pinned_table,
    policy_table,
)
from moescope.studies.residency.claims import residency_claims
from moescope.studies.residency.files import PlacementFiles
from moescope.studies.residency.placed import devices_of, place, placement_table
from moescope.studies.residency.rows import split
from moescope.studies.residency.settings import ResidencySettings
from moescope.study.protocol import Context, ModelLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.run import Run

_SETTINGS, _RUN = ResidencySettings(), Run()
_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@verb
def residency(
    trace: RoutingTrace | str | Path,
    model: ModelLike | None = None,
    settings: ResidencySettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Simulate caches of experts over a trace, beside a uniform router and the fewest loads possible, and place experts.

    Half of the trace's groups of requests fit what is pinned and placed; the other half judges. Requests are served in the
    trace's order, one after the other or ``settings.batch`` at a time, and a cache goes on from one to the next.

    Args:
        trace: a trace, or the folder that holds one.
        model: that was traced, for the lookahead by its routers.

    Returns:
        A result of kind ``"residency"``: tables ``policies``, ``layers``, ``domains``, ``pinned`` and ``placement``; artifacts
        ``placement/N``, files for engines with N devices.

    Raises:
        InputError: the trace cannot be split, or a capacity, a number of devices or the model does not fit it.

    >>> import moescope
    >>> result = moescope.residency("trace", settings=moescope.ResidencySettings(capacity=16, bandwidth=25))  # doctest: +SKIP
    >>> result.table("policies")[["policy", "capacity", "hit_rate", "loaded"]]  # doctest: +SKIP
    """
    context = Context("residency", settings, run, of=ResidencySettings)
    recorded = trace_of(trace)
    context.stages.read(recorded)
    n_experts, top_k = max(recorded.n_experts), recorded.top_k
    capacity, capacities = _capacities(n_experts, settings)
    devices = devices_of(recorded.n_experts, settings)
    said = recorded.meta.get("expert_bytes")
    expert_bytes = settings.expert_bytes or (said if isinstance(said, int) and said > 0 else None)
    if settings.bandwidth is not None and expert_bytes is None:
        raise InputError("the trace does not say how large an expert is; give --expert-bytes", "expert_bytes")
    halves = split(recorded, run.seed)
    context.rows(halves.rows)
    if settings.prefill == "one step" and not halves.judge.generated.any():
        context.note("Note: no token was generated in the trace: prompt tokens are served one by one, as if they had been.")
    if capacity < top_k:
        context.note(
            f"Note: a layer that holds {capacity} experts cannot hold the {top_k} of one token: the rest pass through the "
            "buffer."
        )
    drawn = uniform_trace(halves.judge, run.seed)
    differing = float((np.sort(drawn.ids, 2) != np.sort(halves.judge.ids, 2)).any(2).mean())
    context.control(
        "uniform router", differs=differing > 0, evidence=f"other experts in {differing:.1%} of the tokens of a layer"
    )
    guessed = None
    if model is not None:
        loaded = context.load(model)
        looking = partial(
            guessed_ids, loaded, halves.judge, batch_tokens=run.batch_tokens, progress=context.counter("looking ahead")
        )
        guessed = context.stage("looking ahead", looking)
    context.tell("serving", 0, 1)
    found = context.stage("serving", partial(measure, halves, settings, capacity, capacities, run.seed, guessed))
    placed = [
        context.stage(f"placing on {d} devices", partial(place, halves, d, settings, run.seed))
        for d in context.steps("placing", devices)
    ]
    for one in placed:
        moved = int((one.random != one.random[0]).sum())
        context.control(
            f"random placements on {one.devices} devices",
            differs=moved > 0,
            evidence=f"{moved} of {len(one.random)} load the busiest device otherwise than the first",
        )
    steps = served(halves.judge, settings.batch, settings.prefill)
    counted = np.bincount(steps.cell % 2, minlength=2)[0] / max(steps.tokens[::2].sum(), 1)
    tables = {
        "policies": policy_table(found, settings, expert_bytes, float(counted), run.seed),
        "layers": layer_table(found, recorded.layers),
        "domains": domain_table(found, run.seed),
        "pinned": pinned_table(recorded, found.pinned, capacity),
        "placement": placement_table(placed),
    }
    counts = halves.fit.counts().sum(0)
    if settings.bandwidth is not None and expert_bytes is not None:
        context.note(
            f"Tokens per second are an upper bound: 1 / max(time to compute, bytes loaded / bandwidth) a token, with "
            f"{settings.compute:g} ms a step, {expert_bytes / 2**20:.3g} MiB an expert and {settings.bandwidth:g} GB/s, as if "
            "loading and computing hid each other fully."
        )
    return context.result(
        model=str(recorded.meta.get("model", "unknown")),
        title=f"Caching and placing the experts of {recorded.meta.get('model', 'a model')}",
        claims=residency_claims(
            found,
            placed,
            settings,
            n_experts,
            _BITS.get(str(recorded.meta.get("dtype")), 16),
            run.seed,
            looked=guessed is not None,
        ),
        tables=tables,
        artifacts={
            f"placement/{one.devices}": PlacementFiles(recorded.layers, one.placement, one.devices, counts) for one in placed
        },
        trace=recorded.meta,
        steps={"judged": part_of(halves.judge, settings), "requests_at_once": settings.batch},
        expert_bytes=expert_bytes,
    )


def _capacities(n_experts: int, settings: ResidencySettings) -> tuple[int, list[int]]:
    """The judged capacity, and all of the table.

    Raises:
        InputError: one of them holds all experts.
    """
    capacity = settings.capacity or max(1, n_experts // 4)
    further = settings.capacities or tuple(max(1, n_experts * part // 8) for part in (1, 4, 6))
    for name, values in (("capacity", (capacity,)), ("capacities", further)):
        if (largest := max(values)) >= n_experts and (n_experts > 1):
            raise InputError(
                f"{largest} is no fewer than the {n_experts} experts of a layer: nothing would ever be loaded", name
            )
    return capacity, sorted({capacity, *further})
