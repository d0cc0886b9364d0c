"""How far a student is from its teacher on the same tokens: the loss that fine-tuning lowers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Distance(NamedTuple):
    """``logits``: KL(teacher ‖ student) in nats per token; ``hidden``: relative squared error of the hidden states, mean over
    tokens and blocks."""

    logits: Tensor
    hidden: Tensor


def distance(
    student_logits: Tensor, teacher_logits: Tensor, student_hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]
) -> Distance:
    """Logits (B, L, V) and, for each block, hidden states (B, L, d) after it.

    KL between the two distributions (Hinton, Vinyals & Dean 2015, arXiv:1503.02531, at temperature one, as the result is
    judged), and the error of the hidden states of every block (Jiao et al. 2020, TinyBERT, arXiv:1909.10351, equation 8,
    without the map between widths, which are the same here). The error is divided by the squared norm of the teacher's state
    token by token: so each block counts alike, and the massive activations of a first token drown no other.
    """
    found, wanted = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    kl = (wanted.exp() * (wanted - found)).sum(-1).mean()
    errors = [
        ((s.float() - t.float()).square().sum(-1) / t.float().square().sum(-1).clamp_min(1e-12)).mean()
        for s, t in zip(student_hidden, teacher_hidden, strict=True)
    ]
    return Distance(kl, torch.stack(errors).mean())
