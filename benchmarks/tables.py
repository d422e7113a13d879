"""Prints the tables of the documents, and sentences with numbers, in Markdown, from the results beside this file.

    python benchmarks/tables.py training_memory

`tools/generate.py` puts them where the documents name this command. What is counted in moments, such as the parameters
of presets, is counted anew.
"""

import argparse
import csv
import json
import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
Table = list[dict[str, str]]
TRAINING_STEP = "training_step / the plan's"

# What wrote each result, and the day of the commit it was written at; all else is in the JSON beside the CSV.
SOURCES = {
    "accuracy_drive": (
        "2026-11-21",
        "accuracy.py report Dataset021_DRIVE 2d --plans narrowPlans --out benchmarks/results/accuracy_drive",
    ),
    "accuracy_hippocampus": (
        "2026-11-21",
        "accuracy.py report Dataset004_Hippocampus 3d_fullres --out benchmarks/results/accuracy_hippocampus",
    ),
    "accuracy_hippocampus_narrow": (
        "2026-11-21",
        "accuracy.py report Dataset004_Hippocampus 3d_fullres --plans narrowPlans "
        "--out benchmarks/results/accuracy_hippocampus_narrow",
    ),
    "components_overhead_cpu": (
        "2026-11-22",
        "components_overhead.py --rounds 12 --out benchmarks/results/components_overhead_cpu",
    ),
    "drive_demo_cpu": ("", "nnunet-deconver demo --dataset $nnUNet_raw/Dataset021_DRIVE --out drive_demo"),
    "drive_recipe_study": (
        "2026-11-22",
        "nnunet-deconver study benchmarks/studies/drive_recipe.toml -o drive_recipe_study --workers 2",
    ),
    "drive_study": (
        "2026-11-22",
        "nnunet-deconver study benchmarks/studies/drive.toml -o drive_study --workers 2",
    ),
    "epoch_time_cpu": ("2026-11-21", "epoch_time.py --out benchmarks/results/epoch_time_cpu"),
    "epoch_time_hippocampus_cpu": (
        "2026-11-22",
        "epoch_time.py --plans PLANS.json --dataset-json DATASET.json --rounds 5 "
        "--out benchmarks/results/epoch_time_hippocampus_cpu",
    ),
    "epoch_time_hippocampus_depthwise_cpu": (
        "2026-11-21",
        "epoch_time.py --plans PLANS.json --dataset-json DATASET.json --rounds 4 "
        "--out benchmarks/results/epoch_time_hippocampus_depthwise_cpu",
    ),
    "hippocampus_cpu": (
        "2026-11-21",
        "real_data.py report Dataset004_Hippocampus --out benchmarks/results/hippocampus_cpu "
        "--trainers nnUNetTrainerDeconver_lr1e3_5epochs nnUNetTrainer_5epochs",
    ),
    "hippocampus_recipe_study": (
        "2026-11-22",
        "nnunet-deconver study benchmarks/studies/hippocampus_recipe.toml -o hippocampus_recipe_study --workers 2",
    ),
    "hippocampus_study": (
        "2026-11-22",
        "nnunet-deconver study benchmarks/studies/hippocampus.toml -o hippocampus_study --workers 2",
    ),
    "kernel_resources": ("2026-11-21", "kernel_resources.py --out benchmarks/results/kernel_resources"),
    "metric_agreement_pairs": (
        "2026-11-21",
        "metric_agreement.py --brats BraTS-2023-Metrics --out benchmarks/results/metric_agreement",
    ),
    "metric_agreement_random": (
        "2026-11-21",
        "metric_agreement.py --brats BraTS-2023-Metrics --out benchmarks/results/metric_agreement",
    ),
    "peak_memory": ("2026-11-22", "peak_memory.py --out benchmarks/results/peak_memory"),
    "planning_hippocampus": (
        "2026-11-22",
        "planning.py Dataset004_Hippocampus nnUNetDeconverPlans nnUNetTrainerDeconver "
        "--out benchmarks/results/planning_hippocampus",
    ),
    "published": ("2026-11-21", "published.py --authors deconver --out benchmarks/results/published"),
    "recomputation": ("2026-11-22", "peak_memory.py --recomputation --out benchmarks/results/recomputation"),
    "scale": ("2026-11-22", "scale.py --out benchmarks/results/scale"),
    "scale_cpu": ("2026-11-22", "scale.py --measure --out benchmarks/results/scale_cpu"),
    "soak": ("2026-11-22", 'make soak ARGS="--minutes 60 --seed 3000 --out benchmarks/results/soak"'),
    "speed_cpu": ("2026-11-22", "speed.py --out benchmarks/results/speed_cpu"),
    "stage_parts_cpu": ("2026-11-22", "stage_parts.py --out benchmarks/results/stage_parts_cpu"),
    "thin_structures_cpu": ("2026-11-21", "thin_structures.py --out benchmarks/results/thin_structures_cpu"),
    "training_memory_cpu": ("2026-11-21", "training_memory.py --out benchmarks/results/training_memory_cpu"),
}


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a result's CSV."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def provenance(name: str) -> dict:
    """A result's JSON; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def number(text: str, digits: int) -> str:
    """A number with so many digits; nothing stays nothing."""
    return f"{float(text):.{digits}f}" if text else ""


def told(row: dict[str, str], column: str, quartiles: str = "quartiles", *, inverse: bool = False) -> str:
    """A ratio, or its quartiles where they lie too far apart to tell one."""
    if row[column]:
        return f"{1 / float(row[column]):.2f}" if inverse else number(row[column], 2)
    low, high = map(float, row[quartiles].split(" to "))
    return f"{1 / high:.2f} to {1 / low:.2f}" if inverse else row[quartiles]


def training_memory() -> Table:
    """Estimated against measured memory of a training step."""
    return [
        {
            "network": row["network"],
            "patch": row["patch"],
            "estimated / MiB": row["estimated_MiB"],
            "measured / MiB": row["measured_MiB"],
            "estimated / measured": number(row["estimated / measured"], 3),
        }
        for row in rows("training_memory_cpu")
    ]


def speed() -> Table:
    """Whole networks on a CPU, against their plain formulation and nnU-Net's network."""
    table = {}
    for row in rows("speed_cpu"):
        if row["against"] == "PlainConvUNet" or row["what"].startswith("Deconver"):
            table.setdefault((row["what"], row["pass"]), {})[row["against"]] = row
    return [
        {
            "network": network,
            "pass": kind,
            "plain formulation's time / time": told(faster["plain formulation"], "times_faster")
            if len(faster) > 1
            else "",
            "time / PlainConvUNet's time": told(faster["PlainConvUNet"], "times_faster", inverse=True),
        }
        for (network, kind), faster in table.items()
    ]


