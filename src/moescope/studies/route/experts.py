"""Routing that acts on a mixture of experts: behind the layer that names a text's task, that task's experts alone are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.intervene.experts import Expert, ExpertEdits, steer_experts
from moescope.intervene.text_loss import Applied, text_losses
from moescope.models import LoadedModel
from moescope.models.experts import expert_layers
from moescope.routing.counts import routing_counts
from moescope.runtime.mask import PruneMask, prune_mask
from moescope.runtime.route.router import Named, TaskRouter
from moescope.studies.route.act import allowed
from moescope.studies.route.early import encode_again
from moescope.studies.route.settings import RouteSettings
from moescope.study.protocol import Context
from moescope.study.rows import Rows

_CONFIDENCES = np.concatenate([[np.inf], np.linspace(1, 0, 101)])


@dataclass(frozen=True)
class Left:
    """N texts of T tasks, and what they lose where experts are left out; nats a token, NaN of rows that only fit."""

    masks: tuple[PruneMask, ...]
    """of each task, layers behind the router's alone"""
    full: np.ndarray
    """(N,)"""
    by_task: np.ndarray
    """(N, T): with each task's experts alone"""
    shared: np.ndarray
    """(N,): with as many that all tasks alike use most"""
    random: np.ndarray
    """(R, n): of the rows that judge, with as many at random"""
    task: np.ndarray
    """(N,)"""
    groups: np.ndarray
    nearest: np.ndarray
    """(N,) int64: the task whose experts a text gets"""
    acts: np.ndarray
    """(N, C) bool: at each confidence, whether it gets them alone"""
    lost: np.ndarray
    """(N, C) bool: and loses more than is tolerated by it"""
    place: int
    """of the confidence that the risk allows"""

    @property
    def share(self) -> float:
        """Of the experts of later layers, left out."""
        return self.masks[0].ratio

    @property
    def confidences(self) -> np.ndarray:
        """(C,): conformal p of a task from which on its experts alone are left; the first is never."""
        return _CONFIDENCES

    @property
    def confidence(self) -> float:
        return float(_CONFIDENCES[self.place])

    @property
    def own(self) -> np.ndarray:
        """(N,): with the experts of the text's own task."""
        return np.asarray(self.by_task[np.arange(len(self.task)), self.task])

    @property
    def others(self) -> np.ndarray:
        """(N,): with those of another task, the mean over the others."""
        return np.asarray((self.by_task.sum(1) - self.own) / (self.by_task.shape[1] - 1))


def check_experts(model: LoadedModel, layer: int, share: float, text: str) -> None:
    """Whether layers behind ``layer`` can do without so many of their experts; ``text`` is any, to see how many it is sent to.

    Raises:
        InputError: none has experts, or fewer would stay than a token is sent to.
    """
    if not model.sites("router"):
        raise InputError(f"{model.name} has no experts; without it `route --act` goes on with a task's classifier", "leave_out")
    layers = expert_layers(model)
    if not any(one.layer > layer for one in layers):
        raise InputError(f"no layer behind layer {layer} has experts; choose an earlier one", "layer")
    some = encode_again(model, [text], None)
    chosen = _sent_to(routing_counts(model, some), some)
    for one in layers:
        stay = one.n_experts - round(share * one.n_experts)
        if one.layer > layer and stay < chosen:
            raise InputError(
                f"{share:g} leaves {stay} of {one.n_experts} experts in layer {one.layer}, and each token needs {chosen}; "
                "leave out fewer",
                "leave_out",
            )


def _sent_to(counts: np.ndarray, encoded: Encoded) -> int:
    """To how many experts of a layer a token is sent, at most, by counts (N, L, E)."""
    return round(float((counts.sum(-1) / encoded.lengths[:, None]).max()))


