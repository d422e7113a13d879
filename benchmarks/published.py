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

from nnunet_deconver.networks import Deconver
from nnunet_deconver.plans.cost import PredictionCost, prediction_cost


@dataclass(frozen=True)
class Configuration:
    """A network of the paper (arXiv 2504.00302, section IV-A), and what its tables print of it.

    Attributes:
        name: what it is called in the documents.
        channels: of the image, and of the output.
        spatial_dims: 2 or 3.
        width: channels of the first stage.
        stages: number of them.
        table: of the paper.
        parameters_M: as printed there.
        kflops: likewise, per voxel or pixel.
        kernel_size: of the deconvolutions.
        source_ratio: channels of the source per channel.
        groups: of the deconvolutions; None for one per channel.
    """

    name: str
    channels: tuple[int, int]
    spatial_dims: int
    width: int
    stages: int
    table: str
    parameters_M: float
    kflops: float
    kernel_size: int = 3
    source_ratio: int = 4
    groups: int | None = None

    @property
    def features(self) -> list[int]:
        """Channels of each stage."""
        return [min(self.width * 2**stage, 512) for stage in range(self.stages)]

    @property
    def strides(self) -> list[int]:
        """Strides of each stage."""
        return [1] + [2] * (self.stages - 1)


ISLES, BRATS, GLAS = ((2, 1), 3, 64, 4), ((4, 3), 3, 32, 5), ((3, 1), 2, 32, 6)
CONFIGURATIONS = [
    Configuration("ISLES'22: 3D, 64 features, 4 stages, kernels of 3, ratio 4", *ISLES, "I", 10.5, 607.0),
    Configuration("ISLES'22, ratio 2", *ISLES, "IV", 8.7, 486.2, source_ratio=2),
    Configuration("ISLES'22, ratio 1", *ISLES, "IV", 7.8, 425.8, source_ratio=1),
    Configuration("ISLES'22, 8 groups", *ISLES, "V", 16.18, 607.1, groups=8),
    Configuration("ISLES'22, 1 group", *ISLES, "V", 57.21, 607.4, groups=1),
    Configuration("ISLES'22, kernels of 5", *ISLES, "I", 11.0, 607.0, kernel_size=5),
    Configuration("BraTS'23: 3D, 32 features, 5 stages, kernels of 3", *BRATS, "II", 10.6, 167.5),
    Configuration("BraTS'23, kernels of 5", *BRATS, "II", 11.0, 167.5, kernel_size=5),
    Configuration("GlaS, FIVES: 2D, 32 features, 6 stages, kernels of 3", *GLAS, "III", 20.6, 422.8),
    Configuration("GlaS, FIVES, kernels of 5", *GLAS, "III", 20.8, 422.8, kernel_size=5),
]


@cache
def count(configuration: Configuration) -> PredictionCost:
    """What this package's network costs on patches of 64 voxels along each axis; one head, as the paper counts."""
    built = []

    def build() -> Deconver:
        inputs, outputs = configuration.channels
        network = Deconver(
            inputs,
            configuration.stages,
            configuration.features,
            {2: nn.Conv2d, 3: nn.Conv3d}[configuration.spatial_dims],
            configuration.kernel_size,
            configuration.strides,
            outputs,
            source_ratio=configuration.source_ratio,
            ndc_groups=configuration.groups,
            backend="plain",  # takes any number of groups; the others count the same
        )
        built.append(network)
        return network

    cost = prediction_cost(build, configuration.channels[0], size(configuration))
    return PredictionCost(cost.parameters - lower_heads(built[0]), cost.flops, cost.ndc_flops)


def lower_heads(network: nn.Module) -> int:
    """Parameters of the heads of lower resolutions, which the papers do not have."""
    return sum(p.numel() for head in network.decoder.seg_layers[:-1] for p in head.parameters())


def size(configuration: Configuration) -> list[int]:
    """The patch that is counted; FLOPs per voxel do not depend on it."""
    return [64] * configuration.spatial_dims


def kflops(configuration: Configuration) -> tuple[float, float]:
    """K FLOPs per voxel: without the convolutions inside the updates, and with them."""
    cost, voxels = count(configuration), math.prod(size(configuration))
    return (cost.flops - cost.ndc_flops) / voxels / 1e3, cost.flops / voxels / 1e3


def authors_parameters(configuration: Configuration) -> int:
    """Parameters of the network that the authors' code builds."""
    from deconver import Deconver as TheirDeconver

    with torch.device("meta"):
        network = TheirDeconver(
            *configuration.channels,
            spatial_dims=configuration.spatial_dims,
            encoder_depth=(1,) * configuration.stages,
            encoder_width=tuple(configuration.features),
            strides=tuple(configuration.strides),
            decoder_depth=(1,) * (configuration.stages - 1),
            norm={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[configuration.spatial_dims],
            kernel_size=(configuration.kernel_size,) * configuration.spatial_dims,
            groups=configuration.groups or -1,
            ratio=configuration.source_ratio,
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
                "printed_parameters_M": configuration.parameters_M,
                "kFLOPs_per_voxel_without_updates": round(without, 1),
                "kFLOPs_per_voxel": round(with_updates, 1),
                "printed_kFLOPs_per_voxel": configuration.kflops,
            }
        )
    git = ["git", "-C", args.authors, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    record(args.out, rows, authors=f"pashtari/deconver {commit}")


if __name__ == "__main__":
    main()