def speed_most() -> str:
    """Deconver beside nnU-Net's network on a CPU, in a sentence."""
    of = {
        row["pass"]: told(row, "times_faster", inverse=True)
        for row in rows("speed_cpu")
        if row["what"] == "Deconver k3" and row["against"] == "PlainConvUNet"
    }
    step = next(row for row in rows("epoch_time_hippocampus_cpu") if row["network"] == "Deconver")
    return (
        f"On a CPU, Deconver takes {of['forward']} times as long as PlainConvUNet forward, {of['forward + backward']} "
        f"times forward and backward, and {told(step, TRAINING_STEP)} times for a training step of nnU-Net on "
        "Hippocampus ([tables](docs/speed.md#on-a-cpu)). On a GPU, nothing was measured yet."
    )


def speed_layer() -> Table:
    """The NDC layer alone, stage by stage."""
    table = {}
    for row in rows("speed_cpu"):
        if row["what"] == "NDC, hippocampus":
            table.setdefault(row["shape"], {})[row["pass"]] = row
    return [
        {
            "shape": shape,
            **{
                f"{kind}: {what}": number(row[column], digits)
                for kind, row in passes.items()
                for what, column, digits in (
                    ("plain formulation's time / time", "times_faster", 1),
                    ("GFLOP/s", "GFLOP_per_s", 0),
                    ("GB/s", "GB_per_s", 1),
                )
            },
        }
        for shape, passes in table.items()
    ]


