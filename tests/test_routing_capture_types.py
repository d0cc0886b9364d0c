"""Every mixture-of-experts type of the installed transformers: traced, or refused by name with the reason."""

from __future__ import annotations

import pytest

from moescope.routing import coverage
from moescope.routing.coverage import TOLERANCE, check_type, moe_types

REFUSED = {
    "diffusion_gemma": "encoder-decoder",
    "nllb-moe": "encoder-decoder",
    "switch_transformers": "encoder-decoder",
    "vitpose_backbone": "no language model",
}
NO_GENERATION = {"openai_privacy_filter"}  # a classifier of tokens


@pytest.mark.parametrize("model_type", moe_types())
def test_every_type_is_traced_or_refused_with_a_reason(model_type: str) -> None:
    found = check_type(model_type)
    if model_type in REFUSED:
        assert not found.supported
        assert REFUSED[model_type] in found.reason
        return
    assert found.supported, found.reason
    assert found.error <= TOLERANCE
    assert found.layers
    assert max(found.layers) < found.n_layers
    assert found.generates == (model_type not in NO_GENERATION)


def test_the_types_are_those_of_the_installed_transformers() -> None:
    types = moe_types()
    assert len(types) == len(set(types)) >= 60
    assert {
        "olmoe",
        "mixtral",
        "deepseek_v3",
        "gpt_oss",
        "jetmoe",
        "llama4_text",
        "doge",
        "dbrx",
        "switch_transformers",
    } <= set(types)
    assert not {"llama", "gpt2", "bert"} & set(types)


def test_a_type_that_cannot_be_sized_is_a_row_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a later transformers may be."""
    monkeypatch.setitem(coverage.tiny_module.__globals__["OWN"], "mixtral", {"num_attention_heads": 5})
    found = check_type("mixtral")
    assert not found.supported
    assert "no tiny model of it runs" in found.reason
