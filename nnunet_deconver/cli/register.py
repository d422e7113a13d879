"""`nnunet-deconver register` and `unregister`: let the installed nnU-Net find this package's classes, or undo that."""

import argparse

from nnunet_deconver.integration.installation import nnunetv2_folders, require_nnunetv2
from nnunet_deconver.integration.registration import register, unregister


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommands `register` and `unregister`."""
    parser = subparsers.add_parser(
        "register",
        help="make the installed nnU-Net find this package's classes",
        description="Writes two re-export files into the installed nnunetv2, so that nnUNetv2_train -tr, "
        "nnUNetv2_predict -tr and nnUNetv2_plan_experiment -pl find this package's classes without any variable set.",
    )
    parser.set_defaults(run=run)
    parser = subparsers.add_parser(
        "unregister",
        help="undo register",
        description="Removes what register wrote into the installed nnunetv2, and nothing else.",
    )
    parser.set_defaults(run=run_unregister)


def run(args: argparse.Namespace) -> None:
    """Registers with the installed nnunetv2."""
    root = require_nnunetv2()
    written = register(root)
    for path in written:
        print(f"wrote {path}")
    if written:
        print("registered: nnUNetv2_train -tr and nnUNetv2_plan_experiment -pl take what `nnunet-deconver list` shows")
    else:
        print(f"already registered and up to date: nnunetv2 at {root}")


def run_unregister(args: argparse.Namespace) -> None:
    """Unregisters from the installed nnunetv2, of whatever version."""
    removed = [path for root in nnunetv2_folders() for path in unregister(root)]
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print("nothing to remove: not registered")
