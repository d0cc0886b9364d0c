"""Whether a model can write, and where it says that it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moescope.models.load import LoadedModel


def can_generate(model: LoadedModel) -> bool:
    """Whether the model has a head and a way to generate with it."""
    module: Any = model.module
    return hasattr(module, "generate") and module.can_generate() and module.get_output_embeddings() is not None


def end_tokens(model: LoadedModel) -> Any:
    """The id by which the model ends a text, several in a list; None where it has none."""
    return getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
