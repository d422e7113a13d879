"""Every trainer on real data: `REAL_DATASETS=Dataset004_Hippocampus:Dataset021_DRIVE pytest ...`, with their paths.

Raw datasets in nnU-Net's format, separated by the system's path separator; a few cases of each, a few iterations.
"""

import json
import os
from pathlib import Path

import pytest

from nnunet_deconver import trainers

DATASETS = [Path(folder) for folder in os.environ.get("REAL_DATASETS", "").split(os.pathsep) if folder]
TRAINERS = [
    name
    for name in trainers.__all__
    if not getattr(getattr(trainers, name), "is_epoch_variant", False) and name != "nnUNetTrainerDeconverDemo"
]
TRAINING_CASES = 5

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATASETS, reason="REAL_DATASETS names no dataset")]


@pytest.fixture(scope="module", params=DATASETS, ids=lambda folder: folder.name)
def dataset(request, tmp_path_factory, tools):
    """A few cases of a dataset, preprocessed, with one held out; its number, configuration and folders."""
    source = request.param
    nnunet = tools.NnUNet(tmp_path_factory.mktemp(source.name))
    raw = nnunet.raw / source.name
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    labels = sorted((source / "labelsTr").glob(f"*{ending}"))[: TRAINING_CASES + 1]
    for i, label in enumerate(labels):
        split = "Tr" if i < TRAINING_CASES else "Ts"
        for folder in (f"images{split}", f"labels{split}"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        case = label.name.removesuffix(ending)
        (raw / f"labels{split}" / label.name).symlink_to(label.resolve())
        for image in (source / "imagesTr").glob(f"{case}_*{ending}"):
            (raw / f"images{split}" / image.name).symlink_to(image.resolve())
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": TRAINING_CASES}))
    number = int(source.name[7:10])
    configuration = "2d" if ending == ".png" else "3d_fullres"
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", number, "-c", configuration, "-npfp", 1, "-np", 1)
    preprocessed = nnunet.preprocessed / source.name
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans = tools.shrink(plans, patch=128 if configuration == "2d" else 24)
    (preprocessed / "tinyPlans.json").write_text(json.dumps(plans))
    cases = [label.name.removesuffix(ending) for label in labels[:TRAINING_CASES]]
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    return nnunet, number, configuration, raw


def train_predict_evaluate(dataset, tiny, out, trainer: str, plans: str):
    nnunet, number, configuration, raw = dataset
    chosen = ["-tr", trainer, "-p", plans, "-device", "cpu"]
    nnunet.run("nnUNetv2_train", number, configuration, 0, *chosen, **tiny)
    where = ["-i", raw / "imagesTs", "-o", out, "--disable_tta", "-npp", 0, "-nps", 0]
    nnunet.run("nnUNetv2_predict", "-d", number, "-c", configuration, "-f", 0, *chosen, *where, **tiny)
    files = ["-djfile", out / "dataset.json", "-pfile", out / "plans.json"]
    nnunet.run("nnUNetv2_evaluate_folder", raw / "labelsTs", out, *files, "-np", 1)
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    assert summary["foreground_mean"]["n_ref"] > 0


@pytest.mark.parametrize("trainer", TRAINERS)
def test_train_predict_evaluate(dataset, tiny, tmp_path, trainer):
    train_predict_evaluate(dataset, tiny, tmp_path, f"{trainer}Tiny", "tinyPlans")


@pytest.mark.parametrize("trainer", ["nnUNetTrainerTiny", "nnUNetTrainerDeconverTiny"])
def test_planned_for_deconver(dataset, tiny, tmp_path, trainer):
    """As planned, for a GPU that a CPU can stand in for."""
    nnunet, number, _, _ = dataset
    plans = "nnUNetDeconver1GBPlans"
    nnunet.run("nnunet-deconver", "plan", "-d", number, "--gpu-memory", 1)
    train_predict_evaluate(dataset, tiny, tmp_path, trainer, plans)
