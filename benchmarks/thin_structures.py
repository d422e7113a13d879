"""Does an upsampling help where structures are thinner than a voxel of the level it upsamples from?

    python benchmarks/thin_structures.py --out benchmarks/results/thin_structures_cpu

Curved lines one to two pixels wide in noise, segmented by a small 2D network whose finest features are at half the
resolution, so that the last upsampling has to place them. Each upsampling trains with the same images from the same
seeds; several seeds, paired. Reports Dice on unseen images, whatever comes out.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from recording import record
from torch import nn
from tqdm import tqdm

from nnunet_deconver.layers.components import UPSAMPLINGS

ENTRIES = {
    "transposed": {"name": "transposed"},
    "dtc": {"name": "dtc"},
    "dtc, receptive field 4": {"name": "dtc", "receptive_field": 4},
    "linear": {"name": "linear"},
    "dysample": {"name": "dysample"},
}
SIZE = 64


def images(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with curved lines, and their masks; (n, 1, SIZE, SIZE)."""
    y, x = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    masks = np.zeros((n, SIZE, SIZE), bool)
    for mask in masks:
        for _ in range(4):
            angle, phase, bend = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(2, 6)
            u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
            middle = rng.uniform(-SIZE / 3, SIZE / 3) + (SIZE / 2) * (np.cos(angle) - np.sin(angle))
            mask |= np.abs(v - middle - bend * np.sin(u / rng.uniform(6, 12) + phase)) < rng.uniform(0.5, 1.0)
    noisy = masks + 0.6 * rng.standard_normal(masks.shape)
    return torch.tensor(noisy[:, None], dtype=torch.float32), torch.tensor(masks[:, None], dtype=torch.float32)


class HalfResolutionNetwork(nn.Module):
    """Strided convolution, convolutions at half the resolution, the upsampling, a pixelwise classifier."""

    def __init__(self, upsampling: dict, width: int = 16):
        super().__init__()
        layers = [nn.Conv2d(1, width, 3, stride=2, padding=1), nn.InstanceNorm2d(width), nn.LeakyReLU()]
        for dilation in (1, 2, 1):
            layers += [nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation), nn.InstanceNorm2d(width)]
            layers += [nn.LeakyReLU()]
        self.features = nn.Sequential(*layers)
        if UPSAMPLINGS.is_default(upsampling):
            self.upsampling = nn.ConvTranspose2d(width, width, 2, 2)
        else:
            self.upsampling = UPSAMPLINGS.build(upsampling, width, width, (2, 2))
        self.classifier = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        """Maps (B, 1, H, W) to logits of the same shape."""
        return self.classifier(F.leaky_relu(self.upsampling(self.features(x))))


def dice_of(upsampling: dict, seed: int, steps: int) -> float:
    """Trains and returns the Dice on unseen images."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = HalfResolutionNetwork(upsampling)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        x, y = images(rng, 8)
        loss = F.binary_cross_entropy_with_logits(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x, y = images(np.random.default_rng(10_000 + seed), 64)
    with torch.no_grad():
        found = network(x) > 0
    return (2 * (found * y).sum() / (found.sum() + y.sum())).item()


def main():
    """Reads the command line, trains, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    runs = [(name, seed) for seed in range(args.seeds) for name in ENTRIES]
    dice = {name: [] for name in ENTRIES}
    for name, seed in tqdm(runs, unit="training"):
        dice[name].append(dice_of(ENTRIES[name], seed, args.steps))
    base = np.array(dice["transposed"])
    rows = []
    for name, values in dice.items():
        gain = np.array(values) - base
        rows.append(
            {
                "upsampling": name,
                "dice_mean": round(float(np.mean(values)), 4),
                "dice_std": round(float(np.std(values, ddof=1)), 4),
                "gain_over_transposed": round(float(gain.mean()), 4),
                "seeds_better": int((gain > 0).sum()),
                "seeds": args.seeds,
            }
        )
    record(args.out, rows, steps=args.steps, dice=dice)


if __name__ == "__main__":
    main()
