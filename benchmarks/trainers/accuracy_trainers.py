"""Trainers of `benchmarks/accuracy.py`: nnU-Net's, Deconver's, and either with things changed.

`Accuracy_deconver+head_norm+ema` is the trainer `deconver` of BASES with two of CHANGES. All train equally long,
without mirroring, from a seed that is the fold's number. nnU-Net finds them in a folder of `nnUNet_extTrainer`.
"""

import math
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nnunet_deconver.layers import DeconverBlock, NonnegativeDeconvolution
from nnunet_deconver.ops import adjoint_filter, same_convolution
from nnunet_deconver.trainers import (
    nnUNetTrainerDeconver_lr1e3,
    nnUNetTrainerDeconver_SGD,
    nnUNetTrainerDTC,
    nnUNetTrainerNeRDc,
    nnUNetTrainerNeRDm,
)

EPOCHS = int(os.environ.get("ACCURACY_EPOCHS", 6))
ITERATIONS = int(os.environ.get("ACCURACY_ITERATIONS", 250))
NORMS = {nn.Conv2d: nn.InstanceNorm2d, nn.Conv3d: nn.InstanceNorm3d}


class _Measured:
    """What all variants share; mixed in before a trainer."""

    network_changes: tuple[Callable[[nn.Module], None], ...] = ()
    longer: float = 1

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = round(EPOCHS * self.longer)
        self.num_iterations_per_epoch = ITERATIONS
        self.num_val_iterations_per_epoch = 20
        torch.manual_seed(int(fold))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy_2d, initial_patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, None

    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        network = super().build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        for change in cls.network_changes:
            change(network)
        return network


class _PerIteration:
    """The rate follows warm-up and cosine within epochs too; warm-up over the first `warmup` iterations."""

    warmup = 50

    def train_step(self, batch):
        if not hasattr(self, "_iteration"):
            self._iteration = self.current_epoch * self.num_iterations_per_epoch
        total = self.num_epochs * self.num_iterations_per_epoch
        done = (self._iteration - self.warmup) / (total - self.warmup)
        factor = (self._iteration + 1) / self.warmup if done < 0 else 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * factor
        self._iteration += 1
        return super().train_step(batch)


class _Averaged:
    """Predicts with an exponential average of the weights."""

    def train_step(self, batch):
        out = super().train_step(batch)
        if not hasattr(self, "_average"):
            self._average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self._average.update_parameters(self.network)
        return out

    def on_train_end(self):
        self.network.load_state_dict(self._average.module.state_dict())
        super().on_train_end()


class _NoDecayOfVectors:
    """Weight decay on matrices and filters alone."""

    def configure_optimizers(self):
        optimizer, scheduler = super().configure_optimizers()
        (group,) = optimizer.param_groups
        vectors = [parameter for parameter in group["params"] if parameter.ndim <= 1]
        group["params"] = [parameter for parameter in group["params"] if parameter.ndim > 1]
        optimizer.add_param_group({"params": vectors, "weight_decay": 0.0})
        return optimizer, scheduler


class _MoreForeground:
    """Two of three patches hold foreground for certain."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.oversample_foreground_percent = 0.66


class _LessForeground:
    """No patch is chosen for its foreground."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.oversample_foreground_percent = 0.0


def _norm(channels: int, network: nn.Module, affine: bool = True) -> nn.Module:
    return NORMS[type(network.encoder.stem)](channels, affine=affine)


def head_norm_plain(network):
    """A norm without parameters before each head."""
    heads = network.decoder.seg_layers
    for i, head in enumerate(heads):
        heads[i] = nn.Sequential(_norm(head.in_channels, network, affine=False), head)


def head_norm_gelu(network):
    """A norm and a nonlinearity before each head, as nnU-Net's blocks end."""
    heads = network.decoder.seg_layers
    for i, head in enumerate(heads):
        heads[i] = nn.Sequential(_norm(head.in_channels, network), nn.LeakyReLU(1e-2), head)


def stage_norm(network):
    """A norm after each stage, before skips, resampling and heads."""
    for stages, channels in (
        (network.encoder.stages, network.encoder.output_channels),
        (network.decoder.stages, network.decoder.features[::-1]),
    ):
        for i, (stage, features) in enumerate(zip(stages, channels, strict=True)):
            stages[i] = nn.Sequential(stage, _norm(features, network))


def blocks(network: nn.Module) -> list[DeconverBlock]:
    return [module for module in network.modules() if isinstance(module, DeconverBlock)]


def affine_norms(network):
    """Affine parameters in every norm of the blocks."""
    for block in blocks(network):
        channels = block.mixer.ndc.channels
        block.norm_mixer, block.norm_mlp = (_norm(channels, network) for _ in range(2))


