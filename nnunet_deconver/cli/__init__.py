"""The `nnunet-deconver` command.

Each subcommand module has `add_parser(subparsers)`, which sets the default `run`: a function of the parsed arguments
that returns the exit code, or None for 0. They import torch and nnU-Net inside functions, so that `--help` and
`trainer-path`, which shells call at start-up, answer at once.
"""

import argparse
import sys

from nnunet_deconver import __version__
from nnunet_deconver.cli import (
    compare,
    demo,
    evaluate,
    export_submission,
    figures,
    listing,
    plan,
    register,
    splits,
    status,
    study,
    summary,
    trainer_path,
    upgrade_checkpoint,
)
from nnunet_deconver.errors import ArgumentError, InputError

SUBCOMMANDS = (
    register,
    status,
    trainer_path,
    listing,
    plan,
    splits,
    summary,
    upgrade_checkpoint,
    evaluate,
    compare,
    figures,
    export_submission,
    study,
    demo,
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what follows the command's name; None for those of this process.

    Returns:
        The exit code: 2 for an error the user can mend, 130 after an interrupt, else the subcommand's own.
    """
    parser = argparse.ArgumentParser(
        prog="nnunet-deconver", description="Deconver, DTC and NeRD for nnU-Net v2: set-up and first steps."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        # A function's argument is named as the option that gave it.
        text = str(error)
        if isinstance(error, ArgumentError):
            text = f"--{error.argument.replace('_', '-')}" + text.removeprefix(error.argument)
        print(f"nnunet-deconver: error: {text}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a name that is too long, a folder that is not ours
        where = f"{error.filename}: " if error.filename else ""
        print(f"nnunet-deconver: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
