"""How accurate networks are on cases that no training saw: many short trainings with nnU-Net's own commands.

    python benchmarks/accuracy.py prepare Dataset004_Hippocampus 3d_fullres --patch 24 32 24 --batch 2 --test 60
    python benchmarks/accuracy.py train Dataset004_Hippocampus 3d_fullres nnunet deconver deconver+head_norm --folds 0 1
    python benchmarks/accuracy.py report Dataset004_Hippocampus 3d_fullres --out benchmarks/results/accuracy_hippocampus
    python benchmarks/accuracy.py table benchmarks/results/accuracy_hippocampus.json

`prepare` wants the dataset planned and preprocessed by nnUNetv2_plan_and_preprocess. Fold n holds out test cases that
are drawn with the seed n, and trains from that seed. `train` runs one training after the other, each until nnU-Net has
predicted the held-out cases; what is done is skipped, what was interrupted goes on, so the same command continues a
killed run. Names of trainers are those of trainers/accuracy_trainers.py, a base and changes joined by "+". `report`
measures all that is done and compares each trainer with one, case by case; `table` prints that for a document.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from recording import record
from scipy import ndimage
from tqdm import tqdm

from nnunet_deconver.metrics.comparison import wilcoxon
from nnunet_deconver.metrics.statistics import bootstrap_means, interval
from nnunet_deconver.metrics.surface import hausdorff_distance, surface_distances
from nnunet_deconver.models.cost import count, of_plans
from nnunet_deconver.models.training_log import read_curves

PLANS = "accuracyPlans"
TRAINERS = Path(__file__).parent / "trainers"
FAR = 4  # voxels from any truth, beyond which a false positive is far


def prepare(args: argparse.Namespace):
    """Writes plans with a small patch, and splits with held-out cases."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / args.dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["plans_name"] = args.plans
    configuration = plans["configurations"][args.configuration]
    arch_kwargs = configuration["architecture"]["arch_kwargs"]
    stages = args.stages or arch_kwargs["n_stages"]
    arch_kwargs["n_stages"] = stages
    for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        arch_kwargs[key] = arch_kwargs[key][:stages]
    arch_kwargs["n_conv_per_stage_decoder"] = arch_kwargs["n_conv_per_stage_decoder"][: stages - 1]
    if args.features:
        arch_kwargs["features_per_stage"] = [args.features * 2**stage for stage in range(stages)]
    configuration["patch_size"] = args.patch or configuration["patch_size"]
    configuration["batch_size"] = args.batch or configuration["batch_size"]
    plans["configurations"] = {args.configuration: configuration}
    (folder / f"{args.plans}.json").write_text(json.dumps(plans, indent=2))

    cases = sorted(path.name.split(".")[0] for path in (folder / "gt_segmentations").iterdir())
    splits = []
    for fold in range(5):
        held_out = sorted(random.Random(fold).sample(cases, args.test))
        splits.append({"train": [case for case in cases if case not in held_out], "val": held_out})
    (folder / "splits_final.json").write_text(json.dumps(splits, indent=2))
    print(f"{folder / args.plans}.json: patch {configuration['patch_size']}, batch {configuration['batch_size']}")


def train(args: argparse.Namespace):
    """Trains what is not trained yet; a line for each."""
    environment = os.environ | {"nnUNet_extTrainer": str(TRAINERS)}
    for fold in args.folds:
        for name in args.trainers:
            folder = _fold(args, f"Accuracy_{name}", fold)
            if (folder / "validation" / "summary.json").is_file():
                continue
            command = [str(Path(sys.executable).with_name("nnUNetv2_train")), args.dataset, args.configuration]
            command += [str(fold), "-p", args.plans, "-tr", f"Accuracy_{name}", "-device", args.device]
            # Without a checkpoint, nnU-Net starts anew.
            command += ["--c"] if folder.is_dir() else []
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}, fold {fold}: failed\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}", flush=True)
                continue
            summary = json.loads((folder / "validation" / "summary.json").read_text())
            dice = ", ".join(f"{values['Dice']:.4f}" for values in summary["mean"].values())
            minutes = (time.perf_counter() - start) / 60
            print(f"{name}, fold {fold}: Dice {dice}; {minutes:.1f} minutes", flush=True)


