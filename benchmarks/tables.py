"""Prints the tables of the documents, in Markdown, from the results beside this file.

    python benchmarks/tables.py training_memory

`tools/generate.py` puts them where the documents name this command.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
Table = list[dict[str, str]]


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a result's CSV."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def number(text: str, digits: int) -> str:
    """A number with so many digits; nothing stays nothing."""
    return f"{float(text):.{digits}f}" if text else ""


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
            table.setdefault((row["what"], row["pass"]), {})[row["against"]] = float(row["times_faster"])
    return [
        {
            "network": network,
            "pass": kind,
            "plain formulation's time / time": f"{faster['plain formulation']:.2f}" if len(faster) > 1 else "",
            "time / PlainConvUNet's time": f"{1 / faster['PlainConvUNet']:.2f}",
        }
        for (network, kind), faster in table.items()
    ]


def speed_layer() -> Table:
    """The layer and the block alone, stage by stage."""
    return [
        {
            "what": row["what"],
            "shape": row["shape"],
            "pass": row["pass"],
            "time / ms": row["ms"],
            "plain formulation's time / time": number(row["times_faster"], 2),
            "GFLOP/s": row["GFLOP_per_s"],
        }
        for row in rows("speed_cpu")
        if "hippocampus" in row["what"]
    ]


def memory() -> Table:
    """Memory of training, counted for a GPU."""
    return [
        {
            "plan": row["plan"],
            "network": row["network"],
            "kept for backward / GiB": number(row["kept_GiB"], 2),
            "by the plain formulation": number(row["kept_by_plain_formulation_GiB"], 2),
            "peak / GiB": number(row["peak_GiB"], 2),
        }
        for row in json.loads((RESULTS / "speed_cpu.json").read_text())["memory"]
    ]


def epoch_time() -> Table:
    """nnU-Net's own training and validation steps on a CPU."""
    return [
        {
            "network": row["network"],
            "training step / s": number(row["training_step_s"], 2),
            "/ the plan's": number(row["training_step / the plan's"], 2),
            "validation step / s": number(row["validation_step_s"], 2),
            "/ its": number(row["validation_step / the same"], 2),
        }
        for row in rows("epoch_time_hippocampus_cpu")
    ]


def axes_overhead() -> Table:
    """What upsamplings and heads add to nnU-Net's plain network."""
    return [
        {
            "": row["variant"],
            "parameters / M": number(row["parameters_M"], 2),
            "kFLOPs / voxel": number(row["KFLOPs_per_voxel"], 1),
            "kept for backward / GiB": number(row["kept_for_backward_GiB"], 2),
            "step time": number(row["step_time_ratio"], 2),
        }
        for row in rows("axes_overhead_cpu")
    ]


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


TABLES: dict[str, Callable[[], Table]] = {
    make.__name__: make
    for make in (
        training_memory,
        speed,
        speed_layer,
        memory,
        epoch_time,
        axes_overhead,
        thin_structures,
        hippocampus,
        drive_demo,
        agreement_hd95,
        agreement_assd,
        agreement_nsd,
    )
}


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [[*table[0]], ["---"] * len(table[0]), *(row.values() for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    print(markdown(TABLES[parser.parse_args().table]()))
