"""Tokenizers that begin, end or frame a text."""

from __future__ import annotations

import copy
from dataclasses import replace

from tokenizers import processors

from moescope.models import LoadedModel
from tests.architectures import BOS, EOS, tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<mask>{{ m.role }}\n{{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<mask>model\n{% endif %}"
)
HEAD, TAIL = "<bos><mask>user\n", "<eos>\n<mask>model\n"


def closing_model(name: str = "llama") -> LoadedModel:
    """A tiny model with its head, whose tokenizer puts <bos> before a text and <eos> after it."""
    model = tiny_model(name, head=True)
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return model


def chat_model(model: LoadedModel | None = None, template: str = TEMPLATE) -> LoadedModel:
    """``model``, or a tiny one with its head, with a chat template."""
    model = tiny_model("llama", head=True) if model is None else model
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return replace(model, tokenizer=tokenizer)
