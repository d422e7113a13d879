"""Do public tools agree on a distance between two segmentations, and does this package agree with them?

    pip install monai surface-distance medpy git+https://github.com/gasperpodobnik/MeshMetrics.git
    git clone https://github.com/rachitsaluja/BraTS-2023-Metrics
    python benchmarks/metric_agreement.py --brats BraTS-2023-Metrics --out benchmarks/results/metric_agreement

Two tables. `pairs`: a few made-up pairs of masks, measured by every tool that is installed. `agreement`: the largest
difference, over random masks of two and three axes in random spacings, between a metric of this package and the same
one of a tool whose definition it shares; where definitions differ on purpose, the difference says by how much.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from recording import record
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from nnunet_deconver.metrics.lesions import BRATS_RULES, brats_metrics
from nnunet_deconver.metrics.surface import (
    average_surface_distances,
    hausdorff_distance,
    normalized_surface_distance,
    surface_distances,
)

TOLERANCE = 2.0
METRICS = ("hd", "hd95", "assd", "nsd")
# Of a tool's module, the distribution whose version counts.
DISTRIBUTIONS = {
    "surface_distance": "surface-distance",
    "monai": "monai",
    "medpy": "MedPy",
    "MeshMetrics": "MeshMetrics",
}


def ours(surface: str) -> Callable:
    def measure(reference, prediction, spacing):
        distances = surface_distances(reference, prediction, spacing, surface)
        return {
            "hd": hausdorff_distance(distances),
            "hd95": hausdorff_distance(distances, 95),
            "assd": average_surface_distances(distances)["assd"],
            "nsd": normalized_surface_distance(distances, TOLERANCE),
        }

    return measure


def with_surface_distance(reference, prediction, spacing):
    import surface_distance as tool

    found = tool.compute_surface_distances(reference, prediction, spacing)
    weights = [found["surfel_areas_gt"], found["surfel_areas_pred"]]
    averages = tool.compute_average_surface_distance(found)
    return {
        "hd": tool.compute_robust_hausdorff(found, 100),
        "hd95": tool.compute_robust_hausdorff(found, 95),
        "assd": np.average(averages, weights=[each.sum() for each in weights]),
        "nsd": tool.compute_surface_dice_at_tolerance(found, TOLERANCE),
    }


def with_monai(reference, prediction, spacing):
    from monai import metrics as tool

    masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    return {
        "hd": tool.compute_hausdorff_distance(*masks, **options).item(),
        "hd95": tool.compute_hausdorff_distance(*masks, percentile=95, **options).item(),
        "assd": tool.compute_average_surface_distance(*masks, symmetric=True, **options).item(),
        "nsd": tool.compute_surface_dice(*masks, class_thresholds=[TOLERANCE], **options).item(),
    }


def with_medpy(reference, prediction, spacing):
    from medpy.metric import binary as tool

    masks = (prediction, reference)
    return {name: getattr(tool, name)(*masks, voxelspacing=spacing) for name in ("hd", "hd95", "assd")}


def with_simpleitk(reference, prediction, spacing):
    images = []
    for mask in (reference, prediction):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        images.append(image)
    tool = sitk.HausdorffDistanceImageFilter()
    tool.Execute(*images)
    return {"hd": tool.GetHausdorffDistance()}


def with_meshmetrics(reference, prediction, spacing):
    from MeshMetrics import DistanceMetrics

    tool = DistanceMetrics(verbose=False)
    tool.set_input(reference, prediction, spacing=spacing)
    return {"hd": tool.hd(), "hd95": tool.hd(percentile=95), "assd": tool.assd(), "nsd": tool.nsd(tau=TOLERANCE)}


TOOLS = {
    "this package, area": ours("area"),
    "surface-distance": with_surface_distance,
    "MeshMetrics": with_meshmetrics,
    "this package, voxels": ours("voxels"),
    "MONAI": with_monai,
    "MedPy": with_medpy,
    "SimpleITK": with_simpleitk,
}
MODULES = {
    "surface-distance": "surface_distance",
    "MeshMetrics": "MeshMetrics",
    "MONAI": "monai",
    "MedPy": "medpy",
}


def ball(shape, spacing, centre, radius):
    axes = [np.arange(length) * size for length, size in zip(shape, spacing, strict=True)]
    grids = np.meshgrid(*axes, indexing="ij")
    return sum((grid - at) ** 2 for grid, at in zip(grids, centre, strict=True)) <= radius**2


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    """Names to reference, prediction and spacing in mm."""
    fine, slices = (1.0, 1.0, 1.0), (6.0, 0.8, 0.8)
    result = {}
    for name, shape, spacing in (("1 mm voxels", (64, 64, 64), fine), ("6 mm slices", (11, 80, 80), slices)):
        reference = ball(shape, spacing, (30, 32, 32), 18)
        result[f"ball 3 mm too large, {name}"] = reference, ball(shape, spacing, (30, 32, 32), 21), spacing
        # One more slice than the reference has: half of the far surface lies in it.
        shifted = ball(shape, spacing, (36, 32, 32), 18)
        result[f"ball 6 mm beside, {name}"] = reference, shifted, spacing
        speck = reference | ball(shape, spacing, (54, 56, 56), 4.5)
        result[f"ball and a false speck, {name}"] = reference, speck, spacing
    plate = np.zeros((11, 80, 80), bool)
    plate[5, 10:70, 10:70] = True
    lower = plate.copy()
    lower[6, 10:30, 10:30] = True
    result["plate with a step, 6 mm slices"] = plate, lower, slices
    cut = ball((11, 80, 80), slices, (0, 32, 32), 18)
    result["half ball at the border, 6 mm slices"] = cut, ball((11, 80, 80), slices, (0, 36, 32), 18), slices
    flat = (0.5, 0.5)
    result["discs, 2D"] = ball((80, 80), flat, (20, 20), 10), ball((80, 80), flat, (20, 23), 10), flat
    return result


def blobs(rng: np.random.Generator, rank: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two random masks that have much in common, and a random spacing."""
    shape = rng.integers(12, 28 if rank == 3 else 80, rank)
    noise = gaussian_filter(rng.normal(size=shape), 2)
    other = noise + 0.4 * gaussian_filter(rng.normal(size=shape), 2)
    return noise > noise.std(), other > noise.std(), tuple(float(size) for size in rng.uniform(0.5, 4, rank).round(2))


