"""`nnunet-deconver upgrade-checkpoint`: a trained nnU-Net with another upsampling or head, and the same function."""

import argparse
import copy
import json
import math
import shutil
from pathlib import Path

from nnunet_deconver.cli.axis_options import head_entry, upsampling_entry
from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.nnunet import require_nnunetv2


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `upgrade-checkpoint`."""
    parser = subparsers.add_parser(
        "upgrade-checkpoint",
        help="give a trained nnU-Net another upsampling or segmentation head",
        description="Reads a checkpoint of nnU-Net's PlainConvUNet or ResidualEncoderUNet and writes a model folder "
        "whose network has the chosen upsampling and head and computes the same: to predict with "
        "(nnUNetv2_predict_from_modelfolder), and to fine-tune from (nnUNetv2_train -pretrained_weights).",
    )
    parser.add_argument("checkpoint", type=Path, metavar="STOCK.pth", help="of nnU-Net, such as checkpoint_final.pth")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="model folder to write")
    parser.add_argument("--upsampling", metavar="NAME", help="dtc")
    parser.add_argument("--receptive-field", metavar="R", help="of dtc: a positive number or inf; default: 2")
    parser.add_argument("--head", metavar="NAME", help="nerdm or nerdc")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Upgrades the checkpoint."""
    require_nnunetv2()
    upsampling, head = read_axes(args.upsampling, args.receptive_field, args.head)
    if args.out.exists():
        raise CommandError(f"--out {args.out}: exists already; name a folder that does not")
    checkpoint = read_checkpoint(args.checkpoint)
    upgraded, plans = upgrade(checkpoint, upsampling, head)
    path = write_model(upgraded, plans, args.checkpoint, args.out)
    print(f"wrote {path}")
    print(
        f"predict:   nnUNetv2_predict_from_modelfolder -m {args.out} -f {upgraded['init_args']['fold']} -i ... -o ..."
    )
    print(f"fine-tune: nnUNetv2_train ... -pretrained_weights {path}")


def read_axes(upsampling: str | None, receptive_field: str | None, head: str | None) -> tuple[dict | None, dict | None]:
    """The entries of the axes that options name.

    Raises:
        CommandError: if nothing is chosen, or something that does not exist or cannot start as what it replaces.
    """
    entry = upsampling_entry(upsampling, receptive_field)
    head = head_entry(head)
    if entry is None and head is None:
        raise CommandError("nothing to upgrade to: add --upsampling dtc, --head nerdm or --head nerdc")
    if entry is not None and entry["name"] != "dtc":
        # The others replace the transposed convolution, whose function they do not contain.
        raise CommandError(f"--upsampling {upsampling}: only dtc can start as the transposed convolution it replaces")
    if head is not None:
        # The classifier to take over has a bias, which NeRDm by itself has not.
        head["bias"] = True
    return entry, head


