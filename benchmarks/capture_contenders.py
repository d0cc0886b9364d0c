"""The ways of reading every layer's residual stream that capture.py times side by side, on one model and one batch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import transformers

from moescope.capture import Encoded, moments
from moescope.models import LoadedModel, from_model

SITE_KIND = "resid"
Calls = dict[str, Callable[[], Any]]


def random_gpt2(layers: int, width: int, heads: int, vocabulary: int = 50257) -> Any:
    """A GPT-2 of this shape with random weights; no download."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def wrap(head_model: Any) -> LoadedModel:
    return from_model(head_model.transformer, None, name="random GPT-2")


def contenders(head_model: Any, ids: torch.Tensor, model: LoadedModel | None = None) -> tuple[Calls, dict[str, str]]:
    """Name -> one call on the batch ids (B, T); and the peers that are missing, with the reason.

    ``model`` is ``head_model`` as moescope loaded it; without it, it is wrapped.
    """
    model = model if model is not None else wrap(head_model)
    body: Any = model.body
    mask = torch.ones_like(ids)
    encoded = Encoded.from_ids(ids.numpy())
    sites = model.sites(SITE_KIND)
    rng = np.random.default_rng(0)
    labels, folds = rng.integers(0, 2, len(ids)), rng.integers(0, 5, len(ids))

    def of_moescope(position: Any) -> Callable[[], Any]:
        return lambda: moments(model, encoded, sites, labels, folds, position=position, batch_tokens=ids.numel())

    def by_hand() -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        handles = [block.register_forward_hook(lambda _, __, output: kept.append(output)) for block in _blocks(body)]
        try:
            body(input_ids=ids, attention_mask=mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    calls: Calls = {
        "bare body": lambda: body(input_ids=ids, attention_mask=mask, use_cache=False),
        "with LM head": lambda: head_model(input_ids=ids, attention_mask=mask, use_cache=False),
        "transformers output_hidden_states": lambda: body(
            input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
        ),
        "forward hooks by hand, outputs kept": by_hand,
        "moescope final-token moments, all layers": of_moescope("final"),
        "moescope every-token moments, all layers": of_moescope("all"),
    }
    missing: dict[str, str] = {}
    for name, build in (("nnsight", nnsight_call), ("transformer_lens", transformer_lens_calls)):
        try:
            calls |= build(head_model, ids, model.tokenizer)
        except ImportError:
            missing[name] = "not installed"
        except Exception as error:  # a peer that cannot take the model is a row, not the end of the others' measurement
            missing[name] = f"cannot take this model: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return calls, missing


def _blocks(body: Any) -> Any:
    return body.h if hasattr(body, "h") else body.layers


def nnsight_call(head_model: Any, ids: torch.Tensor, _: Any) -> Calls:
    """All residual streams through nnsight's trace on the bare body."""
    import nnsight

    traced = nnsight.NNsight(head_model.base_model)

    def call() -> Any:
        with traced.trace(ids):
            kept = nnsight.save([layer.output for layer in _blocks(traced)])
        return kept

    with torch.no_grad():
        call()

    return {f"nnsight {nnsight.__version__} trace, all layers": call}


def transformer_lens_calls(head_model: Any, ids: torch.Tensor, tokenizer: Any) -> Calls:
    """TransformerLens >= 4: run_with_cache of its bridge over the same weights."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        head_model.config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        # a copy, because the bridge rewires the attention of the model that it is given
        bridge = TransformerBridge.boot_transformers(folder, hf_model=copy.deepcopy(head_model), device="cpu")

    def wanted(name: str) -> bool:
        return name.startswith("blocks.") and name.endswith(".hook_out") and name.count(".") == 2

    release = version("transformer-lens")
    return {
        f"transformer_lens {release} run_with_cache, residual stream": lambda: bridge.run_with_cache(
            ids, names_filter=wanted, return_type=None
        ),
        f"transformer_lens {release} run_with_cache, everything": lambda: bridge.run_with_cache(ids),
    }
