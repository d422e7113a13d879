"""`nnunet-deconver trainer-path`: the folder for nnU-Net's variable nnUNet_extTrainer."""

import argparse

from nnunet_deconver.integration.trainers import shim_folder


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `trainer-path`."""
    parser = subparsers.add_parser(
        "trainer-path",
        help="print the folder to set nnUNet_extTrainer to",
        description="Prints the folder to set nnUNet_extTrainer to where nnunetv2 cannot be written: "
        "export nnUNet_extTrainer=$(nnunet-deconver trainer-path)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the folder and nothing else: shells capture it."""
    print(shim_folder())