def compare_tools(installed: dict[str, Callable]) -> list[dict]:
    rows = []
    for name, (reference, prediction, spacing) in pairs().items():
        for tool, measure in installed.items():
            found = measure(reference, prediction, spacing)
            rows.append({"pair": name, "tool": tool} | {metric: _rounded(found.get(metric)) for metric in METRICS})
    return rows


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(float(value), 3)


def agreement(installed: dict[str, Callable], number: int) -> list[dict]:
    """The largest differences over random masks."""
    comparisons = {
        "surface-distance": ("this package, area", METRICS),
        "MONAI": ("this package, voxels", METRICS),
        "MedPy": ("this package, voxels", ("hd", "hd95", "assd")),
        "MeshMetrics": ("this package, area", METRICS),
    }
    largest = {}
    rng = np.random.default_rng(0)
    for index in tqdm(range(number), desc="random masks"):
        reference, prediction, spacing = blobs(rng, rank=2 + index % 2)
        found = {tool: measure(reference, prediction, spacing) for tool, measure in installed.items()}
        if reference.ndim == 2:
            found.pop("MeshMetrics", None)  # says 0 of any two masks of two axes
        for tool, (mine, metrics) in comparisons.items():
            for metric in metrics if tool in found else ():
                key = (metric, mine, tool)
                largest[key] = max(largest.get(key, 0), abs(found[tool][metric] - found[mine][metric]))
    return [
        {"metric": metric, "this package": mine.split(", ")[1], "tool": tool, "largest difference": f"{value:.2g}"}
        for (metric, mine, tool), value in largest.items()
    ]


