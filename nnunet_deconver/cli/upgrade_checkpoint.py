"""`nnunet-deconver upgrade-checkpoint`: a trained network with another upsampling or head, or larger kernels."""

import argparse
from pathlib import Path

from nnunet_deconver.cli.component_options import head_entry, upsampling_entry
from nnunet_deconver.cli.evaluation_options import add_trust
from nnunet_deconver.integration.installation import require_nnunetv2


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `upgrade-checkpoint`."""
    parser = subparsers.add_parser(
        "upgrade-checkpoint",
        help="give a trained network another upsampling or segmentation head, or larger kernels",
        description="Reads a checkpoint of PlainConvUNet, ResidualEncoderUNet, Deconver, MedNeXt or a network of "
        "another package and writes a model folder whose network has the chosen upsampling, head and kernels and "
        "computes the same: to predict with (nnUNetv2_predict_from_modelfolder), and to fine-tune from (nnUNetv2_train "
        "-pretrained_weights). Only larger kernels of MedNeXt compute something else, as its authors have it.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="STOCK.pth", help="such as checkpoint_final.pth")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="model folder to write")
    parser.add_argument("--upsampling", metavar="NAME", help="dtc")
    parser.add_argument("--receptive-field", metavar="R", help="of dtc: a positive number or inf; default: 2")
    parser.add_argument("--head", metavar="NAME", help="nerdm or nerdc")
    parser.add_argument(
        "--kernel", type=int, metavar="K", help="replaces kernel extents greater than 1; an odd number such as 5"
    )
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Upgrades the checkpoint."""
    require_nnunetv2()
    from nnunet_deconver.models.upgrade import upgrade_checkpoint

    upsampling, head = upsampling_entry(args.upsampling, args.receptive_field), head_entry(args.head)
    path = upgrade_checkpoint(
        args.checkpoint, args.out, upsampling=upsampling, head=head, kernel=args.kernel, trust=args.trust
    )
    fold = path.parent.name.removeprefix("fold_")
    print(f"wrote {path}")
    print(f"predict:   nnUNetv2_predict_from_modelfolder -m {args.out} -f {fold} -i ... -o ...")
    print(f"fine-tune: nnUNetv2_train ... -pretrained_weights {path}")
