"""Seconds of nnU-Net's own training and validation steps, of a plan's network and of Deconver in its place.

    python benchmarks/epoch_time.py --out benchmarks/results/epoch_time_cpu
    python benchmarks/epoch_time.py --plans PLANS.json --dataset-json DATASET.json --out FILE

What nnU-Net's benchmark of epoch times does (its trainer, a batch that is always there, no data loading; on a GPU its
autocast and torch.compile), but step by step, the networks in turn, so that they share whatever else the machine does.
An epoch of nnU-Net is 250 training and 50 validation steps. Without plans it is nnU-Net's default 3D network and patch
(128^3, batch 2) on a GPU, and what it plans for small volumes (40 x 56 x 40) on a CPU.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

SCRATCH = tempfile.TemporaryDirectory()
for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[variable] = SCRATCH.name

import numpy as np  # noqa: E402
import torch  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels  # noqa: E402
from recording import ratio, record  # noqa: E402
from tqdm import tqdm  # noqa: E402

from nnunet_deconver.networks.architecture import DECONVER, deconver_architecture, plain_architecture  # noqa: E402
from nnunet_deconver.networks.backbones import with_components  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AXES = {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdc"}}
NETWORKS = {
    "the plan's": lambda entry: entry,
    "Deconver": deconver_architecture,
    "Deconver, DTC, NeRDc": lambda entry: with_components(deconver_architecture(entry), **AXES),
}


def default_plans() -> dict:
    """What nnU-Net's trainer reads of a plan."""
    stages, patch_size = (6, [128] * 3) if DEVICE.type == "cuda" else (4, [40, 56, 40])
    topology = {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * 3] * stages,
        "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
    }
    entry = {"network_class_name": DECONVER, "arch_kwargs": topology, "_kw_requires_import": ["conv_op"]}
    configuration = {
        "data_identifier": "none",
        "batch_size": 2,
        "patch_size": patch_size,
        "spacing": [1.0] * 3,
        "batch_dice": False,
        "architecture": plain_architecture(entry),
    }
    return {
        "dataset_name": "Dataset000_None",
        "plans_name": "default",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
    }


DEFAULT_DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}


def ready_trainer(plans: dict, configuration: str, dataset: dict) -> nnUNetTrainer:
    """nnU-Net's trainer with the plan's network built, as it is before the first step."""
    # All that it looks at of the data is how their files end.
    data = Path(SCRATCH.name, plans["dataset_name"], plans["configurations"][configuration]["data_identifier"])
    data.mkdir(parents=True, exist_ok=True)
    (data / "case.b2nd").touch()
    # As nnUNetv2_train hands them over.
    trainer = nnUNetTrainer(plans | {"continue_training": False}, configuration, 0, dataset, DEVICE)
    trainer.initialize()
    trainer.network.train()
    return trainer


def random_batch(trainer: nnUNetTrainer) -> dict:
    """As nnU-Net's trainer without data loading makes it."""
    channels = determine_num_input_channels(trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
    patch = trainer.configuration_manager.patch_size
    highest = max(trainer.label_manager.all_labels)

    def target(scale) -> torch.Tensor:
        size = [int(extent * s) for extent, s in zip(patch, scale, strict=True)]
        return torch.round(torch.rand((trainer.batch_size, 1, *size), device=DEVICE) * highest)

    return {
        "data": torch.rand((trainer.batch_size, channels, *patch), device=DEVICE),
        "target": [target(scale) for scale in trainer._get_deep_supervision_scales()],
    }


def seconds(trainer: nnUNetTrainer, batch: dict) -> tuple[float, float]:
    """Of one training step and one validation step."""
    times = []
    for step, training in ((trainer.train_step, True), (trainer.validation_step, False)):
        trainer.network.train(training)
        start = time.perf_counter()
        with torch.set_grad_enabled(training):
            step(batch)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return tuple(times)


def main():
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, help="of nnU-Net's planner")
    parser.add_argument("--dataset-json", type=Path, help="of the plans")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=50 if DEVICE.type == "cuda" else 8)
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    args = parser.parse_args()
    dataset = json.loads(args.dataset_json.read_text()) if args.dataset_json else DEFAULT_DATASET
    trainers = {}
    for name in args.networks:
        plans = json.loads(args.plans.read_text()) if args.plans else default_plans()
        configuration = plans["configurations"][args.configuration]
        configuration["architecture"] = NETWORKS[name](configuration["architecture"])
        trainers[name] = ready_trainer(plans, args.configuration, dataset)
    batch = random_batch(next(iter(trainers.values())))
    times = {name: [] for name in trainers}
    # The first round warms up, and compiles on a GPU.
    for round_ in tqdm(range(args.rounds + 1), unit="round"):
        for name, trainer in list(trainers.items())[:: 1 if round_ % 2 else -1]:
            measured = seconds(trainer, batch)
            if round_:
                times[name].append(measured)
    times = {name: np.array(values) for name, values in times.items()}
    reference = times[args.networks[0]]
    rows = []
    for name, values in times.items():
        training, validation = np.median(values, axis=0)
        # Of the reference itself, too: that is 1 by definition.
        of_training, of_validation = (ratio(values[:, i], reference[:, i]) for i in range(2))
        rows.append(
            {
                "network": name,
                "training_step_s": round(float(training), 4),
                "validation_step_s": round(float(validation), 4),
                f"training_step / {args.networks[0]}": of_training[0],
                "quartiles": of_training[1],
                "validation_step / the same": of_validation[0],
                "validation_quartiles": of_validation[1],
            }
        )
    record(
        args.out,
        rows,
        plans={"name": plans["plans_name"], "dataset": plans["dataset_name"]}
        | {key: configuration[key] for key in ("patch_size", "batch_size")},
        threads=torch.get_num_threads(),
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
