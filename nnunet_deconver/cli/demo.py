"""`nnunet-deconver demo`: from data to a segmented image with nnU-Net's own commands, in one go."""

import argparse
from pathlib import Path

from nnunet_deconver.demo import TRAINER
from nnunet_deconver.demo.output_folder import INTERMEDIATE
from nnunet_deconver.integration.installation import require_nnunetv2


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="train, predict and show the result, in minutes on a CPU",
        description="Makes a small synthetic dataset, or takes yours; runs nnU-Net's commands on it with a trainer of "
        "this package; measures and draws the result on cases that were held out.",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="FOLDER",
        help="a raw dataset of nnU-Net (DatasetXXX_NAME), which is only read; default: a synthetic one",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="number of cases of --dataset to measure with instead of training; default: a fifth, 20 at most",
    )
    parser.add_argument("--trainer", default=TRAINER, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda if there is one")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: ./%(default)s"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write into --out even if it holds other things than a former demo"
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the intermediate folders ({', '.join(INTERMEDIATE)})"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs the demo."""
    require_nnunetv2()
    from nnunet_deconver.demo.run import run_demo

    run_demo(
        args.out,
        dataset=args.dataset,
        held_out=args.held_out,
        trainer=args.trainer,
        device=args.device,
        overwrite=args.overwrite,
        keep=args.keep,
    )
