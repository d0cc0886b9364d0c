"""Models without attention whose MLP is a table, for the choice of neurons: sparse by construction, or dense Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moescope.models import LoadedModel
from tests.wiring.planted import lookup_model

WORDS, CLUSTERS, EACH, WIDTH = 64, 8, 24, 32
INNER = CLUSTERS * EACH


def table_model(*, sparse: bool, seed: int = 0) -> LoadedModel:
    """What follows a word is a smooth function of the MLP's output on it.

    Args:
        sparse: a word wakes the neurons of its own cluster, an eighth of all, and no others; else every neuron writes as much
            on every word, so that none can be spared.
    """
    draw = np.random.default_rng(seed)
    vectors = np.sign(draw.normal(size=(WORDS, WIDTH)))
    vectors[:, 0] = 1
    if sparse:
        vectors = 1.5 * draw.normal(size=(WORDS, WIDTH))
        vectors[:, :CLUSTERS] = 6 * np.eye(CLUSTERS)[np.arange(WORDS) % CLUSTERS]
    model = lookup_model({f"w{i}": v for i, v in enumerate(vectors)}, inner=INNER)
    body: Any = model.body
    mlp = body.layers[0].mlp
    rng = torch.Generator().manual_seed(seed)
    neurons = torch.arange(INNER)
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            part.weight.normal_(generator=rng)
        if sparse:
            # of its own cluster a neuron's gate is far above nought, of others far below, where silu is nought
            mlp.gate_proj.weight.mul_(0.2)
            mlp.gate_proj.weight[:, :CLUSTERS] = -6.0
            mlp.gate_proj.weight[neurons, neurons % CLUSTERS] = 3.0
        else:
            for part, at in ((mlp.gate_proj, torch.zeros_like(neurons)), (mlp.up_proj, 1 + neurons % (WIDTH - 1))):
                part.weight.zero_()
                part.weight[neurons, at] = 2.0
        mlp.down_proj.weight.div_(mlp.down_proj.weight.norm(dim=0)).mul_(3 if sparse else 1)
        head: Any = model.module.get_output_embeddings()
        head.weight[2:].normal_(generator=rng).mul_(0.35)
        head.weight[:2] = 0
    return model


@torch.no_grad()
def own_text(model: LoadedModel, documents: int, length: int = 64, seed: int = 0) -> list[str]:
    """Texts drawn from the model, so that whatever changes its predictions loses on them; a word depends on the last alone."""
    ids = torch.arange(2, 2 + WORDS)[:, None]
    logits = model.module(input_ids=ids).logits[:, 0, 2 : 2 + WORDS].double()
    chance = torch.softmax(logits, -1).numpy()
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(documents):
        word = int(draw.integers(WORDS))
        said = [word]
        while len(said) < length:
            word = int(draw.choice(WORDS, p=chance[word]))
            said.append(word)
        texts.append(" ".join(f"w{w}" for w in said))
    return texts
