"""A layer of the embedded diffusion transformer distilled, and what its students cost the whole model.

python benchmarks/denoiser.py OUT

Half a minute of CPU. Prints the denoiser's mean squared error on the held-out digits, noise at random times, with the layer as
it is, with its mean output and with each student in its place.
"""

from __future__ import annotations

import sys

import torch

import moescope
from moescope.models.vision.denoiser import load_denoiser
from moescope.tasks.images.digits import digits, held_out, to_grey


def main(out: str) -> None:
    denoiser = load_denoiser("dit-digits")
    with moescope.record(denoiser, "blocks.2.mlp") as store:
        for number in range(5):
            images = torch.arange(100) + 100 * number
            store.of(images)
            denoiser.sample(images % 10, steps=10, seed=number)
    settings = moescope.DistillSettings(experts=256, active=(8,), rank=32, steps=600, lr=(3e-3, 1e-2), batch=512)
    result = moescope.distill(store, settings=settings, run=moescope.Run(out=out))
    images, labels = digits()
    x = torch.from_numpy(to_grey(images[held_out()])).float()[:, None] / 127.5 - 1
    y, rng = torch.from_numpy(labels[held_out()]), torch.Generator().manual_seed(1)
    noise, t = torch.randn(x.shape, generator=rng), torch.rand(len(x), generator=rng)
    mixed = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * noise

    @torch.no_grad()
    def error() -> float:
        return float((denoiser(mixed, t, y) - (noise - x)).square().mean())

    print(f"as it is: {error():.3f}")
    mean = store.y.mean(0)
    with store.replaced(lambda v: mean.expand(*v.shape[:-1], -1)):
        print(f"mean output: {error():.3f}")
    for name, held in result.artifacts.items():
        with store.replaced(held.student):  # type: ignore[attr-defined]
            print(f"{name}: {error():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
