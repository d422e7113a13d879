"""What a network costs, stage by stage: parameters, FLOPs, memory of training. Nothing is run, no memory taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver.layers import DeconverBlock, NonnegativeDeconvolution
from nnunet_deconver.networks.components import sizes_per_stage
from nnunet_deconver.ops import assume_device
from nnunet_deconver.plans.memory import TrainingMemory, nnunet_loss, outputs_and_targets, training_memory
from nnunet_deconver.recipes import RECIPES


@dataclass(frozen=True)
class StageCost:
    """One row of a table of costs.

    Attributes:
        name: "encoder 0" is the highest resolution, "decoder 0" likewise, "heads" are the segmentation heads.
        size: spatial size of its features; empty for the heads, which are of all resolutions.
        channels: of its features; the classes for the heads.
        parameters: number of them.
        flops: 2 x multiply-adds of convolutions and matrix products when one patch is predicted.
        ndc_flops: the part of `flops` inside the updates of nonnegative deconvolutions, which the paper's tables omit.
        kept: bytes that a training step keeps for its backward pass, all patches of the batch.
    """

    name: str
    size: tuple[int, ...]
    channels: int
    parameters: int
    flops: int
    ndc_flops: int
    kept: int


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs.

    Attributes:
        stages: a row for each encoder and decoder stage and one for the heads; what belongs to none of them (the loss,
            or parts of a network that is not built as nnU-Net's are) is missing, in the totals it is not.
        patch_size: voxels of the patch.
        batch_size: patches of a training step.
        parameters: number of them, all heads included.
        flops: of predicting one patch, with one head; see `StageCost`.
        ndc_flops: likewise.
        training_flops: of a training step, see `training_flops`.
        training_flops_without_recomputation: likewise, if blocks kept what they compute again in the backward pass.
        memory: of a training step.
    """

    stages: list[StageCost]
    patch_size: tuple[int, ...]
    batch_size: int
    parameters: int
    flops: int
    ndc_flops: int
    training_flops: int
    training_flops_without_recomputation: int
    memory: TrainingMemory


def network_cost(
    build_network: Callable[[bool], nn.Module],
    *,
    input_channels: int,
    num_classes: int,
    regions: bool,
    patch_size: Sequence[int],
    batch_size: int,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = RECIPES["nnunet"].build_optimizer,
) -> NetworkCost:
    """Counts what a network costs.

    Args:
        build_network: constructs the network, with deep supervision or without.
        input_channels: see `training_memory`, as for the others.
        num_classes: output channels.
        regions: whether they are regions with a sigmoid each.
        patch_size: voxels of the patch.
        batch_size: patches of a training step.
        build_optimizer: constructs the optimizer of the network.

    Raises:
        ValueError: if the network rejects the patch.
    """
    memory = training_memory(
        lambda: build_network(True),
        input_channels=input_channels,
        num_classes=num_classes,
        regions=regions,
        patch_size=patch_size,
        batch_size=batch_size,
        build_optimizer=build_optimizer,
        groups=stage_modules,
    )

    def keeping_all() -> nn.Module:
        network = build_network(True)
        for block in recomputing_blocks(network):
            block.recompute = False
        return network

    sizes = {
        "input_channels": input_channels,
        "num_classes": num_classes,
        "regions": regions,
        "patch_size": patch_size,
        "batch_size": batch_size,
    }
    of_step = without = training_flops(lambda: build_network(True), **sizes)
    network, stages, meters, total = _count_flops(lambda: build_network(False), input_channels, patch_size)
    if recomputing_blocks(network):
        without = training_flops(keeping_all, **sizes)
    parts = cast(Any, network)  # if it has stages, it has an encoder and a decoder
    of_stages = sizes_per_stage(patch_size, parts.encoder.strides) if stages else []
    rows = [
        StageCost(
            name=name,
            size=() if (level := stage_level(name)) is None else tuple(int(s) for s in of_stages[level]),
            channels=parts.decoder.num_classes if level is None else parts.encoder.output_channels[level],
            parameters=sum(p.numel() for module in modules for p in module.parameters()),
            flops=meters[name][0].flops,
            ndc_flops=meters[name][1].flops,
            kept=memory.kept_by.get(name, 0),
        )
        for name, modules in stages.items()
    ]
    return NetworkCost(
        stages=rows,
        patch_size=tuple(int(s) for s in patch_size),
        batch_size=batch_size,
        parameters=sum(p.numel() for p in network.parameters()),
        flops=total,
        ndc_flops=sum(row.ndc_flops for row in rows),
        training_flops=of_step,
        training_flops_without_recomputation=without,
        memory=memory,
    )


def recomputing_blocks(network: nn.Module) -> list[DeconverBlock]:
    """The blocks of a network that compute again in the backward pass."""
    return [block for block in network.modules() if isinstance(block, DeconverBlock) and block.recompute]