def report(args: argparse.Namespace):
    """Measures what is done, and compares each trainer with the first on the folds that both have."""
    results = Path(os.environ["nnUNet_results"]) / args.dataset
    suffix = f"__{args.plans}__{args.configuration}"
    found = {}
    for folder in sorted(results.glob(f"Accuracy_*{suffix}/fold_*")):
        if (folder / "validation" / "summary.json").is_file():
            name = folder.parent.name.removeprefix("Accuracy_").removesuffix(suffix)
            found.setdefault(name, {})[int(folder.name.removeprefix("fold_"))] = folder
    names = sorted(found, key=lambda name: (name != args.against, name))
    measured = {
        name: {fold: measure_fold(args, folder) for fold, folder in found[name].items()}
        for name in tqdm(names, unit="trainer")
    }
    rows = []
    for name in names:
        folds = sorted(set(measured[name]) & set(measured[args.against]))
        curves = [read_curves(found[name][fold]) for fold in sorted(measured[name])]
        row = {"trainer": name, "folds": len(measured[name])}
        for metric in next(iter(measured[name].values())):
            values = np.concatenate([measured[name][fold][metric] for fold in measured[name]])
            row[metric] = round(float(np.nanmean(values)), 4)
        for metric in ("dice", "hd95", "far_false_positives"):
            differences = np.concatenate(
                [measured[name][fold][metric] - measured[args.against][fold][metric] for fold in folds]
            )
            low, high = interval(bootstrap_means(differences[:, None]))
            row[f"{metric}_difference"] = round(float(differences.mean()), 4)
            row[f"{metric}_interval"] = f"[{low:.4f}, {high:.4f}]"
            row[f"{metric}_p"] = round(wilcoxon(differences), 5)
            # Cases say nothing of how much another seed would change: the folds, each with a seed of its own, do.
            row[f"{metric}_by_fold"] = " ".join(
                f"{(measured[name][fold][metric] - measured[args.against][fold][metric]).mean():.4f}" for fold in folds
            )
        row |= cost(args, name)
        row["fastest_epoch_s"] = min(seconds for fold in found[name].values() for seconds in epoch_times(fold))
        row["training_loss"] = round(float(np.mean([curve.train_loss[-1] for curve in curves])), 4)
        row["validation_loss"] = round(float(np.mean([curve.val_loss[-1] for curve in curves])), 4)
        rows.append(row)
    plans = json.loads((Path(os.environ["nnUNet_preprocessed"]) / args.dataset / f"{args.plans}.json").read_text())
    configuration = plans["configurations"][args.configuration]
    record(
        args.out,
        rows,
        dataset=args.dataset,
        configuration=args.configuration,
        plan={key: configuration[key] for key in ("patch_size", "batch_size")}
        | {"features": configuration["architecture"]["arch_kwargs"]["features_per_stage"]},
        against=args.against,
        definitions={
            "dice": "mean over classes of nnU-Net's Dice",
            "hd95": "mean over classes, mm; an empty mask counts as the diagonal of the image",
            "far_false_positives": f"voxels of a case, further than {FAR} voxels from any foreground",
            "near_border": "part of these within 4 voxels of the image's border",
            "dice_largest": "Dice of the largest component of each class alone",
        },
    )