def brats_agreement(clone: Path, number: int) -> list[dict]:
    """The same for the organisers' scores of lesions, whose means over lesions (by pandas 1) are formed here."""
    import nibabel

    np.Inf = np.inf  # the organisers' code is of numpy 1
    # It has a surface_distance of its own, which takes other types.
    for name in [name for name in sys.modules if name.split(".")[0] == "surface_distance"]:
        del sys.modules[name]
    sys.path.insert(0, str(clone))
    tool = importlib.import_module("metrics")
    rng = np.random.default_rng(1)
    largest, lesions = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(number), desc="random lesions"):
            shape = rng.integers(24, 40, 3)
            masks = []
            for threshold in (2.2, 2.0):
                noise = gaussian_filter(rng.normal(size=shape), 1.5)
                masks.append(noise > threshold * noise.std())
            masks[1] |= masks[0] & (rng.random(shape) < 0.7)
            paths = []
            for name, mask in zip(("reference", "prediction"), masks, strict=True):
                paths.append(str(Path(folder) / f"{name}.nii.gz"))
                nibabel.save(nibabel.Nifti1Image(3 * mask.astype(np.uint8), np.eye(4)), paths[-1])
            for challenge, rule in BRATS_RULES.items():
                found = brats_metrics(*masks, (1.0, 1.0, 1.0), rule)
                _, _, false, _, scores, *_ = tool.get_LesionWiseScores(paths[1], paths[0], "WT", rule.dilation)
                counted = [(matched, dice, hd) for matched, _, volume, dice, hd in scores if volume > rule.volume]
                scored = len(counted) + len(false)
                lesions += scored
                distances = [374 if np.isinf(hd) else hd for _, _, hd in counted] + [374] * len(false)
                theirs = {
                    "brats_dice": sum(dice for _, dice, _ in counted) / scored if scored else 1,
                    "brats_hd95": sum(distances) / scored if scored else 0,
                    "brats_found": sum(len(matched) > 0 for matched, _, _ in counted),
                    "brats_missed": sum(len(matched) == 0 for matched, _, _ in counted),
                    "brats_false": len(false),
                }
                for metric, value in theirs.items():
                    key = (metric, challenge)
                    largest[key] = max(largest.get(key, 0), abs(found[metric] - value))
    print(f"{lesions} lesions and false positives")
    return [
        {
            "metric": metric,
            "this package": challenge,
            "tool": "BraTS-2023-Metrics",
            "largest difference": f"{value:.2g}",
        }
        for (metric, challenge), value in largest.items()
    ]


def markdown(rows: list[dict], metric: str) -> str:
    """The table for docs/evaluation.md: pairs below, tools beside each other."""
    tools = list(dict.fromkeys(row["tool"] for row in rows if row[metric] != ""))
    values = {(row["pair"], row["tool"]): row[metric] for row in rows}
    lines = [f"| {metric} | {' | '.join(tools)} |", f"| --- |{' ---: |' * len(tools)}"]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        cells = ["" if values[pair, tool] == "" else f"{values[pair, tool]:.2f}" for tool in tools]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--brats", type=Path, help="clone of github.com/rachitsaluja/BraTS-2023-Metrics")
    parser.add_argument("--random", type=int, default=60, help="number of random pairs")
    args = parser.parse_args()
    missing = [tool for tool, module in MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    installed = {tool: measure for tool, measure in TOOLS.items() if tool not in missing}
    versions = {
        tool: metadata.version(DISTRIBUTIONS[module]) for tool, module in MODULES.items() if tool not in missing
    } | {"SimpleITK": sitk.Version_VersionString(), "numpy": np.__version__}
    tolerance = f"nsd at {TOLERANCE:g} mm"
    rows = compare_tools(installed)
    record(args.out.with_name(f"{args.out.name}_pairs"), rows, versions=versions, note=tolerance)
    print("\n\n".join(markdown(rows, metric) for metric in METRICS))
    rows = agreement(installed, args.random)
    if args.brats:
        rows += brats_agreement(args.brats.resolve(), args.random // 3)
    record(args.out.with_name(f"{args.out.name}_random"), rows, versions=versions, pairs=args.random, note=tolerance)


if __name__ == "__main__":
    main()
