"""`nnunet-deconver export-submission`: a trained model as a container for a challenge."""

import argparse
from pathlib import Path

from nnunet_deconver.cli.evaluation_options import add_trust
from nnunet_deconver.integration.installation import require_nnunetv2
from nnunet_deconver.submission.targets import TARGETS


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `export-submission`."""
    parser = subparsers.add_parser(
        "export-submission",
        help="make a container of a trained model, for a challenge",
        description="Writes a folder with all that a container needs to predict with a trained model on a platform: "
        "Dockerfile and Apptainer definition, exact requirements, inference.py and the model. Models of nnU-Net's own "
        "trainers, of this package's, and of trainers in folders that nnUNet_extTrainer lists.",
        epilog="Targets: " + "; ".join(f"{name} is {target.description}" for name, target in TARGETS.items()) + ".",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="trained model: a folder TRAINER__PLANS__CONFIGURATION, with plans.json, dataset.json and fold_0, ...",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    default = next(iter(TARGETS))
    parser.add_argument("--target", choices=TARGETS, default=default, help=f"where it will run; default: {default}")
    parser.add_argument(
        "--api",
        choices=("exec", "invoke"),
        help="how grand-challenge runs it: once per case, or as a server that has the model in memory; default: invoke "
        "on grand-challenge, else exec",
    )
    parser.add_argument(
        "--cuda",
        metavar="X.Y",
        help="CUDA that torch's wheel is for; default: the newest that the target's drivers are known to run",
    )
    parser.add_argument(
        "--allow-cpu",
        action="store_true",
        help="compute on the CPU where there is a GPU that cannot be used; default: an error",
    )
    parser.add_argument(
        "-f", "--folds", nargs="+", metavar="FOLD", help="0, 1, ... or all; default: every numbered one that is there"
    )
    parser.add_argument(
        "--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="default: checkpoint_final.pth"
    )
    parser.add_argument("--no-mirroring", action="store_true", help="predict once, not once per mirrored image: faster")
    parser.add_argument(
        "--not-on-device", action="store_true", help="keep whole images on the CPU: slower, less GPU memory"
    )
    parser.add_argument(
        "--input-sockets",
        nargs="+",
        action="append",
        default=[],
        metavar="SLUG",
        help="sockets of the model's channels, in their order; for brats, the suffixes of their files; again for each "
        "other interface; default: the image sockets as inputs.json lists them; for brats, by the channels' names",
    )
    parser.add_argument(
        "--output",
        nargs="+",
        metavar="WHAT=SOCKET",
        help="labels=SOCKET and probability:NAME=SOCKET, with NAME a label or region of dataset.json, and SOCKET a "
        "folder of /output/images, or of /output where there are no sockets; default: labels",
    )
    parser.add_argument("--output-socket", metavar="SOCKET", help="the same as --output labels=SOCKET")
    parser.add_argument(
        "--bake-model",
        action="store_true",
        help="put the model into the image; default for grand-challenge: into model.tar.gz, to be uploaded apart",
    )
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports the model and says what comes next."""
    require_nnunetv2()
    from nnunet_deconver.submission import export

    exported = export.export_submission(
        args.model,
        args.out,
        target=args.target,
        api=args.api,
        cuda=args.cuda,
        allow_cpu=args.allow_cpu,
        folds=args.folds,
        checkpoint=args.checkpoint,
        mirroring=not args.no_mirroring,
        everything_on_device=not args.not_on_device,
        input_sockets=args.input_sockets,
        outputs=args.output,
        output_socket=args.output_socket,
        bake_model=args.bake_model,
        trust=args.trust,
    )
    model, settings, image = exported.model, exported.settings, exported.image
    print(f"wrote {args.out}: {model.trainer}, {model.configuration}, fold {' '.join(model.folds)}, for {args.target}")
    print(f"channels: {', '.join(f'{number}: {name}' for number, name in model.dataset['channel_names'].items())}")
    print(f"inputs:   {export.describe_inputs(settings)}")
    print(f"outputs:  {export.describe_outputs(settings)}")
    print(f"torch:    {export.describe_torch(image.torch, image.cuda)}")
    print(f"try it:   {args.out / 'test_run.sh'} INPUT OUTPUT")
    print(f"go on:    {args.out / 'README.md'}")