def read_checkpoint(path: Path) -> dict:
    """A checkpoint of nnU-Net.

    Raises:
        CommandError: if the file is missing or none.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise CommandError(f"{path}: no such file; it must be a checkpoint of nnU-Net") from None
    except Exception as error:
        raise CommandError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    missing = {"network_weights", "init_args", "trainer_name"} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise CommandError(f"{path}: is not a checkpoint of nnU-Net 2, it has no {', '.join(sorted(missing))}")
    return checkpoint


def upgrade(checkpoint: dict, upsampling: dict | None, head: dict | None) -> tuple[dict, dict]:
    """The checkpoint of the network with the axes that computes what the checkpoint's network does.

    Args:
        checkpoint: of nnU-Net's PlainConvUNet or ResidualEncoderUNet.
        upsampling: entry of the axis; None keeps the transposed convolutions.
        head: entry of the axis; None keeps the 1x1 convolutions.

    Returns:
        The new checkpoint, and the plans that build its network.

    Raises:
        CommandError: if the checkpoint is not one of these networks, or has axes already.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_deconver.networks.plans import build_network, with_axes

    arguments = checkpoint["init_args"]
    plans = {key: value for key, value in arguments["plans"].items() if key != "continue_training"}
    manager = PlansManager(copy.deepcopy(plans))
    configuration = manager.get_configuration(arguments["configuration"])
    architecture = configuration.configuration["architecture"]
    dataset = arguments["dataset_json"]
    channels = determine_num_input_channels(manager, configuration, dataset)
    classes = manager.get_label_manager(dataset).num_segmentation_heads
    try:
        stock = build_network(architecture, channels, classes, deep_supervision=False)
        stock.load_state_dict(checkpoint["network_weights"])
    except Exception as error:
        raise CommandError(
            f"the checkpoint's weights do not fit the network of its plans, {architecture['network_class_name']}; "
            f"trainers that build networks of their own cannot be upgraded ({str(error).splitlines()[0]})"
        ) from error
    try:
        chosen = with_axes(architecture, upsampling=upsampling, segmentation_head=head)
        network = build_network(chosen, channels, classes, deep_supervision=False)
    except ValueError as error:
        raise CommandError(str(error)) from error
    transfer(stock, network)

    check_same_function(stock, network, channels, configuration.patch_size)

    own = dict(plans["configurations"][arguments["configuration"]])
    own["architecture"] = chosen
    plans = plans | {"configurations": plans["configurations"] | {arguments["configuration"]: own}}
    kept = {key: value for key, value in checkpoint.items() if key not in ("optimizer_state", "grad_scaler_state")}
    return kept | {"network_weights": network.state_dict(), "init_args": arguments | {"plans": plans}}, plans


def check_same_function(stock, network, channels: int, patch_size: list[int]):
    """Raises CommandError unless two networks compute the same on an image of about half the patch's extent."""
    import torch

    strides = [math.prod(axis) for axis in zip(*stock.encoder.strides, strict=True)]
    # At least two voxels per axis at the lowest resolution, which instance normalisation needs.
    size = [max(2, extent // 2 // stride) * stride for extent, stride in zip(patch_size, strides, strict=True)]
    with torch.no_grad():
        image = torch.randn(1, channels, *size)
        expected, found = stock.eval()(image), network.eval()(image)
    if not torch.allclose(expected, found, rtol=1e-4, atol=1e-4 * expected.abs().max().item()):
        raise CommandError(
            f"the upgraded network differs by {(expected - found).abs().max():.3g} from the checkpoint's; please report"
        )


def transfer(stock, network):
    """Copies the parameters of a network into the same one with axes, and starts the axes as what they replace.

    Args:
        stock: PlainConvUNet or ResidualEncoderUNet of nnU-Net.
        network: the same with axes.
    """
    from torch import nn

    weights = network.state_dict()
    own = stock.state_dict().items()
    weights.update({key: value for key, value in own if key in weights and weights[key].shape == value.shape})
    network.load_state_dict(weights)
    for old, new in zip(stock.decoder.transpconvs, network.decoder.transpconvs, strict=True):
        if type(new) is not type(old):
            new.base.load_state_dict(old.state_dict(), strict=old.bias is not None)
            if old.bias is None:
                nn.init.zeros_(new.base.bias)
            # The sampled features come in from nothing.
            nn.init.zeros_(new.projection.weight)
            nn.init.zeros_(new.projection.bias)
    for old, new in zip(stock.decoder.seg_layers, network.decoder.seg_layers, strict=True):
        if type(new) is not type(old):
            new.load_plain_head(old.weight, old.bias)


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
    import torch

    temporary = out.with_name(f".{out.name}.unfinished")
    try:
        fold = temporary / f"fold_{checkpoint['init_args']['fold']}"
        fold.mkdir(parents=True)
        (temporary / "plans.json").write_text(json.dumps(plans, indent=2))
        (temporary / "dataset.json").write_text(json.dumps(checkpoint["init_args"]["dataset_json"], indent=2))
        fingerprint = source.resolve().parents[1] / "dataset_fingerprint.json"
        if fingerprint.is_file():
            shutil.copyfile(fingerprint, temporary / fingerprint.name)
        torch.save(checkpoint, fold / "checkpoint_final.pth")
        temporary.rename(out)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot write there ({error}); choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / fold.name / "checkpoint_final.pth"