def stage_parts() -> Table:
    """Where a CPU spends its time in Deconver's blocks."""
    return [
        {
            "stage": row["stage"],
            "part": row["part"],
            "forward / ms": row["forward_ms"],
            "forward + backward / ms": row["forward_backward_ms"],
            "of the arithmetic": number(row["arithmetic_share"], 2) if float(row["arithmetic_share"]) else "",
            "of the bandwidth": number(row["bandwidth_share"], 2),
        }
        for row in rows("stage_parts_cpu")
        if row["kernel"] == "3"
    ]


def machine() -> str:
    """What the machine of the measurement can do."""
    found = provenance("speed_cpu")["machine"]
    return (
        f"The machine copies {found['copy_GB_per_s']:.0f} GB/s, and computes {found['convolution_GFLOP_per_s']:.0f} "
        "GFLOP/s in a dense convolution."
    )


def kernel_resources() -> str:
    """The most that any Triton kernel takes."""
    registers, stack = (max(int(row[key]) for row in rows("kernel_resources")) for key in ("registers", "stack_bytes"))
    return f"A thread takes at most {registers} of its 255 registers, and at most {stack} bytes of stack."


def epoch_time_before() -> str:
    """What Deconver took before it had kernels for CPUs."""
    row = next(row for row in rows("epoch_time_hippocampus_depthwise_cpu") if row["network"] == "Deconver")
    return (
        "Before this package had kernels for CPUs, Deconver took "
        f"{number(row[TRAINING_STEP], 2)} times as long as the plan's network "
        f"for a training step, and {number(row['validation_step / the same'], 2)} times as long for a validation step "
        f"(commit {provenance('epoch_time_hippocampus_depthwise_cpu')['commit']})."
    )


def memory() -> Table:
    """What training keeps for the backward pass, counted for a GPU."""
    return [
        {
            "plan": row["plan"],
            "PlainConvUNet / GiB": number(row["plain_kept_GiB"], 2),
            "Deconver / GiB": number(row["kept_GiB"], 2),
            "plain formulation / GiB": number(row["kept_by_plain_formulation_GiB"], 2),
        }
        for row in rows("peak_memory")
        if not row["with"]
    ]


def peak_memory() -> Table:
    """The most memory of a training step, Deconver beside PlainConvUNet."""
    table = {}
    for row in rows("peak_memory"):
        line = table.setdefault(row["plan"], {"plan": row["plan"], "batch": f"{row['batch']} x {row['patch']}"})
        plain, deconver = float(row["plain_peak_GiB"]), float(row["peak_GiB"])
        with_axes = f", {row['with']}" if row["with"] else ""
        if row["with"] in ("", "DTC, NeRDc"):
            line[f"PlainConvUNet{with_axes} / GiB"] = f"{plain:.2f}"
            line[f"Deconver{with_axes} / GiB"] = f"{deconver:.2f}"
        line[f"ratio{with_axes}"] = f"{deconver / plain:.2f}"
    columns = max(table.values(), key=len)
    return [{column: line[column] for column in columns} for line in table.values()]


def recomputation() -> Table:
    """What a training step costs with and without computing again."""
    return [
        {
            "plan": row["plan"],
            "PlainConvUNet / TFLOPs": number(row["plain_step_TFLOPs"], 2),
            "Deconver / TFLOPs": number(row["step_TFLOPs"], 2),
            "without recomputation / TFLOPs": number(row["step_without_recomputation_TFLOPs"], 2),
            "Deconver / GiB": number(row["peak_GiB"], 2),
            "without recomputation / GiB": number(row["peak_without_recomputation_GiB"], 2),
        }
        for row in rows("recomputation")
    ]


def peak_memory_most() -> str:
    """The least and largest share of PlainConvUNet's peak."""
    shares = [float(row["peak_GiB"]) / float(row["plain_peak_GiB"]) for row in rows("peak_memory")]
    return (
        f"Deconver takes {min(shares):.2f} to {max(shares):.2f} times the memory of PlainConvUNet with the same "
        "upsampling and heads."
    )


