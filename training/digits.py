"""Train the embedded image models on scikit-learn's digits: seeded, one thread, a few CPU minutes.

    python -m training.digits vit       # vit-digits, an encoder
    python -m training.digits dit       # dit-digits, a diffusion transformer, and the digits that it makes

The 1,797 images (8 × 8, 17 shades of grey) come with scikit-learn: "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, UCI, CC BY 4.0. Neither model is trained on the 600 held-out ones.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from moescope.models.vision.denoiser import Denoiser, DenoiserShape
from moescope.tasks.images.digits import MADE, digits, from_grey, held_out, shades, to_grey
from training.train import ZOO

SEED = 20261128
VIT = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
VIT_EPOCHS, VIT_BATCH = 60, 64
DIT_STEPS, DIT_BATCH, DIT_AVERAGE = 16_000, 128, 0.999


def shifted(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each image (B, 1, 8, 8) moved by at most a pixel."""
    wide = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    at = torch.randint(0, 3, (len(x), 2), generator=rng).tolist()
    return torch.stack([image[:, i : i + 8, j : j + 8] for image, (i, j) in zip(wide, at, strict=True)])


def train_vit() -> None:
    images, labels = digits()
    held = held_out()
    x = torch.from_numpy(to_grey(images)).float()[:, None] / 127.5 - 1
    y = torch.from_numpy(labels)
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)
    config = ViTConfig(image_size=8, patch_size=2, num_channels=3, num_labels=10, **VIT)
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    train = torch.from_numpy(np.flatnonzero(~held))
    steps = VIT_EPOCHS * (len(train) // VIT_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(VIT_EPOCHS):
        order = train[torch.randperm(len(train), generator=rng)]
        for rows in order[: len(order) // VIT_BATCH * VIT_BATCH].view(-1, VIT_BATCH):
            pixels = shifted(x[rows], rng).expand(-1, 3, -1, -1)
            loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {float(loss):.3f}", flush=True)
    model.eval().bfloat16()
    model.save_pretrained(ZOO / "vit-digits")
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(ZOO / "vit-digits")
    with torch.no_grad():
        said = model.float()(pixel_values=x[torch.from_numpy(held)].expand(-1, 3, -1, -1)).logits.argmax(-1).numpy()
    print(f"parameters {sum(p.numel() for p in model.parameters())}, held-out accuracy {(said == labels[held]).mean():.4f}")


def train_dit() -> None:
    images, labels = digits()
    train = np.flatnonzero(~held_out())
    x, y = torch.from_numpy(to_grey(images[train])).float()[:, None] / 127.5 - 1, torch.from_numpy(labels[train])
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)
    model = Denoiser(DenoiserShape()).train()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    seen: list[float] = []
    for step in range(DIT_STEPS):
        rate = 1e-3 * min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * step / DIT_STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(0, len(x), (DIT_BATCH,), generator=rng)
        noise = torch.randn(DIT_BATCH, 1, 8, 8, generator=rng)
        t = torch.sigmoid(torch.randn(DIT_BATCH, generator=rng))
        mixed = (1 - t)[:, None, None, None] * x[rows] + t[:, None, None, None] * noise
        loss = (model(mixed, t, y[rows]) - (noise - x[rows])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - min(DIT_AVERAGE, (step + 1) / (step + 10)))
        if step % 1000 == 999:
            print(f"step {step + 1}: loss {np.mean(seen[-1000:]):.4f}", flush=True)
    model.load_state_dict(average)
    model.bfloat16().float().eval().save(ZOO / "dit-digits")
    made(model)


def made(model: Denoiser) -> None:
    """Write the digits that are made, as many of each class as are held out, in the shades of the real ones."""
    images, labels = digits()
    wanted = labels[held_out()]
    grey = (model.sample(torch.from_numpy(wanted), seed=SEED)[:, 0].numpy() + 1) * 127.5
    found = shades(from_grey(grey))
    np.savez_compressed(MADE, images=found, labels=wanted.astype(np.uint8))
    real, train = images[held_out()].reshape(-1, 64), images[~held_out()].reshape(-1, 64)
    for name, some in (("real, held out", real), ("made", found.reshape(-1, 64).astype(float))):
        apart = np.sqrt(((some[:, None] - train[None]) ** 2).sum(-1)).min(1)
        print(f"{name}: distance to the nearest training image, median {np.median(apart):.2f}, least {apart.min():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("vit", "dit"))
    torch.set_num_threads(1)
    began = time.process_time()
    {"vit": train_vit, "dit": train_dit}[parser.parse_args().model]()
    print(f"{time.process_time() - began:.0f} CPU s")
