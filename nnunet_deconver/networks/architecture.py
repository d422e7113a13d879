"""From the architecture entry of an nnU-Net plan to the one of a network here.

Architecture entries are what stands under `architecture` in a configuration of a plans file: the network's dotted
name and its keyword arguments, of which some are dotted names themselves.
"""

import math
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS

PACKAGE = "nnunet_deconver.networks"
DECONVER = f"{PACKAGE}.Deconver"
MEDNEXT = f"{PACKAGE}.MedNeXt"
ADAPTED = f"{PACKAGE}.Adapted"

# What a network's topology consists of; the rest describes the blocks of the network the plan was made for.
_TOPOLOGY = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")
NNUNETS = ("PlainConvUNet", "ResidualEncoderUNet")
_AXES = (UPSAMPLINGS, SEGMENTATION_HEADS)


def deconver_architecture(architecture: dict, *, kernel_size: int | None = None) -> dict:
    """The architecture entry of a Deconver with the topology of `architecture`, see `with_topology_of`."""
    return with_topology_of(architecture, DECONVER, kernel_size=kernel_size)


def with_topology_of(architecture: dict, network: str, *, kernel_size: int | None = None) -> dict:
    """The architecture entry of a network with the topology of `architecture`.

    Stages, strides, kernels, features and axes are carried over from PlainConvUNet and ResidualEncoderUNet; an entry
    that already names the network is kept as it is.

    Args:
        architecture: entry with `network_class_name`, `arch_kwargs` and `_kw_requires_import`.
        network: dotted name of a class here that takes nnU-Net's topology arguments.
        kernel_size: replaces every kernel extent greater than 1, which leaves anisotropic kernels flat; None keeps
            the plan's. Ignored for an entry that already names the network.

    Raises:
        ValueError: if the entry names a network that cannot be translated, or lacks part of the topology.
    """
    name = architecture["network_class_name"]
    if name == network:
        return architecture
    short = network.rpartition(".")[-1]
    if name.rpartition(".")[-1] not in NNUNETS:
        raise ValueError(
            f"the plans name the network {name}, whose topology cannot be carried over to {short}; use plans of "
            f"{' or '.join(NNUNETS)} (nnUNetv2_plan_experiment), or plans that name {network}"
        )
    arch_kwargs = architecture["arch_kwargs"]
    missing = [key for key in _TOPOLOGY if key not in arch_kwargs]
    if missing:
        raise ValueError(f"the plans' arch_kwargs of {name} lack {', '.join(missing)}, which {short} needs")
    topology = {key: arch_kwargs[key] for key in _TOPOLOGY}
    topology |= {axis.argument: arch_kwargs[axis.argument] for axis in _AXES if axis.argument in arch_kwargs}
    if kernel_size is not None:
        topology["kernel_sizes"] = [_replaced_kernel(kernel, kernel_size) for kernel in topology["kernel_sizes"]]
    return {"network_class_name": network, "arch_kwargs": topology, "_kw_requires_import": ["conv_op"]}


@dataclass(frozen=True)
class Adaptation:
    """A network of another package, as `Adapted` builds it, for 2D and 3D alike.

    Attributes:
        network: dotted name of its class.
        network_kwargs: its arguments, besides the channels and the following two.
        strides: from each output to the next, the same along all axes, see `Adapted`; a patch must be divisible by
            their product.
        rank_argument: what it calls the number of spatial axes.
        patch_argument: what it calls the size of the patch; None where it takes any that is divisible.
    """

    network: str
    network_kwargs: Mapping[str, Any]
    strides: Sequence[int]
    rank_argument: str = "spatial_dims"
    patch_argument: str | None = None

    def architecture(self, architecture: dict) -> dict:
        """The architecture entry of the network, given the one nnU-Net's planner makes.

        An entry that already names the network with these arguments is kept as it is.

        Raises:
            ValueError: if the entry names another network than nnU-Net's, or this with other arguments.
        """
        if self.is_of(architecture):
            return architecture
        name, arch_kwargs = architecture["network_class_name"], architecture["arch_kwargs"]
        if name.rpartition(".")[-1] not in NNUNETS or "conv_op" not in arch_kwargs:
            found = arch_kwargs.get("network", name)
            found = "it with other network_kwargs" if found == self.network else f"the network {found}"
            raise ValueError(
                f"{self.network} cannot be put in the place of what the plans name, {found}; use plans of "
                f"{' or '.join(NNUNETS)} (nnUNetv2_plan_experiment), or make them with `nnunet-deconver plan`"
            )
        rank = int(arch_kwargs["conv_op"][-2])
        axes = {axis.argument: arch_kwargs[axis.argument] for axis in _AXES if axis.argument in arch_kwargs}
        return {
            "network_class_name": ADAPTED,
            "arch_kwargs": {
                "network": self.network,
                "network_kwargs": {self.rank_argument: rank, **self.network_kwargs},
                "strides": [[stride] * rank for stride in self.strides],
                **axes,
            },
            "_kw_requires_import": [],
        }

    def is_of(self, architecture: dict) -> bool:
        """Whether an architecture entry is of this network, with these arguments."""
        given = architecture["arch_kwargs"].get("network_kwargs")
        return (
            architecture["network_class_name"] == ADAPTED
            and architecture["arch_kwargs"].get("network") == self.network
            and isinstance(given, dict)
            and all(given.get(key) == value for key, value in self.network_kwargs.items())
        )

    def for_patch(self, architecture: dict, patch_size: Sequence[int]) -> dict:
        """An architecture entry of the network for another patch size.

        Raises:
            ValueError: if it is built for one patch size, which cannot be this.
        """
        if self.patch_argument is None:
            return architecture
        fitting = self.patch_size(patch_size)
        if fitting != list(patch_size):
            shapes = [" x ".join(map(str, size)) for size in (patch_size, fitting)]
            raise ValueError(
                f"{self.network} does not take patches of {shapes[0]}; it takes {shapes[1]}: change patch_size in the "
                "plans, or make plans for it with `nnunet-deconver plan`"
            )
        arch_kwargs = architecture["arch_kwargs"]
        size = {self.patch_argument: [int(extent) for extent in patch_size]}
        return architecture | {"arch_kwargs": arch_kwargs | {"network_kwargs": arch_kwargs["network_kwargs"] | size}}

    def patch_size(self, patch_size: Sequence[int]) -> list[int]:
        """The smallest patch that the network takes which is no smaller than another."""
        by = math.prod(self.strides)
        return [math.ceil(extent / by) * by for extent in patch_size]


