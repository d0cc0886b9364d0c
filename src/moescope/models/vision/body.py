"""Vision encoders in the shape in which all else knows a model: rows of ids in, one vector a place and layer.

Read are encoders whose layers keep one vector for each patch, at one width, from the first layer to the last: ViT, DeiT, BEiT,
DINOv2, the image towers of CLIP and SigLIP, and what is built as they are. What is built otherwise (stages that merge patches,
video, random masks, queries beside the patches) is refused by the name of its type.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.batching import SIDES, Batching
from moescope.models.taps import Structure
from moescope.models.vision.reader import ImageReader
from moescope.types import Site

_TOLERANCE, _TOLERANCE_HALF = 1e-4, 5e-2


class ImageBody(nn.Module):
    """A vision encoder that is called with rows of ids, as a text model is; the ids name images (see
    :mod:`moescope.models.vision.reader`)."""

    def __init__(self, encoder: nn.Module, reader: ImageReader) -> None:
        super().__init__()
        self.encoder = encoder
        self._reader = reader

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """``input_ids`` int64 (B, T); the mask is of no use, since every image has as many places."""
        weight = next(self.encoder.parameters())
        if input_ids.is_meta:
            blank = self._reader.blank()
            return self.encoder(pixel_values=blank.expand(len(input_ids), -1, -1, -1).to("meta", weight.dtype))
        return self.encoder(pixel_values=self._reader.pixels(input_ids).to(weight.device, weight.dtype))


def sees(forward_of: Any) -> bool:
    """Whether a model, or its class, takes images and no token ids."""
    accepted = inspect.signature(forward_of.forward).parameters
    return "pixel_values" in accepted and "input_ids" not in accepted


def image_class(config: Any) -> Any | None:
    """The class of the encoder that a config is of: of CLIP and SigLIP that of their image tower; None where it is of no vision
    encoder."""
    tower = getattr(config, "vision_config", None)
    towers = {"clip": transformers.CLIPVisionModel, "siglip": transformers.SiglipVisionModel}
    if tower is not None and config.model_type in towers:
        return towers[config.model_type]
    if type(config) not in transformers.AutoModel._model_mapping:
        return None
    found: Any = transformers.AutoModel._model_mapping[type(config)]
    found = found[0] if isinstance(found, tuple) else found
    return found if sees(found) else None


def image_config(config: Any) -> Any:
    """The config of :func:`image_class`: of a tower its own."""
    tower = getattr(config, "vision_config", None)
    return config if tower is None else tower


def encoder_of(module: Any) -> Any | None:
    """The vision encoder in a model in memory, without what classifies or compares; None where it is none."""
    if hasattr(module, "get_text_features") and getattr(module.config, "model_type", "") in ("clip", "siglip"):
        return module.vision_model
    if not sees(module):
        return None
    return getattr(module, "base_model", module)


def check_image_type(config: Any) -> None:
    """Refuse by its config, before anything is built, what no image can be read with.

    Raises:
        InputError: names the type.
    """
    own = image_config(config)
    kind = getattr(config, "model_type", "")
    why = None
    if isinstance(getattr(own, "depths", None), list | tuple) or isinstance(getattr(own, "hidden_sizes", None), list | tuple):
        why = "its stages merge patches or change their width, so there is no one stream to read"
    elif getattr(own, "num_frames", None):
        why = "it reads video"
    elif getattr(own, "mask_ratio", None):
        why = "it leaves out random patches, so what it gives for an image is not always the same"
    elif not isinstance(getattr(own, "image_size", None), int) or not getattr(own, "num_hidden_layers", None):
        why = "its config names no image_size and num_hidden_layers of one stack of layers"
    if why is not None:
        raise InputError(f"model type {kind!r} is not supported: {why}")


def measure_places(encoder: nn.Module, structure: Structure, config: Any, reader: ImageReader) -> None:
    """Run one grey image, and tell the reader how many places the model has for it.

    Raises:
        InputError: it does not run so, its layers do not keep one vector a place, or it is not always the same; names the type.
    """
    kind = getattr(config, "model_type", type(encoder).__name__)
    refused = f"model type {kind!r} is not supported: "
    seen: dict[Site, tuple[int, ...]] = {}

    def keep(site: Site) -> Any:
        return lambda tensor: seen.__setitem__(site, tuple(tensor.shape))

    weight = next(encoder.parameters())
    blank = reader.blank() if not weight.is_meta else reader.blank().to("meta")
    handles = [point.attach(keep(site)) for site, point in structure.taps.items() if site.kind in ("embed", "resid")]
    try:
        with torch.no_grad():
            once: Any = encoder(pixel_values=blank.to(weight.device, weight.dtype))[0]
            again: Any = encoder(pixel_values=blank.to(weight.device, weight.dtype))[0]
    except InputError:
        raise
    except Exception as error:  # of a model's own code anything
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{refused}it does not run on an image as its processor makes it ({why})") from error
    finally:
        for handle in handles:
            handle.remove()
    shapes = set(seen.values())
    if len(shapes) != 1 or any(len(shape) != 3 or shape[0] != 1 for shape in shapes):
        raise InputError(f"{refused}its layers do not keep one vector for each place of an image ({sorted(shapes)[:4]})")
    if not weight.is_meta and not torch.equal(once, again):
        raise InputError(f"{refused}what it gives for an image is not always the same")
    places = int(next(iter(shapes))[1])
    size, patch = config.image_size, getattr(config, "patch_size", None)
    side = size // patch if isinstance(patch, int) and patch else 0
    before = places - side * side
    if not side or before < 0 or before > 16:
        raise InputError(f"{refused}its {places} places are not those of patches of {patch} of {size} pixels")
    reader.places, reader.before = places, before


def check_images(body: nn.Module, reader: ImageReader, dtype: torch.dtype) -> Batching:
    """Whether images may share a batch: two of random pixels by themselves and side by side. None is ever padded."""
    encoder: Any = body.encoder
    weight = next(encoder.parameters())
    rng = torch.Generator().manual_seed(0)
    both = torch.randn(2, *reader.blank().shape[1:], generator=rng).to(weight.device, weight.dtype)
    with torch.no_grad():
        alone = torch.cat([encoder(pixel_values=one[None])[0] for one in both]).float()
        beside = encoder(pixel_values=both)[0].float()
    moved = float(((beside - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1).clamp_min(1e-12)).max())
    tolerance = _TOLERANCE if dtype == torch.float32 else _TOLERANCE_HALF
    return Batching(dict.fromkeys(SIDES, moved), tolerance, None, 4 * reader.places)
