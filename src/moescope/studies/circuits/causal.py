"""Is a circuit used? Switch it off in the running model, beside random sets of neurons that match it.

An effect is ablated minus clean, on texts from which neither the circuit nor the probe was learnt. Effects are lower
bounds of what the neurons do in the untouched model: later layers compensate for what was removed (McGrath, Rahtz,
Kramár, Mikulik and Legg 2023, "The Hydra effect: emergent self-repair in language model computations"). Mean ablation
is the default because zero is far from what downstream layers have seen, so that a zeroed neuron hurts whether or not
it carries the task. Random sets match the circuit in layers and in how much the intervention changes them: what differs
little from text to text is hardly changed by its mean, however large it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.intervene.intervene import group_by_site
from moescope.intervene.leace import Eraser
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.running_text import LOSS, RunningText
from moescope.studies.circuits.causal_values import AblationMode, change_sizes, class_means, task_replacement
from moescope.studies.circuits.erasure import Erasures
from moescope.studies.circuits.spread import between
from moescope.studies.circuits.trial import Trial
from moescope.study.verdicts import beyond_draws
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

DESCRIBED = 19
"""Random sets beside what is described and not judged: other sizes, and the loss on running text."""
PROBE = "probe_accuracy"


class NeuronAblation:
    """One task's circuit of k neurons, matched random sets, and one direction, as interventions (number 0: none).

    Args:
        ranking: neurons, best first, found on the trial's selection texts alone.
        k: size that is judged; ``further`` sizes, none above the ranking's, have :data:`DESCRIBED` random sets.
        mode: ``"mean"`` of the selection texts at the final token, ``"zero"``, ``"resample"`` (the values of a random
            selection text, one for all neurons) or ``"patch"`` (the mean of the other classes; on other text, of the
            classes in turn).
        n_random: beside k. The same random sets, cut to each size, serve every size.

    Raises:
        InputError: too few coordinates outside the circuit to draw from, or a neuron the model lacks.
    """

    def __init__(
        self,
        model: LoadedModel,
        trial: Trial,
        ranking: Sequence[Neuron],
        *,
        k: int,
        further: Sequence[int] = (),
        mode: AblationMode,
        n_random: int,
        seed: int = 0,
    ) -> None:
        self._model, self._trial, self._mode, self._k = model, trial, mode, k
        self._circuit = list(ranking[: max(k, *further)]) if further else list(ranking[:k])
        self._vectors = {site: trial.vectors[site] for site in group_by_site(model, self._circuit)}
        self._changes = change_sizes(mode, self._vectors, trial.split)
        self.random = matched_sets(self._circuit, self._changes, n_sets=n_random, seed=seed)
        # none, then of each size the circuit and its random sets
        neurons: list[list[Neuron]] = [[]]
        self._sizes: list[tuple[int, int, int]] = []  # size, number of the circuit, random sets behind it
        for size in (k, *(size for size in further if size != k)):
            count = n_random if size == k else min(n_random, DESCRIBED)
            self._sizes.append((size, len(neurons), count))
            neurons += [self._circuit[:size], *(members[:size] for members in self.random[:count])]
        self._rng = np.random.default_rng([seed, 1])
        self.sets = NeuronSets(model, neurons, task_replacement(mode, self._vectors, trial.split, self._rng))
        self.direction = Erasures([None, self._difference_of_means()], model.n_layers - 1)

    @property
    def sites(self) -> list[Site]:
        return list(self._vectors)

    def proof(self) -> dict[str, Any]:
        """That no random set is the circuit: none of its neurons is the circuit's own."""
        own = set(self._circuit)
        shared = sum(bool(own & set(members)) for members in self.random)
        return {"differs": shared == 0, "evidence": f"{shared} of {len(self.random)} random sets hold a neuron of the circuit"}

    def on_task(self, other: Trial) -> NeuronSets:
        """The circuit alone, as it is switched off on another task's texts: values are those of this task's texts."""
        split = self._trial.split
        turns = replace(split, evaluate=other.split.evaluate, labels=np.arange(len(other.evaluated)) % split.n_classes)
        values = task_replacement(self._mode, self._vectors, turns, self._rng)
        return NeuronSets(self._model, [[], self._circuit[: self._k]], values)

    def on_text(self, text: RunningText) -> NeuronSets:
        """The circuit and few random sets, with the values that they take on running text."""
        split = self._trial.split
        by_class = {site: class_means(x, split.fit_labels, split.n_classes) for site, x in self._vectors.items()}
        sets = [[], self._circuit[: self._k], *(members[: self._k] for members in self.random[:DESCRIBED])]
        return NeuronSets(self._model, sets, text.replacement(self._mode, by_class, self._rng))

    def _difference_of_means(self) -> tuple[Site, Eraser]:
        """What sets the direction between the two most distant class means to its mean, after the best neuron's layer."""
        site = Site("resid", self._circuit[0].site.layer)
        x, split = self._trial.vectors[site].astype(np.float64), self._trial.split
        means = class_means(x, split.fit_labels, split.n_classes)
        gaps = means[:, None] - means[None]
        first, second = np.unravel_index(np.argmax(np.square(gaps).sum(-1)), gaps.shape[:2])
        unit = gaps[first, second] / (np.linalg.norm(gaps[first, second]) + 1e-12)
        return site, Eraser(x.mean(0), unit[:, None], unit[None])

    def table(
        self, scores: Mapping[str, np.ndarray], direction: Mapping[str, np.ndarray], loss: np.ndarray | None
    ) -> pd.DataFrame:
        """What each intervention changed, from the scores (S, N) of ``sets`` and ``direction`` and the losses of ``on_text``.

        Targets, each the mean over the texts that judge:

        - ``probe_accuracy``: a logistic probe of the last layer's residual stream at the final token, fitted on clean
          activations of the selection texts. (A circuit neuron of the last layer itself is read directly by it.)
        - ``answer_logodds``, ``answer_accuracy``: where the task has answer words and the model was loaded with its
          head, log p(first token of the true class's word) minus log of the others' sum, nats, at the final position;
          and how often the true word is the likeliest of them.
        - ``wikitext_loss``: nats per token on other text, off task. There every token but each window's first (which
          often holds attention sinks) is edited, and ``mean`` and ``resample`` take their values from that text itself.

        Returns:
            The rows of the table ``ablation``.
        """
        rows = []
        groups = self._trial.groups
        for size, first, count in self._sizes:
            for target, score in scores.items():
                rows.append(self._row(size, target, score[[0, *range(first, first + 1 + count)]], groups))
        at = self._sizes[0][1]
        for target, score in direction.items():
            row = ablation_row(self._trial.task.name, 0, "direction", target, score, groups)
            gap = between(score[1], scores[target][at], groups)
            rows.append(row | {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p})
        if loss is not None:
            rows.append(self._row(self._k, LOSS, loss, np.arange(loss.shape[1])))
        return pd.DataFrame.from_records(rows)

    def _row(self, k: int, target: str, scores: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
        ratio = norm_ratio(self._circuit[:k], [members[:k] for members in self.random], self._changes)
        return ablation_row(self._trial.task.name, k, self._mode, target, scores, groups, ratio=ratio)


def ablation_row(
    task: str, k: int, mode: str, target: str, scores: np.ndarray, groups: np.ndarray, *, ratio: float = math.nan
) -> dict[str, Any]:
    """A row of the table ``ablation``: one size and target.

    Args:
        scores: (2 + R, N): clean, ablated, and under R random sets.
        groups: (N,) what is independent.
        ratio: of the norms of the changes, random over own.
    """
    clean, ablated, *random = np.asarray(scores, dtype=np.float64)
    off_task = target == LOSS
    effect = between(ablated, clean, groups)
    row = {
        "task": task,
        "k": k,
        "mode": mode,
        "target": target,
        "off_task": off_task,
        "baseline": float(clean.mean()),
        "effect": effect.value,
        "low": effect.low,
        "high": effect.high,
        **dict.fromkeys(("random_mean", "random_low", "random_high", "gap", "gap_low", "gap_high", "p"), math.nan),
        "n_random": len(random),
        "norm_ratio": ratio,
    }
    if random:
        others = np.stack(random)
        draws = others.mean(1) - clean.mean()
        low, high = np.quantile(draws, [0.025, 0.975])
        harm = 1.0 if off_task else -1.0
        gap = between(harm * ablated, harm * others.mean(0), groups, spread=float(draws.std()))
        row |= {"random_mean": float(draws.mean()), "random_low": float(low), "random_high": float(high)}
        row |= {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high}
        row["p"] = beyond_draws(effect.value, draws, "", 0.0).p
    return row