def without_experts(
    context: Context,
    model: LoadedModel,
    texts: Sequence[str],
    task: np.ndarray,
    rows: Rows,
    router: TaskRouter,
    named: Sequence[Named],
    settings: RouteSettings,
) -> Left:
    """Choose every task's experts by their use on ``rows.fit``, and how sure the router must be on ``rows.calibrate``.

    Args:
        texts: of all N rows, of tasks ``task`` (N,).
        named: what the router says of them.
    """
    run, share = context.run, settings.leave_out
    assert share is not None
    limit, n_tasks = run.max_tokens, len(router.tasks)

    def encoded(part: np.ndarray) -> Encoded:
        return encode_again(model, [texts[i] for i in part], limit)

    fitting = encoded(rows.fit)
    counts = context.stage("use of the experts", partial(routing_counts, model, fitting, batch_tokens=run.batch_tokens))
    use = counts / fitting.lengths[:, None, None]
    of = np.stack([use[task[rows.fit] == t].mean(0) for t in range(n_tasks)])  # (T, L, E)
    top_k = _sent_to(counts, fitting)

    def kept(saliency: np.ndarray, by: str) -> PruneMask:
        later = {
            one.layer: saliency[place, : one.n_experts]
            for place, one in enumerate(expert_layers(model))
            if one.layer > router.layer
        }
        meta = {"model": model.name, "fingerprint": model.fingerprint, "criterion": by, "ratio": share}
        return prune_mask(later, share, top_k=top_k, meta=meta)

    masks = tuple(kept(of[t], f"use by {router.tasks[t]}") for t in range(n_tasks))
    rng = np.random.default_rng(run.seed)
    alike = kept(of.mean(0), "use by all tasks")
    drawn = [kept(rng.random(of.shape[1:]), "lot") for _ in range(settings.n_changes)]
    context.control(
        "experts at random",
        differs=any(mask.pruned != drawn[0].pruned for mask in drawn) and {mask.kept for mask in drawn} == {masks[0].kept},
        evidence=f"{len(drawn)} sets of {masks[0].kept} a layer, of which they share "
        f"{np.mean([1 - len(mask.pruned - masks[0].pruned) / max(1, len(mask.pruned)) for mask in drawn]):.0%} with the first "
        "task's in what is left out",
    )
    both = np.concatenate([rows.calibrate, rows.judge])

    def losses(part: np.ndarray, masks: Sequence[PruneMask | None], name: str) -> np.ndarray:
        """(len(masks), N), NaN of other rows."""
        found, some = np.full((len(masks), len(texts)), np.nan), encoded(part)
        for done, mask in enumerate(masks):
            found[done, part] = text_losses(model, some, _without(model, mask), batch_tokens=run.batch_tokens)
            context.tell(name, done + 1, len(masks))
        return found

    name = "the experts of a task"
    full, *by_task = context.stage(name, lambda: losses(both, [None, *masks], name))
    beside = "as many experts of all tasks, and at random"
    shared, *random = context.stage(beside, lambda: losses(rows.judge, [alike, *drawn], beside))
    nearest = np.array([router.tasks.index(one.nearest) for one in named])
    sure = np.array([one.p if one.task is not None else -1.0 for one in named])
    own = np.column_stack(by_task)
    with np.errstate(invalid="ignore"):
        worse = own[np.arange(len(texts)), nearest] - full > settings.tolerance
    acts = sure[:, None] >= _CONFIDENCES
    lost = acts & worse[:, None]
    passed = allowed(lost[rows.calibrate], rows.groups[rows.calibrate], settings)
    return Left(
        masks=masks,
        full=full,
        by_task=own,
        shared=shared,
        random=np.stack(random)[:, rows.judge],
        task=task,
        groups=rows.groups,
        nearest=nearest,
        acts=acts,
        lost=lost,
        place=max(0, passed - 1),
    )


def _without(model: LoadedModel, mask: PruneMask | None) -> Applied | None:
    """What opens the model without the experts that a mask leaves out."""
    if mask is None:
        return None
    return partial(steer_experts, model, ExpertEdits(ban=frozenset(Expert(*one) for one in mask.pruned)))