def group_norms(network, groups=8):
    """Group norms in place of the blocks' instance norms, affine."""
    for block in blocks(network):
        channels = block.mixer.ndc.channels
        block.norm_mixer, block.norm_mlp = (nn.GroupNorm(groups, channels) for _ in range(2))


def layer_norms(network):
    """One group: the mean and variance of all channels together, affine."""
    group_norms(network, 1)


def batch_norms(network):
    """Statistics over the batch, affine."""
    kinds = {nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    for block in blocks(network):
        channels = block.mixer.ndc.channels
        kind = kinds[type(network.encoder.stem)]
        block.norm_mixer, block.norm_mlp = (kind(channels) for _ in range(2))


def zero_branches(network):
    """Residual branches that begin as zero."""
    for block in blocks(network):
        for last in (block.mixer.projection_out, block.mlp[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


class _Bordered(NonnegativeDeconvolution):
    """The update on a border of replicated values, which is cut off again."""

    def forward(self, x: Tensor) -> Tensor:
        border = [2 * (k // 2) for k in self.kernel_size]
        around = [n for b in reversed(border) for n in (b, b)]
        out = super().forward(F.pad(x, around, mode="replicate"))
        return out[(..., *(slice(b, n - b if b else None) for b, n in zip(border, out.shape[2:], strict=True)))]

    def project(self, x, projection):
        return projection(self(x))


class _Renormalised(NonnegativeDeconvolution):
    """The update divided by what it makes of a constant image, which zeros beyond the border alone bend."""

    def forward(self, x: Tensor) -> Tensor:
        filter = torch.relu(self.filter)
        adjoint = adjoint_filter(filter, groups=self.groups)
        ones_x = x.new_ones(1, self.channels, *x.shape[2:])
        ones_source = x.new_ones(1, self.source_channels, *x.shape[2:])
        numerator = same_convolution(ones_x, adjoint, groups=self.groups)
        image = same_convolution(ones_source, filter, groups=self.groups)
        denominator = same_convolution(image, adjoint, groups=self.groups)
        inner = (slice(None), slice(None), *(slice(n // 2, n // 2 + 1) for n in x.shape[2:]))
        quotient = (numerator + 1e-6) / (denominator + 1e-6)
        return super().forward(x) * (quotient[inner] / quotient)

    def project(self, x, projection):
        return projection(self(x))


def border_replicated(network):
    """Replicated borders in the update."""
    for block in blocks(network):
        block.mixer.ndc.__class__ = _Bordered


def border_renormalised(network):
    """Renormalised borders in the update."""
    for block in blocks(network):
        block.mixer.ndc.__class__ = _Renormalised


BASES = {
    "nnunet": nnUNetTrainer,
    "dtc": nnUNetTrainerDTC,
    "nerdm": nnUNetTrainerNeRDm,
    "nerdc": nnUNetTrainerNeRDc,
    "deconver": nnUNetTrainerDeconver_lr1e3,
    "deconver_sgd": nnUNetTrainerDeconver_SGD,
}


class _TwoBlocks:
    """Two blocks a stage."""

    @classmethod
    def architecture(cls, architecture):
        entry = super().architecture(architecture)
        entry["arch_kwargs"] |= {"n_blocks_per_stage": 2, "n_blocks_per_stage_decoder": 2}
        return entry


# A change is a class to mix in, a dict of class attributes, or a function of the network.
CHANGES = {
    "lr1e4": {"learning_rate": 1e-4},
    "lr3e4": {"learning_rate": 3e-4},
    "lr3e3": {"learning_rate": 3e-3},
    "longer": {"longer": 1.5},
    "k5": {"kernel_size": 5},
    "head_norm": {"segmentation_head": {"name": "norm"}},
    "nerdc_heads": {"segmentation_head": {"name": "nerdc"}},
    "two_blocks": _TwoBlocks,
    "iteration_schedule": _PerIteration,
    "ema": _Averaged,
    "no_decay_of_vectors": _NoDecayOfVectors,
    "more_foreground": _MoreForeground,
    "less_foreground": _LessForeground,
    **{
        change.__name__: change
        for change in (
            head_norm_plain,
            head_norm_gelu,
            stage_norm,
            affine_norms,
            group_norms,
            layer_norms,
            batch_norms,
            zero_branches,
            border_replicated,
            border_renormalised,
        )
    },
}


def __getattr__(name: str) -> type:
    base, *changes = name.removeprefix("Accuracy_").split("+")
    if not name.startswith("Accuracy_") or base not in BASES or not set(changes) <= set(CHANGES):
        raise AttributeError(name)
    mixins, attributes, functions = [], {"__module__": __name__}, []
    for change in map(CHANGES.__getitem__, changes):
        if isinstance(change, dict):
            attributes |= change
        elif isinstance(change, type):
            mixins.append(change)
        else:
            functions.append(change)
    return type(name, (_Measured, *mixins, BASES[base]), attributes | {"network_changes": tuple(functions)})