def scale() -> Table:
    """Where Deconver's curves cross those of nnU-Net's networks."""
    costs = (("scale", "peak_GiB", "memory"), ("scale", "step_TFLOPs", "FLOPs"), ("scale_cpu", "step_s", "CPU time"))
    table = []
    for varied, label in (
        ("edge", "edge of the patch"),
        ("channels", "channels"),
        ("batch", "batch"),
        ("kernel", "Deconver's kernel"),
    ):
        for result, column, cost in costs:
            of: dict[str, dict[int, float]] = {}
            for row in rows(result):
                if row["varied"] == varied:
                    of.setdefault(row["network"], {})[int(row[varied])] = float(row[column])
            line = {"varied": label, "from, to": f"{min(of['Deconver'])}, {max(of['Deconver'])}", "cost": cost}
            for other in ("PlainConvUNet", "ResidualEncoderUNet"):
                ratios = {value: cost_of / of[other][value] for value, cost_of in of["Deconver"].items()}
                first, *_, last = ratios.values()
                line[f"Deconver / {other}"] = f"{first:.2f} to {last:.2f}"
                line[f"crosses {other}"] = crossing(ratios)
            table.append(line)
    return table


def crossing(ratios: dict[int, float]) -> str:
    """Between which values a ratio passes 1."""
    values = list(ratios)
    between = [
        f"{low} and {high}"
        for low, high in zip(values, values[1:], strict=False)
        if (ratios[low] < 1) != (ratios[high] < 1)
    ]
    if between:
        return f"between {', '.join(between)}"
    return "never: below" if ratios[values[0]] < 1 else "never: above"


def epoch_time() -> Table:
    """nnU-Net's own training and validation steps on a CPU."""
    return [
        {
            "network": row["network"],
            "training step / s": number(row["training_step_s"], 2),
            "/ the plan's": told(row, TRAINING_STEP),
            "validation step / s": number(row["validation_step_s"], 2),
            "/ its": told(row, "validation_step / the same", "validation_quartiles"),
        }
        for row in rows("epoch_time_hippocampus_cpu")
    ]


def components_overhead() -> Table:
    """What upsamplings and heads add to nnU-Net's plain network."""
    return [
        {
            "": row["variant"],
            "parameters / M": number(row["parameters_M"], 2),
            "kFLOPs / voxel": number(row["KFLOPs_per_voxel"], 1),
            "kept for backward / GiB": number(row["kept_for_backward_GiB"], 2),
            "step time": told(row, "step_time_ratio"),
        }
        for row in rows("components_overhead_cpu")
    ]


def dtc_overhead() -> str:
    """What DTC adds, beside what its paper prints (arXiv 2601.17939, table 7: a U-Net)."""
    of = {row["variant"]: row for row in rows("components_overhead_cpu")}

    def more(key: str) -> float:
        return float(of["dtc"][key]) / float(of["plain"][key]) - 1

    return (
        f"Here, DTC adds {more('parameters_M'):.1%} of parameters and {more('KFLOPs_per_voxel'):.1%} of FLOPs. On the "
        f"U-Net of its paper, it adds {67.25 / 65.95 - 1:.1%} and {40.52 / 40.13 - 1:.1%}."
    ).replace("%", " %")


def thin_structures() -> Table:
    """Upsamplings where lines are one to two pixels wide."""
    return [
        {
            "upsampling": row["upsampling"],
            "Dice, mean (standard deviation)": f"{number(row['dice_mean'], 3)} ({number(row['dice_std'], 3)})",
            "against transposed": f"{float(row['gain_over_transposed']):+.3f}",
            "seeds better": f"{row['seeds_better']} of {row['seeds']}",
        }
        for row in rows("thin_structures_cpu")
    ]


def hippocampus() -> Table:
    """Deconver beside nnU-Net's own network on Hippocampus, a short training."""
    return [
        {
            "trainer": f"`{row['trainer']}`",
            "Dice anterior": number(row["dice_1"], 3),
            "Dice posterior": number(row["dice_2"], 3),
            "mean Dice": number(row["dice_mean_foreground"], 3),
            "training loss, first and last epoch": f"{number(row['first_train_loss'], 3)}, "
            f"{number(row['last_train_loss'], 3)}",
            "minutes": row["training_minutes"],
        }
        for row in rows("hippocampus_cpu")
    ]


