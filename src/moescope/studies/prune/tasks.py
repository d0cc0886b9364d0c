"""Tasks of multiple choice through EleutherAI's lm-evaluation-harness, on a model that is run layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moescope.capture.windows import opening
from moescope.errors import InputError
from moescope.models.layered import Layered, whole


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
