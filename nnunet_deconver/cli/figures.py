"""`nnunet-deconver figures`: cases as papers show them, and what DTC and NeRD have learned."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunet_deconver.cli.evaluation_options import add_arguments, report_evaluated
from nnunet_deconver.cli.tables import report_not_drawn, table
from nnunet_deconver.integration.installation import require_nnunetv2

# As nnunet_deconver.figures.cases has them, which imports numpy; a test compares.
PLANES = ("axial", "coronal", "sagittal")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `figures`."""
    parser = subparsers.add_parser(
        "figures",
        help="draw the best, the median and the worst case, and what DTC and NeRD learned",
        description="Draws image, truth and each model's true positives (blue), false positives (green) and false "
        "negatives (red), with Dice in the corner, in the slice with most errors. Of a model folder whose network has "
        "DTC upsampling or a NeRD head, also where its last upsampling samples, or what its head makes of the position "
        "in the patch. All as PNG and SVG. Exits with 1 if something could not be drawn, after all else was.",
    )
    add_arguments(parser, "one or more")
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="default: best, median and worst in the first model's Dice, mean over classes",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="of the cases' images; default: beside the references, what was predicted from, or in nnUNet_raw",
    )
    parser.add_argument("--class", dest="of", metavar="NAME", help="show one class or region; default: all in one")
    parser.add_argument("--channel", type=int, metavar="N", help="of the images to show; default: 0, or RGB in color")
    parser.add_argument(
        "--far",
        type=float,
        metavar="MM",
        help="show false positives further than that from any foreground of the truth in a color of their own, and "
        "their number; default: the smallest distance the first model was evaluated with (evaluate --far), if any",
    )
    parser.add_argument("--plane", choices=PLANES, help="of 3D images; default: that of their slices, or axial")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws, prints what was drawn; returns 1 if something could not be, else 0."""
    require_nnunetv2()
    from nnunet_deconver.figures.cases import draw_models

    drawn = draw_models(
        args.models,
        args.out,
        names=args.names,
        cases=args.cases,
        images=args.images,
        of=args.of,
        channel=args.channel,
        plane=args.plane,
        far=args.far,
        trust=args.trust,
    )
    report_evaluated(drawn.evaluations, args.out)
    for name, problem in drawn.not_built.items():
        print(f"{name}: its network cannot be built here, so what it learned is not drawn: {problem}")
    if drawn.cases:
        print(render(drawn.cases))
    if drawn.paths:
        print(f"wrote {', '.join(map(str, drawn.paths))}")
    return report_not_drawn(drawn.problems)


def render(cases: Sequence) -> str:
    """The table for the terminal: a line per case, the Dice of each model."""
    return table(
        [
            {"case": case.title.replace("\n", ": ")}
            | {
                model: "-" if prediction.labels is None else f"{prediction.dice:.4f}"
                for model, prediction in case.predictions.items()
            }
            for case in cases
        ]
    )
