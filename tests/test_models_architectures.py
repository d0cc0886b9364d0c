"""Every type of the installed transformers is read right, or refused by name with a true reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from moescope.errors import InputError
from moescope.models import LoadedModel, from_model, load
from moescope.models import tiny as tiny_table
from moescope.models.architectures import check_model, check_type, text_types
from moescope.models.probe import Misread
from moescope.models.taps import TapPoint
from moescope.models.tiny import tiny_module
from moescope.types import Site
from tests.architectures import tiny_model, tiny_tokenizer
from tools.architectures import PAGE, refusal, row

SUM = "x + attn_out + mlp_out"
BERT = "norm(norm(x + attn_out) + mlp_out)"
# one of each kind: what a layer gives
READ = {
    "llama": SUM,
    "gpt2": SUM,
    "gpt_neox": SUM,
    "bloom": SUM,
    "falcon": SUM,
    "esm": SUM,
    "megatron-bert": SUM,
    "axk2": SUM,
    "deepseek_v32": SUM,
    "gemma3": "x + norm(attn_out) + norm(mlp_out)",
    "bert": BERT,
    "mpnet": BERT,
    "minicpm3": "x + 0.7·attn_out + 0.7·mlp_out",
    "lfm2": f"x + conv + mlp_out; {SUM}",
    "bamba": f"x + mamba + mlp_out; {SUM}",
    "falcon_h1": "x + mamba + attn_out + mlp_out",
    "recurrent_gemma": f"x + temporal_block + mlp_out; {SUM}",
    "granitemoeshared": "x + block_sparse_moe + shared_mlp + attn_out",
    "doge": "of x, attn_out and mlp_out, token by token",
    "qwen2_vl": SUM,
    "video_llava": SUM,
    "nystromformer": BERT,
    "xmod": "of x, attn_out and mlp_out, token by token",
}
REFUSED = {
    "vit": "vit reads images, and has no image processor",
    "dinov2": "dinov2 reads images, and has no image processor",
    "wav2vec2": "is not a text model: it takes no token ids",
    "clip": "clip reads images, and has no image processor",
    "albert": "its layers share one set of weights",
    "gemma3n_text": "it keeps 4 residual streams side by side",
    "deepseek_v4": "its routing can be traced, but it keeps 4 residual streams side by side",
    "longformer": "it lengthens texts by itself",
    "rwkv": "it is recurrent",
    "mamba": "it has no stack of layers",
    "t5": "is an encoder-decoder",
    "bros": "does not run on token ids alone",
    "mllama": "attend to images alone",
    "inkling_text": "it mixes tokens by convolutions",
}
WHY = (
    *(
        "is not a text model",
        "has no image processor",
        "is an encoder-decoder",
        "does not run on token ids alone",
        "is not supported: ",
    ),
    *("its routing can be traced, but ", "not tried: "),
)


@pytest.mark.parametrize("model_type", sorted(READ))
def test_one_of_each_kind_is_read(model_type: str) -> None:
    found = check_type(model_type)
    assert found.read, found.reason
    assert found.stream == READ[model_type]


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_one_of_each_kind_is_refused_with_its_reason(model_type: str) -> None:
    found = check_type(model_type)
    assert not found.read
    assert REFUSED[model_type] in found.reason


@pytest.mark.slow
@pytest.mark.parametrize("model_type", text_types())
def test_every_type_is_read_right_or_refused_and_listed(model_type: str) -> None:
    found = check_type(model_type)
    assert found.read or any(why in found.reason for why in WHY), found.reason
    if not PAGE.read_text(encoding="utf-8").count(f"(transformers {transformers.__version__})"):
        return  # another release: the page is of the one that is named there
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    if found.read:
        assert row(found) in lines, "run `python tools/architectures.py`"
    else:
        listed = [line for line in lines if line.startswith("**") and f"`{model_type}`" in line]
        assert listed, "run `python tools/architectures.py`"
        assert listed[0].startswith(f"**{refusal(found)}**"), "run `python tools/architectures.py`"


def test_the_page_lists_every_type() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"(transformers {transformers.__version__})" in page:
        assert not [name for name in text_types() if f"`{name}`" not in page], "run `python tools/architectures.py`"


@pytest.mark.parametrize("change", [{}, {"enable_moe_block": True}])
def test_experts_beside_an_mlp_and_per_layer_embeddings(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny_table.OWN["gemma4_text"] | {"enable_moe_block": False} | change
    monkeypatch.setitem(tiny_table.OWN, "gemma4_text", own)
    model = from_model(tiny_module("gemma4_text"), None, name="gemma4_text")
    assert check_model(model).read
    assert bool(model.sites("mlp_out")) is not bool(change)  # no module's output is that of both
    assert len(model.sites("resid")) == len(model.sites("attn_out")) == 4


class Shifted(nn.Module):
    """An MLP that reads the token before too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + x.roll(1, dims=1))  # type: ignore[no-any-return]


def misread(model: LoadedModel, site: Site, module: nn.Module, side: str) -> str:
    """What the check says of a model one of whose sites hangs elsewhere."""
    old = model.structure.taps[site]
    model.structure.taps[site] = TapPoint(site, module, side, old.width, old.shape)  # type: ignore[arg-type]
    with pytest.raises(Misread) as error:
        check_model(model)
    return str(error.value)


def test_the_check_finds_sites_that_hang_elsewhere() -> None:
    model = tiny_model("llama")
    layers: Any = model.structure.layers
    assert "resid:1 and what layer 2 is given" in misread(model, Site("resid", 1), layers[0], "output")
    model = tiny_model("llama")
    layers = model.structure.layers
    said = misread(model, Site("attn_out", 2), layers[2].self_attn.q_proj, "output")
    assert "resid:2 as it is and with an earlier token disturbed, its parts held" in said
    model = tiny_model("llama")
    layers = model.structure.layers
    assert "mlp_out:1" in misread(model, Site("mlp_in", 1), layers[1].self_attn.q_proj, "input")
    model = tiny_model("gpt2")
    layers = model.structure.layers
    assert misread(model, Site("mlp_out", 0), layers[0].attn, "output")


def test_the_check_finds_an_mlp_that_mixes_tokens() -> None:
    model = tiny_model("llama")
    layers: Any = model.structure.layers
    layers[1].mlp = Shifted(layers[1].mlp)
    model = from_model(model.module, None, name="shifted")
    site = Site("mlp_in", 1)
    assert "with mlp_in:1 of an earlier token disturbed" in misread(model, site, layers[1].mlp, "input")


def test_what_is_not_text_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'vit' reads images, and has no image processor") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_vision_language_model_is_loaded_with_its_head(tmp_path: Path) -> None:
    module: Any = tiny_module("llava")
    module.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path, head=True, device="cpu")
    assert model.has_head
    assert model.sites("mlp_act") == tuple(Site("mlp_act", n) for n in range(4))
    ids = torch.tensor([[5, 9, 7]])
    assert torch.allclose(model.module(input_ids=ids).logits, module(input_ids=ids).logits, atol=1e-5)
    assert load(tmp_path, device="cpu").n_layers == 4
