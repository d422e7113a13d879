"""`nnunet-deconver list`: the trainers by name."""

import argparse
from itertools import groupby

from nnunet_deconver.cli.nnunet import require_nnunetv2


def trainer_lines(trainers: list[type]) -> list[str]:
    """Describes trainers, a line each, in paragraphs of those that have the same epoch variants.

    Args:
        trainers: trainer classes; variants carry `is_epoch_variant` and derive from their trainer first.
    """
    suffixes = {}
    for trainer in trainers:
        if getattr(trainer, "is_epoch_variant", False):
            base = trainer.__bases__[0]
            suffixes.setdefault(base, []).append(trainer.__name__.removeprefix(base.__name__))
        else:
            suffixes.setdefault(trainer, [])
    width = max((len(trainer.__name__) for trainer in suffixes), default=0)
    lines = []
    # "each" in the last line of a paragraph would be wrong for a neighbour without variants: hence paragraphs.
    for variants, family in groupby(suffixes, key=suffixes.get):
        if lines:
            lines.append("")
        for trainer in family:
            summary = (trainer.__doc__ or "").strip().partition("\n")[0]
            lines.append(f"{trainer.__name__:<{width}}  {summary}".rstrip())
        if variants:
            lines.append(f"    each also with {' '.join(variants)}")
    return lines


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `list`."""
    parser = subparsers.add_parser(
        "list",
        help="list the trainers",
        description="Lists the trainers that nnUNetv2_train -tr takes once nnU-Net finds this package.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Prints the trainers."""
    require_nnunetv2()
    from nnunet_deconver import trainers

    print("\n".join(trainer_lines([getattr(trainers, name) for name in trainers.__all__])))