def cost(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Parameters, FLOPs and training memory (counted for a GPU in mixed precision) of a trainer's network."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / args.dataset
    os.environ["nnUNet_extTrainer"] = str(TRAINERS)
    files = folder / f"{args.plans}.json", folder / "dataset.json"
    task, (subject,) = of_plans(*files, [f"Accuracy_{name}"], args.configuration)
    counted = count(subject, task)
    return {
        "parameters_M": round(counted.parameters / 1e6, 2),
        "kflops_per_voxel": round(counted.flops / math.prod(counted.patch_size) / 1e3, 1),
        "training_GiB": round(counted.memory.peak / 2**30, 3),
    }


def epoch_times(fold: Path) -> list[float]:
    """Seconds of each epoch, validation patches included."""
    texts = [path.read_text() for path in fold.glob("training_log_*.txt")]
    return [float(seconds) for text in texts for seconds in re.findall(r"Epoch time: ([\d.]+) s", text)]


def table(args: argparse.Namespace):
    """Prints a table in Markdown of what a report wrote."""
    print(markdown(json.loads(args.results.read_text()), args.costs))


def markdown(results: dict, costs: bool = False) -> str:
    """The table of a report, see `table`.

    Args:
        results: content of its JSON file.
        costs: what the networks cost, in place of how accurate they are.
    """
    rows = [_costs(row) if costs else _accuracy(row, results["against"]) for row in results["rows"]]
    lines = [[*rows[0]], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _accuracy(row: dict, against: str) -> dict[str, str]:
    classes = [key.removeprefix("dice_") for key in row if re.fullmatch(r"dice_\d+", key)]

    def by_class(metric: str, digits: int) -> str:
        return " / ".join(f"{row[f'{metric}_{label}']:.{digits}f}" for label in classes)

    return {
        "trainer": f"`{row['trainer']}`",
        "seeds": str(row["folds"]),
        "Dice": by_class("dice", 3),
        "of the largest components": by_class("dice_largest", 3),
        "HD95": by_class("hd95", 2),
        "far false positives": f"{row['far_false_positives']:.0f}",
        f"Dice less that of {against} [95 %], p; by seed": _difference(row, "dice", 4),
        f"HD95 less that of {against} [95 %], p; by seed": _difference(row, "hd95", 2),
        "loss, training / validation": f"{row['training_loss']:.3f} / {row['validation_loss']:.3f}",
    }


def _costs(row: dict) -> dict[str, str]:
    return {
        "trainer": f"`{row['trainer']}`",
        "parameters / M": f"{row['parameters_M']:.2f}",
        "kFLOPs / voxel": f"{row['kflops_per_voxel']:.0f}",
        "training on a GPU / GiB": f"{row['training_GiB']:.3f}",
        "fastest epoch here / s": f"{row['fastest_epoch_s']:.0f}",
    }


def _difference(row: dict, metric: str, digits: int) -> str:
    by_fold = row[f"{metric}_by_fold"].split()
    if not any(map(float, by_fold)):
        return ""
    low, high = row[f"{metric}_interval"].strip("[]").split(", ")
    difference, low, high, *folds = (
        f"{float(number):+.{digits}f}" for number in (row[f"{metric}_difference"], low, high, *by_fold)
    )
    p = row[f"{metric}_p"]
    return f"{difference} [{low}, {high}], {'< 0.0001' if p < 1e-4 else f'{p:.2g}'}; {', '.join(folds)}"


def measure_fold(args: argparse.Namespace, folder: Path) -> dict[str, np.ndarray]:
    """Metrics of the held-out cases of a fold, by name; one value a case."""
    truths = Path(os.environ["nnUNet_preprocessed"]) / args.dataset / "gt_segmentations"
    dataset = json.loads((folder.parent / "dataset.json").read_text())
    classes = [label for label in dataset["labels"].values() if label != 0]
    cases = {}
    for path in sorted((folder / "validation").glob(f"*{dataset['file_ending']}")):
        truth, spacing = _read(truths / path.name)
        prediction, _ = _read(path)
        for metric, value in measure_case(truth, prediction, spacing, classes).items():
            cases.setdefault(metric, []).append(value)
    return {metric: np.array(values) for metric, values in cases.items()}


def measure_case(truth: np.ndarray, prediction: np.ndarray, spacing: tuple, classes: list[int]) -> dict[str, float]:
    """Metrics of a case by name, see `report`."""
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    found = {}
    for label in classes:
        masks = truth == label, prediction == label
        largest = _largest(masks[1])
        found[f"dice_{label}"] = _dice(*masks)
        found[f"dice_largest_{label}"] = _dice(masks[0], largest)
        distance = hausdorff_distance(surface_distances(*masks, spacing), 95)
        found[f"hd95_{label}"] = min(distance, diagonal)
    for metric in ("dice", "dice_largest", "hd95"):
        found[metric] = float(np.mean([found[f"{metric}_{label}"] for label in classes]))
    far = (prediction > 0) & (ndimage.distance_transform_edt(truth == 0) > FAR)
    inner = np.zeros_like(far)
    inner[tuple(slice(4, -4) for _ in far.shape)] = True
    found["far_false_positives"] = float(far.sum())
    found["near_border"] = float((far & ~inner).sum() / far.sum()) if far.any() else float("nan")
    return found


def _read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def _dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    return 2 * float((truth & prediction).sum()) / max(int(truth.sum() + prediction.sum()), 1)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return labels == 1 + np.argmax(np.bincount(labels.flat)[1:]) if count else mask


def _fold(args: argparse.Namespace, trainer: str, fold: int) -> Path:
    model = f"{trainer}__{args.plans}__{args.configuration}"
    return Path(os.environ["nnUNet_results"]) / args.dataset / model / f"fold_{fold}"


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("table", help=table.__doc__)
    command.add_argument("results", type=Path, help="JSON file of a report")
    command.add_argument("--costs", action="store_true", help="what the networks cost, not how accurate they are")
    command.set_defaults(run=table)
    for run in (prepare, train, report):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.add_argument("dataset")
        command.add_argument("configuration")
        command.add_argument("--plans", default=PLANS, help=f"name of the plans; default: {PLANS}")
        command.set_defaults(run=run)
        if run is prepare:
            command.add_argument("--patch", type=int, nargs="+", help="default: the plan's")
            command.add_argument("--batch", type=int, help="default: the plan's")
            command.add_argument("--stages", type=int, help="default: the plan's")
            command.add_argument(
                "--features", type=int, help="of the first stage, doubled in each; default: the plan's"
            )
            command.add_argument("--test", type=int, required=True, help="cases to hold out")
        elif run is train:
            command.add_argument("trainers", nargs="+")
            command.add_argument("--folds", type=int, nargs="+", default=[0])
            command.add_argument("--device", default="cpu")
        else:
            command.add_argument("--out", type=Path, required=True)
            command.add_argument("--against", default="nnunet", metavar="TRAINER", help="default: nnunet")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