def plain_architecture(architecture: dict) -> dict:
    """The architecture entry of nnU-Net's default network on the stages of `architecture`: what to compare with.

    Args:
        architecture: entry of any network with nnU-Net's topology arguments.

    Raises:
        ValueError: if the entry lacks part of the topology.
    """
    arch_kwargs = architecture["arch_kwargs"]
    missing = [key for key in _TOPOLOGY if key not in arch_kwargs]
    if missing:
        raise ValueError(f"the arch_kwargs of {architecture['network_class_name']} lack {', '.join(missing)}")
    n_stages, conv_op = arch_kwargs["n_stages"], arch_kwargs["conv_op"]
    return {
        "network_class_name": f"{PACKAGE}.PlainConvUNet",
        "arch_kwargs": {key: arch_kwargs[key] for key in _TOPOLOGY}
        | {
            "kernel_sizes": _at_most_3(arch_kwargs["kernel_sizes"]),
            "n_conv_per_stage": [2] * n_stages,
            "n_conv_per_stage_decoder": [2] * (n_stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{conv_op[-2:]}",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }


def with_larger_kernels(architecture: dict, kernel_size: int) -> dict:
    """The architecture entry of the same network with larger kernels.

    Args:
        architecture: entry of a network with nnU-Net's topology arguments, or of one of another package that takes
            `kernel_size`.
        kernel_size: replaces every extent greater than 1, which leaves anisotropic kernels flat; odd.

    Raises:
        ValueError: if the network has no kernels to choose, or they are not smaller.
    """
    arch_kwargs = architecture["arch_kwargs"]
    others = arch_kwargs.get("network_kwargs") or {}
    if "kernel_sizes" in arch_kwargs:
        kernels = arch_kwargs["kernel_sizes"]
        larger = arch_kwargs | {"kernel_sizes": _replaced_kernel(kernels, kernel_size)}
    elif isinstance(others.get("kernel_size"), int):
        kernels = others["kernel_size"]
        larger = arch_kwargs | {"network_kwargs": others | {"kernel_size": kernel_size}}
    else:
        name = arch_kwargs.get("network", architecture["network_class_name"])
        raise ValueError(f"the network {name} of the plans has no kernel_sizes, nor a kernel_size, to enlarge")
    largest = max(_extents(kernels))
    if kernel_size % 2 == 0 or kernel_size <= largest:
        raise ValueError(f"must be an odd number greater than {largest}, the largest kernel of the plans")
    return architecture | {"arch_kwargs": larger}


def interpolates_kernels(architecture: dict) -> bool:
    """Whether larger kernels of a network are interpolated, as MedNeXt's UpKern does; those of others are padded."""
    return architecture["network_class_name"] == MEDNEXT or "kernel_sizes" not in architecture["arch_kwargs"]


def _extents(kernels: int | Sequence) -> list[int]:
    return [kernels] if isinstance(kernels, int) else [extent for kernel in kernels for extent in _extents(kernel)]


def _at_most_3(kernels: int | Sequence) -> int | list:
    return min(kernels, 3) if isinstance(kernels, int) else [_at_most_3(kernel) for kernel in kernels]


def _replaced_kernel(kernel: int | Sequence, kernel_size: int) -> int | list:
    if isinstance(kernel, int):
        return kernel if kernel == 1 else kernel_size
    return [_replaced_kernel(k, kernel_size) for k in kernel]


def build_network(architecture: dict, input_channels: int, num_classes: int, *, deep_supervision: bool) -> nn.Module:
    """Builds and initialises the network an architecture entry names.

    Args:
        architecture: entry with `network_class_name`, `arch_kwargs` and `_kw_requires_import`.
        input_channels: channels of the image.
        num_classes: output channels.
        deep_supervision: whether the network returns the logits of all resolutions.

    Raises:
        ValueError: if a dotted name cannot be imported, or the network rejects its arguments.
    """
    arch_kwargs = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        if arch_kwargs.get(key) is not None:
            arch_kwargs[key] = _locate(arch_kwargs[key])
    name = architecture["network_class_name"]
    try:
        network = _locate(name)(
            input_channels=input_channels,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
            **arch_kwargs,
        )
    except (AssertionError, TypeError) as error:  # nnU-Net's networks assert; a keyword may be unknown
        raise ValueError(f"{name} cannot be built from its arch_kwargs: {error}") from error
    network.apply(network.initialize)
    return network


def _locate(name: str) -> Any:
    located = pydoc.locate(name)
    if located is None:
        raise ValueError(f"the plans name {name}, which cannot be imported here")
    return located
