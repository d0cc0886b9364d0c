"""Tasks of multiple choice through EleutherAI's lm-evaluation-harness, on a model that is run layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.windows import opening
from moescope.errors import InputError
from moescope.models.layered import Layered, whole
from moescope.stats import group_bootstrap
from moescope.studies.prune.settings import PruneSettings
from moescope.study.harness import run_tasks
from moescope.study.paired import paired_effect
from moescope.study.run import Run


def task_table(models: dict[str, Layered], settings: PruneSettings, run: Run) -> pd.DataFrame:
    """Table ``tasks``: accuracy of the whole and of the pruned model on the same examples, beside chance.

    Raises:
        InputError: the harness is not installed, does not know a task, or a task is not one of multiple choice.
    """
    samples = {
        name: run_tasks(
            harness_model(model, run.batch_tokens),
            settings.eval_task,
            include=settings.eval_include,
            limit=run.limit,
            seed=run.seed,
        )["samples"]
        for name, model in models.items()
    }
    rows = []
    for task in samples["whole"]:
        right = {name: _right(task, found[task]) for name, found in samples.items()}
        chance = np.array([1 / len(s["arguments"]) for s in _ordered(samples["whole"][task])])
        documents = np.arange(len(chance))
        low, high = group_bootstrap(right["whole"] - chance, documents, seed=run.seed)
        change = paired_effect(right["pruned"], right["whole"], documents, "the whole model", 0.0, run.seed)
        rows.append(
            {
                "task": task,
                "n": len(chance),
                "chance": float(chance.mean()),
                "whole": float(right["whole"].mean()),
                "whole_low": float(chance.mean() + low),
                "whole_high": float(chance.mean() + high),
                "pruned": float(right["pruned"].mean()),
                "change": change.value,
                "low": change.low,
                "high": change.high,
                "used": bool(low > 0),
            }
        )
    return pd.DataFrame(rows)


def _ordered(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def _right(task: str, samples: Sequence[dict[str, Any]]) -> np.ndarray:
    """float64 (N,): whether each example is right."""
    if not samples or any("acc" not in sample for sample in samples):
        raise InputError(f"{task!r} is no task of multiple choice that is scored by accuracy (acc)", "eval_task")
    return np.array([float(sample["acc"]) for sample in _ordered(samples)])


def harness_model(layered: Layered, batch_tokens: int) -> Any:
    """A language model as the harness takes it, all of whose requests go through each layer together."""
    from lm_eval.api.model import TemplateLM

    tokenizer = layered.model.tokenizer
    first = opening(layered.model).tolist()

    class LayeredLM(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return [*first, *tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]]

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return score(layered, [(context, more) for _, context, more in requests], batch_tokens)

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> Any:
            raise InputError("only tasks of multiple choice are run layer by layer", "eval_task")

        def generate_until(self, requests: Any, **_: Any) -> Any:
            raise InputError("only tasks of multiple choice are run layer by layer", "eval_task")

    return LayeredLM()


@torch.no_grad()
def score(
    layered: Layered, requests: Sequence[tuple[Sequence[int], Sequence[int]]], batch_tokens: int
) -> list[tuple[float, bool]]:
    """Of (context, continuation), token ids each: the continuation's log-probability, and whether each of its tokens is the
    most likely one."""
    texts = [torch.tensor([*context, *more]) for context, more in requests]
    begun = layered.begin(texts, batch_tokens)
    (final,) = layered.sweep(begun, [whole])
    found: list[tuple[float, bool]] = [(0.0, False)] * len(texts)
    with layered.head() as head:
        for rows, ids, states in zip(begun.rows, begun.ids, final, strict=True):
            for row, text, state in zip(rows.tolist(), ids, states, strict=True):
                count = len(requests[row][1])
                logits = torch.log_softmax(head(state[None])[0, -count - 1 : -1].float(), -1)
                target = text[-count:].to(logits.device)
                chosen = logits.gather(1, target[:, None])
                found[row] = (float(chosen.sum()), bool((logits.argmax(1) == target).all()))
    return found