def drive_demo() -> Table:
    """The demo on DRIVE."""
    return [
        {
            "class": row["class"],
            "Dice, held-out images": number(row["prediction"], 3),
            "best threshold's": number(row["best threshold"], 3),
        }
        for row in rows("drive_demo_cpu")
        if row["class"] != "mean"
    ]


def _agreement(metric: str) -> Table:
    table = {}
    for row in rows("metric_agreement_pairs"):
        table.setdefault(row["pair"], {metric: row["pair"]})[row["tool"]] = number(row[metric], 2)
    tools = [tool for tool in next(iter(table.values())) if any(row.get(tool) for row in table.values())]
    return [{tool: row.get(tool, "") for tool in tools} for row in table.values()]


def agreement_hd95() -> Table:
    """HD95 of the same masks by several tools, mm."""
    return _agreement("hd95")


def agreement_assd() -> Table:
    """ASSD of the same masks by several tools, mm."""
    return _agreement("assd")


def agreement_nsd() -> Table:
    """Surface Dice of the same masks by several tools."""
    return _agreement("nsd")


def hd95_range() -> str:
    """The pair of masks on whose HD95 the tools differ most."""
    found = {}
    for row in rows("metric_agreement_pairs"):
        if row["hd95"]:
            found.setdefault(row["pair"], []).append(float(row["hd95"]))
    lowest, highest = max(((min(each), max(each)) for each in found.values()), key=lambda ends: ends[1] - ends[0])
    return (
        f"For one and the same pair of masks, public tools give an HD95 of {lowest:.0f} mm to {highest:.0f} mm. "
        "Here, Dice is nnU-Net's to the last bit, surface distances are those of surface-distance or MONAI, and lesion "
        "scores are those of BraTS: [docs/metrics.md](docs/metrics.md)."
    )


def agreement_random() -> str:
    """How near this package is to the tools whose definitions it has."""

    def largest(tool: str, *definitions: str) -> str:
        return max(
            (
                row["largest difference"]
                for row in rows("metric_agreement_random")
                if row["tool"] == tool and (not definitions or row["this package"] in definitions)
            ),
            key=float,
        )

    return (
        f"Measured on {provenance('metric_agreement_random')['pairs']} random pairs of masks in random spacings: HD, "
        "HD95, ASSD and surface Dice of `area` differ from those of surface-distance by at most "
        f"{largest('surface-distance', 'area')}. Those of `voxels` differ from MONAI's, which computes in single "
        f"precision, by at most {largest('MONAI', 'voxels')}. The scores of `--brats` differ from those of the "
        f"organisers' code by at most {largest('BraTS-2023-Metrics')}."
    )


def planned() -> Table:
    """What `plan` planned for Hippocampus."""

    def sizes(values: list[float]) -> str:
        return " x ".join(f"{value:g}" for value in values)

    return [
        {
            "configuration": row["configuration"],
            "patch": sizes(row["patch"]),
            "batch": str(row["batch"]),
            "spacing / mm": sizes(row["spacing_mm"]),
            "stages": str(row["stages"]),
            "recomputed": ", ".join(map(str, row["recomputed_stages"])) or "none",
            "training / GiB": f"{row['training_GiB']:.2f}",
            "preprocessed data": row["preprocessed_data"],
        }
        for row in provenance("planning_hippocampus")["planned"]
    ]


def _kflops(row: dict) -> str:
    with_updates, without = (number(row[f"kFLOPs_per_voxel{end}"], 1) for end in ("", "_without_updates"))
    return with_updates if with_updates == without else f"{with_updates} ({without})"


def planned_stages() -> Table:
    """What `summary` counts of these plans, stage by stage."""
    return [
        {
            "stage": row["stage"],
            "size": row["size"],
            "channels": row["channels"],
            "parameters": f"{int(row['parameters']):,}",
            "kFLOPs / voxel": _kflops(row),
            "kept for backward / MiB": row["kept_for_backward_MiB"],
        }
        for row in rows("planning_hippocampus")
    ]


