"""Trains on real datasets on a CPU: what is fixed before, and what is reported after nnU-Net's own commands.

    python benchmarks/real_data.py prepare DATASET --patch 24 32 24 --batch 2 --hold-out 20
    nnUNetv2_train ... -p nnUNetPlansCPU ...
    python benchmarks/real_data.py report DATASET --trainers A B --out benchmarks/results/NAME

See docs/real-data.md for the whole sequence.
"""

import argparse
import json
import os
import re
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from recording import record

import nnunet_deconver

PLANS = "nnUNetPlansCPU"


def prepare(args: argparse.Namespace):
    """Writes plans with a small patch and batch, and a split whose only fold holds out every n-th case."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / args.dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    configuration = plans["configurations"][args.configuration]
    configuration["patch_size"] = args.patch
    configuration["batch_size"] = args.batch
    if args.stages:
        arch_kwargs = configuration["architecture"]["arch_kwargs"]
        arch_kwargs["n_stages"] = args.stages
        for key, length in (
            ("features_per_stage", args.stages),
            ("kernel_sizes", args.stages),
            ("strides", args.stages),
            ("n_conv_per_stage", args.stages),
            ("n_conv_per_stage_decoder", args.stages - 1),
        ):
            arch_kwargs[key] = arch_kwargs[key][:length]
    plans["configurations"] = {args.configuration: configuration}
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=2))

    cases = sorted(path.name.split(".")[0] for path in (folder / "gt_segmentations").iterdir())
    step = len(cases) / args.hold_out
    held_out = [cases[int(i * step)] for i in range(args.hold_out)]
    split = {"train": [case for case in cases if case not in held_out], "val": held_out}
    (folder / "splits_final.json").write_text(json.dumps([split], indent=2))
    print(f"{folder / PLANS}.json: patch {args.patch}, batch {args.batch}; hold-out of {len(held_out)} cases")


def report(args: argparse.Namespace):
    """Collects validation Dice, losses and times of fold 0 of each trainer into CSV, JSON and a picture."""
    results = Path(os.environ["nnUNet_results"]) / args.dataset
    rows, curves = [], {}
    for trainer in args.trainers:
        fold = results / f"{trainer}__{PLANS}__{args.configuration}" / "fold_0"
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        losses, seconds = _read_log(fold)
        curves[trainer] = losses
        rows.append(
            {
                "trainer": trainer,
                "epochs": len(losses["train_loss"]),
                "training_minutes": round(sum(seconds) / 60, 1),
                "first_train_loss": losses["train_loss"][0],
                "last_train_loss": losses["train_loss"][-1],
                **{f"dice_{label}": round(values["Dice"], 4) for label, values in summary["mean"].items()},
                "dice_mean_foreground": round(summary["foreground_mean"]["Dice"], 4),
                "cases": len(summary["metric_per_case"]),
            }
        )
    out = Path(args.out)
    plans = json.loads((Path(os.environ["nnUNet_preprocessed"]) / args.dataset / f"{PLANS}.json").read_text())
    configuration = plans["configurations"][args.configuration]
    record(
        out,
        rows,
        dataset=args.dataset,
        configuration=args.configuration,
        plans={key: configuration[key] for key in ("patch_size", "batch_size", "spacing")},
        nnunet_deconver=nnunet_deconver.__version__,
        curves=curves,
    )
    _plot(curves, args.dataset, out.with_suffix(".png"))


def _read_log(fold: Path) -> tuple[dict[str, list], list[float]]:
    text = "".join(path.read_text() for path in sorted(fold.glob("training_log_*.txt")))
    losses = {
        key: [float(value) for value in re.findall(rf"{key} (-?[\d.]+)", text)] for key in ("train_loss", "val_loss")
    }
    losses["pseudo_dice"] = [
        float(np.mean([float(v) for v in re.findall(r"(?:float\d+\()?(-?[\d.]+|nan)\)?(?:,|$)", line)]))
        for line in re.findall(r"Pseudo dice \[(.*)\]", text)
    ]
    return losses, [float(value) for value in re.findall(r"Epoch time: ([\d.]+) s", text)]


def _plot(curves: dict, title: str, path: Path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for trainer, values in curves.items():
        epochs = range(1, len(values["train_loss"]) + 1)
        (line,) = left.plot(epochs, values["train_loss"], label=f"{trainer}, training")
        left.plot(epochs, values["val_loss"], "--", color=line.get_color(), label=f"{trainer}, hold-out patches")
        right.plot(epochs, values["pseudo_dice"], color=line.get_color(), label=trainer)
    left.set(xlabel="epoch", ylabel="loss", title=title)
    right.set(xlabel="epoch", ylabel="mean Dice on hold-out patches", ylim=(0, 1))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("prepare")
    first.add_argument("dataset")
    first.add_argument("--configuration", default="3d_fullres")
    first.add_argument("--patch", type=int, nargs="+", required=True)
    first.add_argument("--batch", type=int, default=2)
    first.add_argument("--stages", type=int)
    first.add_argument("--hold-out", type=int, required=True)
    first.set_defaults(run=prepare)
    second = commands.add_parser("report")
    second.add_argument("dataset")
    second.add_argument("--configuration", default="3d_fullres")
    second.add_argument("--trainers", nargs="+", required=True)
    second.add_argument("--out", required=True)
    second.set_defaults(run=report)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