def training_flops(
    build_network: Callable[[], nn.Module],
    *,
    input_channels: int,
    num_classes: int,
    regions: bool,
    patch_size: Sequence[int],
    batch_size: int,
) -> int:
    """Counts 2 x multiply-adds of convolutions and matrix products in a training step on a GPU.

    Forward, backward, and what is computed again there. Arguments are those of `training_memory`.

    Raises:
        ValueError: if the network rejects the patch.
    """
    with assume_device("cuda"), FakeTensorMode():
        network = build_network().train()
        image = torch.empty(batch_size, input_channels, *patch_size)
        with FlopCounterMode(display=False) as counter:
            outputs, targets = outputs_and_targets(network, image, num_classes if regions else 1)
            nnunet_loss(regions)([output.float() for output in outputs], targets).backward()
    return counter.get_total_flops()


@dataclass(frozen=True)
class PredictionCost:
    """What predicting with a network costs: see `NetworkCost`, of which it is a part that is counted at once."""

    parameters: int
    flops: int
    ndc_flops: int


def prediction_cost(
    build_network: Callable[[], nn.Module], input_channels: int, patch_size: Sequence[int]
) -> PredictionCost:
    """Counts what predicting one patch costs.

    Args:
        build_network: constructs the network, without deep supervision.
        input_channels: of the image.
        patch_size: voxels of the patch.

    Raises:
        ValueError: if the network rejects the patch.
    """
    network, _, meters, total = _count_flops(build_network, input_channels, patch_size)
    parameters = sum(p.numel() for p in network.parameters())
    return PredictionCost(parameters, total, sum(updates.flops for _, updates in meters.values()))


def _count_flops(
    build_network: Callable[[], nn.Module], input_channels: int, patch_size: Sequence[int]
) -> tuple[nn.Module, dict[str, list[nn.Module]], dict[str, tuple["_FlopMeter", "_UpdateMeter"]], int]:
    """Sends a patch through: the network, its stages, per stage what tells FLOPs and those of updates, all FLOPs."""
    # As on a GPU, where every layer is called and every operation has a count.
    with assume_device("cuda"), FakeTensorMode(), torch.no_grad():
        network = build_network().eval()
        stages = stage_modules(network)
        with FlopCounterMode(display=False) as counter:
            meters = {
                name: (_FlopMeter(counter, modules), _UpdateMeter(counter, modules)) for name, modules in stages.items()
            }
            network(torch.empty(1, input_channels, *patch_size))
    return network, stages, meters, counter.get_total_flops()


HEADS = "heads"


def stage_modules(network: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of each stage of a network that is built as nnU-Net's are.

    Args:
        network: with `encoder` and `decoder`, whose children are lists with an entry per stage (of an encoder's list
            that is one short, the first belongs to the second stage), or belong to the highest resolution.

    Returns:
        Modules by "encoder 0" (highest resolution), ..., "decoder 0", and "heads"; empty for another network.
    """
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    if encoder is None or not (hasattr(encoder, "strides") and hasattr(encoder, "output_channels")):
        return {}
    if decoder is None or not hasattr(decoder, "seg_layers"):
        return {}
    n_stages = len(encoder.strides)
    stages: dict[str, list[nn.Module]] = {f"encoder {level}": [] for level in range(n_stages)}
    stages |= {f"decoder {level}": [] for level in reversed(range(n_stages - 1))}
    for child in encoder.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and n_stages - 1 <= len(child) <= n_stages:
            for i, module in enumerate(child):
                stages[f"encoder {i + n_stages - len(child)}"].append(module)
        else:
            stages["encoder 0"].append(child)
    for name, child in decoder.named_children():
        # nnU-Net's decoder holds its encoder too.
        if name != "seg_layers" and child is not encoder:
            for i, module in enumerate(child):
                stages[f"decoder {n_stages - 2 - i}"].append(module)
    return stages | {HEADS: list(decoder.seg_layers)}


def stage_level(name: str) -> int | None:
    """The resolution of a stage of `stage_modules`, 0 being the highest; None for the heads and what is no stage."""
    kind, _, level = name.partition(" ")
    return int(level) if kind in ("encoder", "decoder") else None


class _FlopMeter:
    """Sums the FLOPs between the beginning and the end of modules."""

    def __init__(self, counter: FlopCounterMode, modules: Sequence[nn.Module]) -> None:
        self.flops = 0
        self._counter = counter
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self._add(-1))
            module.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        self.flops += sign * self._counter.get_total_flops()


class _UpdateMeter(_FlopMeter):
    """Sums those of the updates inside modules: of nonnegative deconvolutions without the projection to the source."""

    def __init__(self, counter: FlopCounterMode, modules: Sequence[nn.Module]) -> None:
        layers = [m for module in modules for m in module.modules() if isinstance(m, NonnegativeDeconvolution)]
        super().__init__(counter, layers)
        for layer in layers:
            layer.register_forward_hook(self._leave_out_projection)

    def _leave_out_projection(self, layer: NonnegativeDeconvolution, inputs: Any, source: torch.Tensor) -> None:
        self.flops -= 2 * layer.channels * source.numel()
