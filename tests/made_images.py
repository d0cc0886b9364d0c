"""Tiny vision encoders, and folders of images in which it is known what tells the classes apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE, PATCH = 16, 4
_SIZE = {"height": SIDE, "width": SIDE}
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
PLANTED = 7
"""the neuron of mlp_act:0 that answers vertical stripes of either phase"""


def tiny(kind: str) -> tuple[Any, Any]:
    """(model, processor) of ``vit``, ``vit-classifier``, ``dinov2``, ``clip`` or ``siglip``, randomly initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        plain = ViTImageProcessorPil(size=_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        cut: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": _SIZE}
        match kind:
            case "vit":
                return ViTModel(ViTConfig(intermediate_size=64, **_SHAPE)), plain
            case "vit-classifier":
                return ViTForImageClassification(ViTConfig(intermediate_size=64, **_SHAPE)), plain
            case "dinov2":
                return Dinov2Model(Dinov2Config(mlp_ratio=2, **_SHAPE)), BitImageProcessorPil(**cut)
            case "clip":
                text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
                vision = {"intermediate_size": 64, **_SHAPE}
                text |= {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
                return CLIPModel(CLIPConfig(vision_config=vision, text_config=text)), CLIPImageProcessorPil(**cut)
        return SiglipVisionModel(SiglipVisionConfig(intermediate_size=64, **_SHAPE)), SiglipImageProcessorPil(size=_SIZE)


def planted() -> tuple[Any, Any]:
    """A ViT whose neuron ``PLANTED`` in layer 0 grows with the contrast of vertical stripes, whichever phase they have; the
    patches' embedding, which is linear, has nothing of that on average."""
    model, processor = tiny("vit")
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(4, 4)
    with torch.no_grad():
        model.embeddings.patch_embeddings.projection.weight[0] = stripes / 4
        layer = model.layers[0]
        layer.attention.o_proj.weight.zero_()
        layer.mlp.fc1.weight[PLANTED] = 0
        layer.mlp.fc1.weight[PLANTED + 1] = 0
        layer.mlp.fc1.weight[PLANTED, 0], layer.mlp.fc1.weight[PLANTED + 1, 0] = 2.0, -2.0
    return model, processor


def needed() -> tuple[Any, Any]:
    """The same, and nothing but what the planted neurons write tells the classes apart: the other coordinates of a patch, which
    the other neurons read, answer neither stripe, so that they follow the noise alone."""
    model, processor = planted()
    along = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(4, 4)
    with torch.no_grad():
        projection = model.embeddings.patch_embeddings.projection.weight
        filters = 0.6 * torch.randn(projection[1:].shape, generator=torch.Generator().manual_seed(3))
        for stripe in (along, along.T):
            filters -= (filters * stripe).sum((2, 3), keepdim=True) * stripe / 16
        projection[1:] = filters
        projection[0] /= 10
        first, last = model.layers
        others = torch.ones(len(first.mlp.fc1.weight), dtype=torch.bool)
        others[PLANTED : PLANTED + 2] = False
        first.mlp.fc1.weight[others, 0] = 0
        first.mlp.fc1.weight[others] *= 15
        first.mlp.fc2.weight[:, PLANTED] *= 8
        first.mlp.fc2.weight[:, PLANTED + 1] = first.mlp.fc2.weight[:, PLANTED]
        last.attention.o_proj.weight.zero_()
        last.mlp.fc2.weight.zero_()
    return model, processor


def striped(folder: Path, n: int = 80, seed: int = 0, noise: float = 0.0) -> Path:
    """Classes ``across`` and ``along``: stripes one pixel wide, their phase and contrast drawn for each patch, so that no mean,
    no small picture and no map of a patch that is linear tells them apart. As BMP: PNG packs stripes along its rows into fewer
    bytes, so that the size of the file would tell. ``noise``: greys of each pixel's own."""
    rng = np.random.default_rng(seed)
    along = np.tile([1.0, -1.0, 1.0, -1.0], (4, 1))
    for name, stripe in (("along", along), ("across", along.T)):
        (folder / name).mkdir(parents=True)
        for number in range(n):
            sign = rng.choice([-1.0, 1.0], (4, 4)) * rng.uniform(0.5, 1.0, (4, 4))
            grey = 128 + 90 * np.kron(sign, np.ones((4, 4))) * np.tile(stripe, (4, 4))
            _save(folder / name / f"{number:03d}.bmp", grey + noise * rng.normal(size=grey.shape))
    return folder


def noisy(folder: Path, n: int = 40, *, shade: float = 0.0, quality: tuple[int, int] | None = None, seed: int = 1) -> Path:
    """Classes ``a`` and ``b`` of noise that differ by ``shade`` greys, or by the quality of their JPEG files, or by nothing."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            grey = 120 + shade * number + rng.normal(0, 20, (SIDE, SIDE)) + rng.normal(0, 4)
            path = folder / name / f"{i:03d}.{'png' if quality is None else 'jpg'}"
            _save(path, grey, **({} if quality is None else {"quality": quality[number] + int(rng.integers(-3, 4))}))
    return folder


def _save(path: Path, grey: np.ndarray, **options: Any) -> None:
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path, **options)
