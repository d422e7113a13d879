"""A trained network with another upsampling or head, or larger kernels, and the same function."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_deconver import trainers
from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.files import made_whole
from nnunet_deconver.integration.plans import check_plans
from nnunet_deconver.layers.common import Convolution, StartsAsPlain, TransposedConvolution, as_convolution
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.layers.larger_kernels import enlarge_kernels
from nnunet_deconver.models.checkpoint import for_prediction, read_checkpoint, save_checkpoint
from nnunet_deconver.models.planned import channels_and_labels, plan_of
from nnunet_deconver.networks.architecture import build_network, interpolates_kernels, with_larger_kernels
from nnunet_deconver.networks.backbones import recipe_trainer_name, with_components
from nnunet_deconver.trainers.options import without_options


def upgrade_checkpoint(
    source: Path,
    out: Path,
    *,
    upsampling: dict | None = None,
    head: dict | None = None,
    kernel: int | None = None,
    trust: bool = False,
) -> Path:
    """Gives a trained network another upsampling or head, or larger kernels, such that it computes the same.

    Args:
        source: checkpoint of PlainConvUNet, ResidualEncoderUNet, Deconver, MedNeXt or `Adapted`, in its model folder.
        out: model folder to make.
        upsampling: entry of the axis, {"name": "dtc", ...}; None keeps the transposed convolutions.
        head: entry of the axis; None keeps the 1x1 convolutions.
        kernel: replaces every kernel extent greater than 1; None keeps them. MedNeXt's kernels are interpolated, which
            changes what it computes; in `Adapted`, it is the `kernel_size` of MONAI's.
        trust: whether to unpickle the checkpoint and to import what its plans name, see `networks.trust`.

    Returns:
        The checkpoint written: to predict with, and to fine-tune from.

    Raises:
        InputError: if the choice cannot start as what it replaces, the checkpoint is not one of these networks, or
            `out` exists or cannot be written.
    """
    check_choice(upsampling, head, kernel)
    if out.exists():
        raise ArgumentError("out", out, "exists already; name a folder that does not")
    upsampling = None if upsampling is None else UPSAMPLINGS.start_entry(upsampling)
    head = None if head is None else SEGMENTATION_HEADS.start_entry(head)
    checkpoint = read_checkpoint(source, trust)
    upgraded, plans = upgrade(checkpoint, upsampling, head, kernel, f"{source}: init_args", trust)
    return write_model(upgraded, plans, source, out)


def check_choice(upsampling: dict | None, head: dict | None, kernel: int | None = None) -> None:
    """Raises InputError if nothing is chosen, or something that cannot start as what it replaces."""
    if upsampling is None and head is None and kernel is None:
        raise InputError("nothing to upgrade to: add --upsampling dtc, --head nerdm, --head nerdc or --kernel 5")
    for argument, components, entry in (("upsampling", UPSAMPLINGS, upsampling), ("head", SEGMENTATION_HEADS, head)):
        if entry is None:
            continue
        try:
            components.check_can_start(entry)
        except ValueError as error:
            raise ArgumentError(argument, entry["name"], str(error)) from error


def upgrade(
    checkpoint: dict,
    upsampling: dict | None,
    head: dict | None,
    kernel: int | None = None,
    where: str = "the checkpoint",
    trust: bool = False,
) -> tuple[dict, dict]:
    """The checkpoint of the network with the axes that computes what the checkpoint's network does.

    Args:
        checkpoint: of one of the networks that `upgrade_checkpoint` takes.
        upsampling: entry of the axis; None keeps the transposed convolutions.
        head: entry of the axis; None keeps the 1x1 convolutions.
        kernel: see `upgrade_checkpoint`.
        where: it is from, for messages.
        trust: see `upgrade_checkpoint`.

    Returns:
        The new checkpoint, and the plans that build its network.

    Raises:
        InputError: if the checkpoint is not one of these networks, or has axes already.
    """
    arguments = checkpoint["init_args"]
    plans = {key: value for key, value in arguments["plans"].items() if key != "continue_training"}
    check_plans(plans, where, "upgrade a checkpoint as nnU-Net's training wrote it")
    manager, configuration = plan_of(plans, arguments["configuration"], where, trust=trust)
    trainer = checkpoint["trainer_name"]
    architecture = _built_by(trainer, configuration)
    dataset = arguments["dataset_json"]
    channels, labels = channels_and_labels(manager, configuration, dataset, where)
    classes = labels.num_segmentation_heads
    try:
        network = build_network(architecture, channels, classes, deep_supervision=False)
        network.load_state_dict(checkpoint["network_weights"])
    except Exception as error:
        raise InputError(
            f"the checkpoint's weights do not fit the network of its plans, {architecture['network_class_name']}; "
            f"trainers of others that build networks of their own cannot be upgraded ({str(error).splitlines()[0]})"
        ) from error
    if upsampling is not None or head is not None:
        stock = network
        try:
            architecture = with_components(architecture, upsampling=upsampling, segmentation_head=head)
            network = build_network(architecture, channels, classes, deep_supervision=False)
        except ValueError as error:
            raise InputError(str(error)) from error
        transfer(stock, network)
        check_same_function(stock, network, channels, configuration.patch_size)
    if kernel is not None:
        small = network
        interpolate = interpolates_kernels(architecture)
        try:
            architecture = with_larger_kernels(architecture, kernel)
            network = build_network(architecture, channels, classes, deep_supervision=False)
            network.load_state_dict(enlarge_kernels(small.state_dict(), network, interpolate=interpolate))
        except ValueError as error:
            raise ArgumentError("kernel", kernel, str(error)) from error
        if not interpolate:
            check_same_function(small, network, channels, configuration.patch_size)

    own = dict(plans["configurations"][arguments["configuration"]])
    own["architecture"] = architecture
    plans = plans | {"configurations": plans["configurations"] | {arguments["configuration"]: own}}
    return for_prediction(checkpoint) | {
        "network_weights": network.state_dict(),
        "trainer_name": _trainer_of(trainer, architecture),
        "init_args": arguments | {"plans": plans},
    }, plans


def _built_by(trainer: str, configuration: ConfigurationManager) -> dict:
    """The architecture entry that a trainer builds of a configuration; another trainer than ours builds the plan's.

    Raises:
        InputError: if the plans do not fit the trainer.
    """
    own = without_options(trainer)
    if own not in trainers.__all__:
        return configuration.configuration["architecture"]
    try:
        return getattr(trainers, own).planned_architecture(configuration)
    except ValueError as error:
        raise InputError(f"{trainer}: {error}") from error


def _trainer_of(trainer: str, architecture: dict) -> str:
    """The trainer of an upgraded model: the one it had, unless that builds another network."""
    own = without_options(trainer)
    if own not in trainers.__all__:
        return trainer
    try:
        kept = getattr(trainers, own).architecture(architecture) == architecture
    except ValueError:  # a trainer of MedNeXt with kernels of 3 takes no others
        kept = False
    return trainer if kept else recipe_trainer_name(architecture) or "nnUNetTrainer"


def check_same_function(stock: nn.Module, network: nn.Module, channels: int, patch_size: list[int]) -> None:
    """Raises InputError unless two networks compute the same on an image, of half the patch's extent if they can."""
    size = patch_size
    if hasattr(stock, "encoder"):
        strides = [math.prod(axis) for axis in zip(*cast(Any, stock).encoder.strides, strict=True)]
        # At least two voxels per axis at the lowest resolution, which instance normalisation needs.
        size = [max(2, extent // 2 // stride) * stride for extent, stride in zip(patch_size, strides, strict=True)]
    with torch.no_grad():
        image = torch.randn(1, channels, *size)
        expected, found = stock.eval()(image), network.eval()(image)
    if not torch.allclose(expected, found, rtol=1e-4, atol=1e-4 * expected.abs().max().item()):
        raise InputError(
            f"the upgraded network differs by {(expected - found).abs().max():.3g} from the checkpoint's; please report"
        )


def transfer(stock: nn.Module, network: nn.Module) -> None:
    """Copies the parameters of a network into the same one with axes, and starts the axes as what they replace.

    Args:
        stock: any network.
        network: the same with axes.

    Raises:
        InputError: if one replaces what is no plain layer.
    """
    weights = network.state_dict()
    own = stock.state_dict().items()
    weights.update({key: value for key, value in own if key in weights and weights[key].shape == value.shape})
    network.load_state_dict(weights)
    replaced = dict(network.named_modules())
    for name, old in stock.named_modules():
        new = replaced.get(name)
        if type(new) is not type(old) and isinstance(new, StartsAsPlain):  # as `check_choice` has seen to
            if not isinstance(old, Convolution | TransposedConvolution):
                raise InputError(
                    f"{name} of {type(stock).__name__} is a {type(old).__name__}; an upsampling can start only as a "
                    "plain transposed convolution: leave it out, or plan the network with it and train that"
                )
            new.start_as(as_convolution(old))


def write_model(checkpoint: dict, plans: dict, source: Path, out: Path) -> Path:
    """Writes a model folder, or nothing.

    Args:
        checkpoint: to be the model's only one.
        plans: that build its network.
        source: the stock checkpoint, whose model folder has the files that go along.
        out: folder to make.

    Returns:
        Path of the checkpoint written.
    """
    fold = f"fold_{checkpoint['init_args']['fold']}"
    try:
        with made_whole(out) as folder:
            (folder / fold).mkdir()
            (folder / "plans.json").write_text(json.dumps(plans, indent=2))
            (folder / "dataset.json").write_text(json.dumps(checkpoint["init_args"]["dataset_json"], indent=2))
            fingerprint = source.resolve().parents[1] / "dataset_fingerprint.json"
            if fingerprint.is_file():
                shutil.copyfile(fingerprint, folder / fingerprint.name)
            save_checkpoint(checkpoint, folder / fold / "checkpoint_final.pth")
    except (OSError, RuntimeError) as error:  # torch's writer has an error of its own
        raise ArgumentError("out", out, f"cannot write there ({error}); choose another folder") from error
    return out / fold / "checkpoint_final.pth"