def planned_networks() -> Table:
    """What `summary` counts of these plans, beside nnU-Net's network."""
    return [
        {
            "network": row["network"],
            "parameters / M": f"{row['parameters'] / 1e6:.2f}",
            "kFLOPs / voxel": _kflops(row),
            "step / GFLOPs": f"{row['step_GFLOPs']:,.1f}",
            "without recomputation": f"{row['step_GFLOPs_without_recomputation']:,.1f}",
            "weights / GiB": f"{row['weights_GiB']:.2f}",
            "kept for backward / GiB": f"{row['kept_for_backward_GiB']:.2f}",
            "training / GiB": f"{row['training_GiB']:.2f}",
        }
        for row in provenance("planning_hippocampus")["networks"]
    ]


def planned_memory() -> str:
    """Memory of Deconver on nnU-Net's plan, beside nnU-Net's network."""
    (row,) = [row for row in rows("peak_memory") if (row["plan"], row["with"]) == ("Hippocampus", "")]
    return (
        f"On nnU-Net's patch and batch for Hippocampus, training Deconver takes {number(row['peak_GiB'], 2)} GiB, and "
        f"nnU-Net's own network {number(row['plain_peak_GiB'], 2)} GiB."
    )


def published() -> Table:
    """Parameters and FLOPs of the paper's configurations: counted, of the authors' code, printed."""
    from published import CONFIGURATIONS, count, kflops, papers_kflops

    recorded = {row["configuration"]: row for row in rows("published")}
    return [
        {
            "configuration": each.name,
            "parameters": f"{count(each).parameters:,}",
            "of the authors' code": f"{int(recorded[each.name]['authors_parameters']):,}",
            "printed": f"{each.published['parameters_M']} M (table {each.published['table']})",
            "kFLOPs / voxel": f"{kflops(each)[0]:.1f}",
            "counted as the paper does": f"{papers_kflops(each):.1f}",
            "printed there": each.published["kflops_per_voxel"],
            "with the updates' convolutions": f"{kflops(each)[1]:.1f}",
        }
        for each in CONFIGURATIONS
    ]


def published_difference() -> str:
    """How far what is counted is from what is printed."""
    from published import CONFIGURATIONS, count, kflops, papers_kflops

    recorded = {row["configuration"]: int(row["authors_parameters"]) for row in rows("published")}
    assert all(count(each).parameters == recorded[each.name] for each in CONFIGURATIONS), "not the authors' network"
    other = {}
    for each in CONFIGURATIONS:
        printed = each.published["parameters_M"]
        counted = f"{count(each).parameters / 1e6:.{len(printed.partition('.')[2])}f}"
        if counted != printed:
            other[each.name] = f"{each.name} (printed {printed} M, counted {counted} M)"
    more = [float(each.published["kflops_per_voxel"]) / kflops(each)[0] - 1 for each in CONFIGURATIONS]
    equal = sum(f"{papers_kflops(each):.1f}" == each.published["kflops_per_voxel"] for each in CONFIGURATIONS)
    authors = provenance("published")["authors"].replace("pashtari/deconver ", "`pashtari/deconver` at ")
    return (
        f"Each network has as many parameters as the authors' code builds ({authors}), to the last one. Rounded as "
        f"printed, that is what the paper prints in {len(CONFIGURATIONS) - len(other)} of {len(CONFIGURATIONS)} rows. "
        f"It is not in these: {'; '.join(other.values())}. The FLOPs it prints are {min(more):.1%} to {max(more):.1%} "
        "more than those counted here without the updates' convolutions. Counted as the paper seems to, they are equal "
        f"in every printed digit in {equal} of {len(CONFIGURATIONS)} rows."
    ).replace("%", " %")


