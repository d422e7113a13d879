"""Parameters and FLOPs of the configurations in Deconver's paper: counted here, by the authors' code, and as printed.

    git clone https://github.com/pashtari/deconver
    python benchmarks/published.py --authors deconver --out benchmarks/results/published

The authors' code needs einops. The documents count this package's networks anew each time they are generated (`count`),
and take from the results what the authors' code has.
"""

import argparse
import math
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from recording import record
from torch import nn

from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.plans.cost import PredictionCost, prediction_cost
from nnunet_deconver.plans.presets import load_preset


@dataclass(frozen=True)
class Configuration:
    """A network of the paper (arXiv 2504.00302, section IV-A).

    Attributes:
        name: what it is called in the documents.
        preset: name of its preset, which has what the paper's tables print of it.
    """

    name: str
    preset: str

    @property
    def published(self) -> dict:
        """As printed, in strings."""
        return load_preset(self.preset).published

    @property
    def channels(self) -> tuple[int, int]:
        """Of the image, and of the output."""
        preset = load_preset(self.preset)
        return preset.input_channels, preset.num_classes

    @property
    def architecture(self) -> dict:
        """Entry as in a plans file."""
        return load_preset(self.preset).architecture

    @property
    def arch_kwargs(self) -> dict:
        """Its arguments of the network."""
        return self.architecture["arch_kwargs"]


CONFIGURATIONS = [
    Configuration("ISLES'22: 3D, 64 features, 4 stages, kernels of 3, ratio 4", "isles22"),
    Configuration("ISLES'22, ratio 2", "isles22-r2"),
    Configuration("ISLES'22, ratio 1", "isles22-r1"),
    Configuration("ISLES'22, 8 groups", "isles22-g8"),
    Configuration("ISLES'22, 1 group", "isles22-g1"),
    Configuration("ISLES'22, kernels of 5", "isles22-k5"),
    Configuration("BraTS'23: 3D, 32 features, 5 stages, kernels of 3", "brats23"),
    Configuration("BraTS'23, kernels of 5", "brats23-k5"),
    Configuration("GlaS, FIVES: 2D, 32 features, 6 stages, kernels of 3", "glas"),
    Configuration("GlaS, FIVES, kernels of 5", "glas-k5"),
]


@cache
def count(configuration: Configuration) -> PredictionCost:
    """What this package's network costs on patches of 64 voxels along each axis; one head, as the paper counts."""
    built = []

    def build() -> nn.Module:
        # The plain path takes any number of groups; the others count the same.
        entry = configuration.architecture
        entry = entry | {"arch_kwargs": entry["arch_kwargs"] | {"backend": "plain"}}
        built.append(build_network(entry, *configuration.channels, deep_supervision=False))
        return built[-1]

    cost = prediction_cost(build, configuration.channels[0], size(configuration))
    return PredictionCost(cost.parameters - lower_heads(built[0]), cost.flops, cost.ndc_flops)


def lower_heads(network: nn.Module) -> int:
    """Parameters of the heads of lower resolutions, which the papers do not have."""
    return sum(p.numel() for head in network.decoder.seg_layers[:-1] for p in head.parameters())


def size(configuration: Configuration) -> list[int]:
    """The patch that is counted; FLOPs per voxel do not depend on it."""
    return [64] * load_preset(configuration.preset).dimension


def kflops(configuration: Configuration) -> tuple[float, float]:
    """K FLOPs per voxel: without the convolutions inside the updates, and with them."""
    cost, voxels = count(configuration), math.prod(size(configuration))
    return (cost.flops - cost.ndc_flops) / voxels / 1e3, cost.flops / voxels / 1e3


def papers_kflops(configuration: Configuration) -> float:
    """K FLOPs per voxel as the paper counts, which does not say how.

    What it prints comes out, in all ten rows, where to those without the convolutions inside the updates are added, in
    each block, 30 + 6 R for each channel of each voxel (norms, activations, quotients), and 2 for each weight of its
    filter, which are counted once for a patch of 64 voxels along each axis.
    """
    kwargs = configuration.arch_kwargs
    features, ratio = kwargs["features_per_stage"], kwargs["source_ratio"]
    voxels, added = math.prod(size(configuration)), 0.0
    stages = range(len(features))
    for stage in (*stages, *stages[:-1]):  # one block in each of the encoder and the decoder
        channels = features[stage]
        stage_voxels = voxels / math.prod(math.prod(stride) for stride in kwargs["strides"][: stage + 1])
        filter_weights = channels * ratio * channels // kwargs.get("ndc_groups", channels)
        filter_weights *= math.prod(kwargs["kernel_sizes"][stage])
        added += (30 + 6 * ratio) * channels * stage_voxels + 2 * filter_weights
    return kflops(configuration)[0] + added / voxels / 1e3


def authors_parameters(configuration: Configuration) -> int:
    """Parameters of the network that the authors' code builds."""
    from deconver import Deconver as TheirDeconver

    kwargs, rank = configuration.arch_kwargs, load_preset(configuration.preset).dimension
    with torch.device("meta"):
        network = TheirDeconver(
            *configuration.channels,
            spatial_dims=rank,
            encoder_depth=(1,) * kwargs["n_stages"],
            encoder_width=tuple(kwargs["features_per_stage"]),
            strides=tuple(stride[0] for stride in kwargs["strides"]),
            decoder_depth=(1,) * (kwargs["n_stages"] - 1),
            norm={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[rank],
            kernel_size=tuple(kwargs["kernel_sizes"][0]),
            groups=kwargs.get("ndc_groups", -1),
            ratio=kwargs["source_ratio"],
        )
    return sum(p.numel() for p in network.parameters())


def main():
    """Reads the command line, counts, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, required=True, help="clone of github.com/pashtari/deconver")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    args = parser.parse_args()
    sys.path.insert(0, str(args.authors.resolve()))
    rows = []
    for configuration in CONFIGURATIONS:
        without, with_updates = kflops(configuration)
        rows.append(
            {
                "configuration": configuration.name,
                "parameters": count(configuration).parameters,
                "authors_parameters": authors_parameters(configuration),
                "printed_parameters_M": configuration.published["parameters_M"],
                "kFLOPs_per_voxel_without_updates": round(without, 1),
                "kFLOPs_per_voxel": round(with_updates, 1),
                "printed_kFLOPs_per_voxel": configuration.published["kflops_per_voxel"],
            }
        )
    git = ["git", "-C", args.authors, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    record(args.out, rows, authors=f"pashtari/deconver {commit}")


if __name__ == "__main__":
    main()
