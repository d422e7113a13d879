"""`nnunet-deconver trainer-path`: the folder for nnU-Net's variable nnUNet_extTrainer."""

import argparse
import os
from pathlib import Path

import nnunet_deconver

VARIABLE = "nnUNet_extTrainer"


def shim_folder() -> Path:
    """The folder whose one module re-exports this package's trainers.

    nnU-Net imports every module of such a folder by its bare name and forgets it again. The folder of the trainers
    themselves would not do: checkpoints and worker processes need classes that can be imported.
    """
    return Path(nnunet_deconver.__file__).resolve().parent / "shim"


def external_folders() -> list[Path]:
    """The folders listed in nnUNet_extTrainer, as nnU-Net reads it."""
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(folder) for folder in listed if folder.strip()]


def export_line() -> str:
    """The shell line with which nnU-Net finds the trainers unregistered; folders listed already are kept."""
    kept = f"${VARIABLE}{os.pathsep}" if external_folders() else ""
    return f"export {VARIABLE}={kept}$(nnunet-deconver trainer-path)"


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `trainer-path`."""
    parser = subparsers.add_parser(
        "trainer-path",
        help="print the folder to set nnUNet_extTrainer to",
        description="Prints the folder to set nnUNet_extTrainer to where nnunetv2 cannot be written: "
        "export nnUNet_extTrainer=$(nnunet-deconver trainer-path)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Prints the folder and nothing else: shells capture it."""
    print(shim_folder())