def presets() -> Table:
    """The presets, counted."""
    from published import lower_heads

    from nnunet_deconver.networks.architecture import build_network
    from nnunet_deconver.plans.cost import prediction_cost
    from nnunet_deconver.plans.presets import load_preset, preset_names

    table = []
    for preset in map(load_preset, preset_names()):
        row = {
            "preset": f"`{preset.name}`",
            "what": preset.title,
            "patch": " x ".join(map(str, preset.patch_size)) if preset.patch_size else "planned",
            "batch": str(preset.batch_size or "planned"),
            "parameters / M": "planned",
            "kFLOPs / voxel": "planned",
        }
        if preset.architecture:
            size = preset.patch_size or [256] * preset.dimension  # FLOPs per voxel do not depend on it.
            built = []

            def build(preset=preset, built=built):
                channels = preset.input_channels, preset.num_classes
                built.append(build_network(preset.architecture, *channels, deep_supervision=False))
                return built[-1]

            cost, voxels = prediction_cost(build, preset.input_channels, size), math.prod(size)
            row["parameters / M"] = f"{(cost.parameters - lower_heads(built[0])) / 1e6:.2f}"
            row["kFLOPs / voxel"] = _kflops(
                {
                    "kFLOPs_per_voxel": cost.flops / voxels / 1e3,
                    "kFLOPs_per_voxel_without_updates": (cost.flops - cost.ndc_flops) / voxels / 1e3,
                }
            )
        source = re.search(r"arXiv \d+\.\d+|pashtari/[\w-]+", preset.source["network"])[0]
        table.append(row | {"source": source.replace("pashtari/deconver-isles26", "`pashtari/deconver-isles26`")})
    return table


def practices() -> Table:
    """What `evaluate --like` sets."""
    from nnunet_deconver.metrics.definitions import PRACTICES

    def option(name: str, value: object) -> str:
        if value is True:
            return f"--{name}"
        if isinstance(value, tuple):  # of tolerances
            return f"--{name.removesuffix('s')} {value[0]:g}"
        return f"--{name.replace('_', '-')} {value}"

    return [
        {
            "`--like`": f"`{name}`",
            "sets": f"`{' '.join(option(*setting) for setting in each.settings.items())}`",
            "after": each.source,
            "open, or different here": each.open,
        }
        for name, each in PRACTICES.items()
    ]


def results() -> Table:
    """Every file of results: what wrote it, where."""
    # A study's result is a folder.
    there = {path.stem for path in RESULTS.iterdir() if path.is_dir() or path.suffix == ".csv"}
    assert set(SOURCES) == there, "a result without its command, or vice versa"
    table = []
    for name, (date, command) in SOURCES.items():
        found = provenance(name)
        versions = {key: found[key] for key in ("torch", "triton", "nnunet_deconver") if found.get(key)}
        versions |= found.get("versions", {}) | ({"authors' code": found["authors"]} if "authors" in found else {})
        table.append(
            {
                "file": f"[`{name}`](results/{name}.{'json' if found else 'csv'})",
                "command": f"`{command if command.startswith(('nnunet', 'make')) else f'python benchmarks/{command}'}`",
                "commit": f"{found['commit']}, {date}" if found else "not recorded",
                "device": found.get("device", "not recorded"),
                "versions": ", ".join(f"{key} {value}" for key, value in versions.items()) or "not recorded",
            }
        )
    return table


PRINTED: dict[str, Callable[[], Table | str]] = {
    make.__name__: make
    for make in (
        training_memory,
        speed,
        speed_layer,
        speed_most,
        stage_parts,
        machine,
        kernel_resources,
        memory,
        peak_memory,
        peak_memory_most,
        recomputation,
        scale,
        epoch_time,
        epoch_time_before,
        components_overhead,
        dtc_overhead,
        thin_structures,
        hippocampus,
        drive_demo,
        agreement_hd95,
        agreement_assd,
        agreement_nsd,
        agreement_random,
        hd95_range,
        planned,
        planned_stages,
        planned_networks,
        planned_memory,
        published,
        published_difference,
        presets,
        practices,
        results,
    )
}


def markdown(content: Table | str) -> str:
    """A table as Markdown, and sentences in lines of at most 120 characters."""
    if isinstance(content, str):
        return textwrap.fill(content, 120, break_long_words=False, break_on_hyphens=False)
    lines = [[*content[0]], ["---"] * len(content[0]), *(row.values() for row in content)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PRINTED)
    print(markdown(PRINTED[parser.parse_args().what]()))
