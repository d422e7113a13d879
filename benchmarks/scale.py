"""What training costs as patch, channels, batch and kernel grow: Deconver beside nnU-Net's networks.

    python benchmarks/scale.py --out benchmarks/results/scale                    # counted, for a GPU: no GPU is needed
    python benchmarks/scale.py --measure --out benchmarks/results/scale_cpu      # measured, on the CPU
    python benchmarks/scale.py --draw docs/scale.png                             # draws both results

One of the four is varied at a time, around 2 patches of 128 voxels along each edge, 32 channels at the highest
resolution, kernels of 3 and five stages. nnU-Net's networks keep kernels of 3, as nnU-Net plans them. Counted are the
most memory of a training step, as planners do it, and its FLOPs, with what Deconver computes again and, as a network of
its own, with nothing computed again. Measured is a training step's time, in float32, where a CPU can bear it: around
2 patches of 32 voxels along each edge, and 16 channels. Networks are measured in turn, and compared by their ratios.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recording import record
from speed import seconds, step
from tables import rows
from tqdm import tqdm

from nnunet_deconver.figures.plots import COLORS, MARKERS, save, styled
from nnunet_deconver.networks.architecture import build_network, deconver_architecture, plain_architecture
from nnunet_deconver.networks.backbones import usual_recipe
from nnunet_deconver.plans.cost import training_flops
from nnunet_deconver.plans.memory import GIB, training_memory

STAGES = 5
PLAIN = "PlainConvUNet"
NETWORKS = ("Deconver", "Deconver, nothing computed again", PLAIN, "ResidualEncoderUNet")


class Case(NamedTuple):
    """What is varied."""

    edge: int = 128
    channels: int = 32
    batch: int = 2
    kernel: int = 3


COUNTED = {
    "edge": (32, 64, 96, 128, 160),
    "channels": (16, 32, 48, 64),
    "batch": (1, 2, 4, 8),
    "kernel": (3, 5, 7),
}
# Of one small image, PyTorch's convolutions do not go through oneDNN: nnU-Net's networks then take longer than of two.
MEASURED_AROUND = Case(edge=32, channels=16, batch=2)
MEASURED = {"edge": (32, 48, 64), "channels": (16, 32, 48), "batch": (1, 2, 4), "kernel": (3, 5, 7)}


def cases(around: Case, values: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Case]]:
    """What is varied, and the case."""
    for varied, numbers in values.items():
        yield from ((varied, around._replace(**{varied: number})) for number in numbers)


def entry(network: str, case: Case) -> dict:
    """The architecture entry of a network."""
    topology = {
        "n_stages": STAGES,
        "features_per_stage": [min(case.channels * 2**stage, 320) for stage in range(STAGES)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[case.kernel] * 3] * STAGES,
        "strides": [[1] * 3] + [[2] * 3] * (STAGES - 1),
    }
    plain = plain_architecture({"network_class_name": "", "arch_kwargs": topology, "_kw_requires_import": ["conv_op"]})
    if network == PLAIN:
        return plain
    if network == "ResidualEncoderUNet":
        kwargs = {key: value for key, value in plain["arch_kwargs"].items() if key != "n_conv_per_stage"}
        blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6], "n_conv_per_stage_decoder": [1] * (STAGES - 1)}
        name = plain["network_class_name"].replace(PLAIN, network)
        return plain | {"network_class_name": name, "arch_kwargs": kwargs | blocks}
    deconver = deconver_architecture(plain | {"arch_kwargs": plain["arch_kwargs"] | topology})
    recompute = "always" if network == "Deconver" else "never"
    return deconver | {"arch_kwargs": deconver["arch_kwargs"] | {"recompute": recompute}}


def count(network: str, case: Case) -> dict[str, float]:
    """Memory and FLOPs of a training step."""
    of = entry(network, case)
    arguments: dict[str, Any] = {
        "build_network": partial(build_network, of, 1, 3, deep_supervision=True),
        "input_channels": 1,
        "num_classes": 3,
        "regions": False,
        "patch_size": (case.edge,) * 3,
        "batch_size": case.batch,
    }
    memory = training_memory(**arguments, build_optimizer=usual_recipe(of).build_optimizer)
    return {"peak_GiB": round(memory.peak / GIB, 3), "step_TFLOPs": round(training_flops(**arguments) / 1e12, 4)}


def measure(case: Case, rounds: int) -> list[dict]:
    """Time of a training step of each network, in turn, and as a share of PlainConvUNet's."""
    torch.manual_seed(0)
    x = torch.rand(case.batch, 1, *(case.edge,) * 3)
    names = [name for name in NETWORKS if name != "Deconver, nothing computed again"]  # on a CPU it is the same
    networks = [build_network(entry(name, case), 1, 3, deep_supervision=True).train() for name in names]
    times = np.array([[seconds(partial(step, network, x)) for network in networks] for _ in range(rounds + 1)])[1:]
    found = []
    for i, name in enumerate(names):
        low, median, high = np.quantile(times[:, i] / times[:, names.index(PLAIN)], (0.25, 0.5, 0.75))
        ratio = {"time / PlainConvUNet's time": round(float(median), 3), "quartiles": f"{low:.2f} to {high:.2f}"}
        found.append({"network": name, "step_s": round(float(np.median(times[:, i])), 3)} | ratio)
    return found


LABELS = {"edge": "edge of the patch", "channels": "channels", "batch": "batch", "kernel": "Deconver's kernel"}


@styled
def draw(path: Path):
    """Draws both results: what is varied across, a row for each cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.2), layout="constrained")
    panels = figure.subplots(3, len(COUNTED), sharex="none", sharey="row")
    costs = (
        ("scale", "peak_GiB", "memory / GiB"),
        ("scale", "step_TFLOPs", "TFLOPs of a step"),
        ("scale_cpu", "step_s", "CPU: step / s"),
    )
    for line, (result, column, label) in zip(panels, costs, strict=True):
        for panel, varied in zip(line, COUNTED, strict=True):
            for i, network in enumerate(NETWORKS):
                of = [row for row in rows(result) if (row["varied"], row["network"]) == (varied, network)]
                across, up = [int(row[varied]) for row in of], [float(row[column]) for row in of]
                style = {"color": COLORS[i], "marker": MARKERS[i], "markersize": 3, "linewidth": 1}
                panel.plot(across, up, label=network if panel is panels[0, 0] else None, **style)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            panel.set_xticks(sorted({int(row[varied]) for row in rows(result) if row["varied"] == varied}))
            panel.set_xlabel(LABELS[varied])
        line[0].set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path.with_suffix(""), [path.suffix[1:]])


def main():
    """Reads the command line, counts or measures, prints and writes the table; or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="path without ending")
    what.add_argument("--draw", type=Path, metavar="FILE", help="image to write")
    parser.add_argument("--measure", action="store_true", help="on the CPU, in place of counting")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring; default: 3")
    args = parser.parse_args()
    if args.draw is not None:
        draw(args.draw)
        return
    found, known = [], {}
    around, values = (MEASURED_AROUND, MEASURED) if args.measure else (Case(), COUNTED)
    for varied, case in tqdm(list(cases(around, values)), unit="case"):
        if case not in known:
            known[case] = (
                measure(case, args.rounds)
                if args.measure
                else [{"network": network} | count(network, case) for network in NETWORKS]
            )
        found += [{"varied": varied} | case._asdict() | row for row in known[case]]
    record(args.out, found, **({"threads": torch.get_num_threads()} if args.measure else {}))


if __name__ == "__main__":
    main()
