"""A person's commands on tiny data: nnU-Net's own, with our trainers or our plans."""

import json
import shutil
from pathlib import Path

import nnunetv2
import numpy as np
import pytest
import torch

from nnunet_deconver.networks.architecture import DECONVER, deconver_architecture
from nnunet_deconver.networks.backbones import with_components
from nnunet_deconver.ops.cpu_kernels import compiled_kernels
from nnunet_deconver.recipes import warmup_cosine

pytestmark = pytest.mark.slow


def checkpoint(model: Path) -> dict:
    return torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)


def deconver_plans(nnunet, number: int, name: str, **axes) -> Path:
    """A plans file that names our network instead of nnU-Net's."""
    plans = json.loads(nnunet.plans(number, "tinyPlans").read_text())
    plans["plans_name"] = name
    for configuration in plans["configurations"].values():
        configuration["architecture"] = with_components(deconver_architecture(configuration["architecture"]), **axes)
    path = nnunet.plans(number, name)
    path.write_text(json.dumps(plans))
    return path


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_train_predict_evaluate_with_the_variable_alone(nnunet, warm, tiny, tmp_path, configuration):
    commands = nnunet if configuration == "3d_fullres" else warm
    trainer = "nnUNetTrainerDeconver_k5Tiny" if configuration == "2d" else "nnUNetTrainerDeconverTiny"
    _, model = commands.train(901, trainer, configuration=configuration, **tiny)
    assert any(key.endswith("ndc.filter") for key in checkpoint(model)["network_weights"])
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1

    prediction = commands.predict(901, trainer, tmp_path, configuration=configuration, **tiny)
    assert prediction.shape == (20, 20, 20)
    assert set(np.unique(prediction)) <= {0, 1, 2}
    raw = nnunet.raw / "Dataset901_Tiny"
    files = ["-djfile", tmp_path / "dataset.json", "-pfile", tmp_path / "plans.json"]
    commands.run("nnUNetv2_evaluate_folder", raw / "labelsTs", tmp_path, *files, "-np", 1)
    assert json.loads((tmp_path / "summary.json").read_text())["foreground_mean"]["TP"] >= 0


@pytest.fixture
def path(tmp_path) -> dict[str, str]:
    """The variable that lets commands use a copy of nnU-Net, so that the installed one stays as it is."""
    copy = tmp_path / "site" / "nnunetv2"
    shutil.copytree(nnunetv2.__path__[0], copy, ignore=shutil.ignore_patterns("nnunet_deconver_*"))
    return {"PYTHONPATH": str(copy.parent)}


def test_register_makes_the_commands_find_our_trainers(nnunet, path):
    plans = json.loads(nnunet.plans(901, "tinyPlans").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 18, 16]
    nnunet.plans(901, "oddPlans").write_text(json.dumps(plans | {"plans_name": "oddPlans"}))

    nnunet.run("nnunet-deconver", "register", **path)
    # Found, and it says what is wrong with this plan before it makes a folder.
    output, model = nnunet.train(901, "nnUNetTrainerDeconver", plans="oddPlans", returncode=1, **path)
    assert "(16, 18, 16) must be divisible by" in output
    assert not model.exists()
    nnunet.run("nnunet-deconver", "unregister", **path)
    output, _ = nnunet.train(901, "nnUNetTrainerDeconver", returncode=1, **path)
    assert "Could not find requested nnunet trainer nnUNetTrainerDeconver" in output


FIND_PLANNERS = """
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunet_deconver import plans
folder = nnunetv2.__path__[0] + "/experiment_planning"
found = [recursive_find_python_class(folder, n, "nnunetv2.experiment_planning") for n in plans.__all__]
assert found == [getattr(plans, name) for name in plans.__all__]
"""


def test_register_makes_the_commands_find_our_planners(nnunet, path):
    plans = nnunet.plans(901, "nnUNetDeconverNeRDcPlans")
    choice = ["-d", 901, "-pl", "nnUNetPlannerDeconverNeRDc", "-gpu_memory_target", 1]
    nnunet.run("nnUNetv2_plan_experiment", *choice, returncode=1, **path)
    assert not plans.exists()
    nnunet.run("nnunet-deconver", "register", **path)
    nnunet.run("python", "-c", FIND_PLANNERS, **path)
    nnunet.run("nnUNetv2_plan_experiment", *choice, **path)
    entry = json.loads(plans.read_text())["configurations"]["3d_fullres"]
    assert entry["architecture"]["network_class_name"] == DECONVER
    assert entry["data_identifier"] == "nnUNetPlans_3d_fullres"
    plans.unlink()


def test_a_model_with_larger_kernels_is_trained_on(warm, tiny, tmp_path):
    """As docs/components.md says: upgraded plans under a name of their own, and its weights as pretrained ones."""
    deconver_plans(warm, 901, "k3Plans")
    _, small = warm.train(901, "nnUNetTrainerTiny", plans="k3Plans", **tiny)
    upgraded = tmp_path / "upgraded"
    weights = upgraded / "fold_0" / "checkpoint_final.pth"
    options = [small / "fold_0" / "checkpoint_final.pth", "--kernel", 5, "-o", upgraded]
    warm.run("nnunet-deconver", "upgrade-checkpoint", *options)
    plans = json.loads((upgraded / "plans.json").read_text()) | {"plans_name": "k5Plans"}
    warm.plans(901, "k5Plans").write_text(json.dumps(plans))
    output, large = warm.train(901, "nnUNetTrainerTiny", "-pretrained_weights", weights, plans="k5Plans", **tiny)
    assert "Loading pretrained weights" in output
    filters = [
        {key: weight for key, weight in checkpoint(model)["network_weights"].items() if key.endswith("ndc.filter")}
        for model in (small, large)
    ]
    assert filters[0].keys() == filters[1].keys()
    for key, before in filters[0].items():
        ring = filters[1][key].clone()
        ring[..., 1:4, 1:4, 1:4] = 0
        assert before.shape[2:] == (3, 3, 3) and ring.shape[2:] == (5, 5, 5)
        assert ring.abs().max() > 1e-10, key  # they have learned


def test_plan_preprocess_train_predict(nnunet, warm, tiny, tmp_path):
    """What `nnunet-deconver plan` says comes next, with nnU-Net's trainer and ours; no 2D data is there yet."""
    name = "nnUNetDeconverDTC1GBPlans"
    output = nnunet.run("nnunet-deconver", "plan", "-d", 902, "--upsampling", "dtc", "--gpu-memory", 1)
    (command,) = [line.split() for line in output.splitlines() if "nnUNetv2_preprocess" in line]
    assert command[1:] == ["-d", "902", "-plans_name", name, "-c", "2d"]
    nnunet.run(*command, "-np", 1)
    assert (nnunet.preprocessed / "Dataset902_Tiny" / "nnUNetPlans_2d").is_dir()
    for commands, trainer, configuration in (
        (warm, "nnUNetTrainerTiny", "3d_fullres"),
        (nnunet, "nnUNetTrainerDeconverTiny", "2d"),
    ):
        commands.run("nnunet-deconver", "summary", "-d", 902, "-p", name, "-c", configuration, "-tr", trainer, **tiny)
        _, model = commands.train(902, trainer, configuration=configuration, plans=name, **tiny)
        weights = checkpoint(model)["network_weights"]
        for part in ("ndc.filter", "transpconvs.0.offset.weight"):
            assert any(key.endswith(part) for key in weights), part
        out = tmp_path / configuration
        options = {"configuration": configuration, "plans": name, **tiny}
        prediction = commands.predict(902, trainer, out, "-npp", 0, "-nps", 0, **options)
        assert prediction.shape == (20, 20, 20)


def test_the_stock_trainer_trains_and_predicts_from_plans_that_name_deconver(nnunet, warm, tmp_path):
    """Deconver + DTC + NeRDc, with no variable set and nothing registered."""
    axes = {"upsampling": {"name": "dtc", "receptive_field": "inf"}, "segmentation_head": {"name": "nerdc"}}
    deconver_plans(nnunet, 901, "deconverPlans", **axes)
    output, model = nnunet.train(901, "nnUNetTrainer_1epoch", plans="deconverPlans")
    assert DECONVER in output
    weights = checkpoint(model)["network_weights"]
    for part in ("ndc.filter", "transpconvs.0.offset.weight", "seg_layers.0.classifier.weight"):
        assert any(key.endswith(part) for key in weights), part
    # 250 iterations solve this task; a network that learns nothing finds nothing
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] > 0.5

    # Trained by the compiled kernels, it predicts the same without them: PyTorch is told that the processor has none of
    # the instructions that they need.
    probabilities = []
    for commands, name, capability in (
        (warm, "compiled", {}),
        (nnunet, "plain", {"ATEN_CPU_CAPABILITY": "default"}),
    ):
        out = tmp_path / name
        arguments = [901, "nnUNetTrainer_1epoch", out, "--save_probabilities", "-npp", 0, "-nps", 0]
        assert commands.predict(*arguments, plans="deconverPlans", **capability).shape == (20, 20, 20)
        if "avx2" in compiled_kernels():
            assert ("slower plain path" in commands.output) == (name == "plain")
        with np.load(out / "case_5.npz") as saved:
            probabilities.append(saved["probabilities"].astype(np.float32))
    assert np.abs(probabilities[0] - probabilities[1]).max() < 1e-3


@pytest.mark.parametrize("trainer, configuration", [("DTC", "3d_fullres"), ("NeRDm", "2d"), ("NeRDc", "3d_fullres")])
def test_trainers_of_the_axes(warm, tiny, tmp_path, trainer, configuration):
    trainer = f"nnUNetTrainer{trainer}Tiny"
    _, model = warm.train(901, trainer, configuration=configuration, **tiny)
    assert json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["metric_per_case"]
    prediction = warm.predict(901, trainer, tmp_path, configuration=configuration, **tiny)
    assert prediction.shape == (20, 20, 20)


def test_regions(warm, tiny, tmp_path):
    _, model = warm.train(902, "nnUNetTrainerDeconverTiny", **tiny)
    weights = checkpoint(model)["network_weights"]
    assert weights["decoder.seg_layers.1.weight"].shape[0] == 2  # whole and lesion, no background
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", "2"}
    assert set(np.unique(warm.predict(902, "nnUNetTrainerDeconverTiny", tmp_path, **tiny))) <= {0, 1, 2}


def test_ignore_label(warm, tiny, tmp_path):
    _, model = warm.train(903, "nnUNetTrainerDeconverTiny", **tiny)
    weights = checkpoint(model)["network_weights"]
    assert weights["decoder.seg_layers.1.weight"].shape[0] == 3  # background, organ, lesion
    assert np.isfinite(checkpoint(model)["logging"]["train_losses"]).all()
    assert 3 not in np.unique(warm.predict(903, "nnUNetTrainerDeconverTiny", tmp_path, **tiny))


def test_cascade(nnunet, warm, tiny):
    """Low resolution first; the second stage reads its predictions as two more channels."""
    plans = json.loads(nnunet.plans(901, "tinyPlans").read_text())
    plans["plans_name"] = "cascadePlans"
    full = plans["configurations"]["3d_fullres"]
    low = json.loads(json.dumps(full)) | {
        "data_identifier": "cascadePlans_3d_lowres",
        "spacing": [s * 1.25 for s in full["spacing"]],
        "median_image_size_in_voxels": [16, 16, 16],
        "next_stage": "3d_cascade_fullres",
    }
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"] = {"3d_fullres": full, "3d_lowres": low, "3d_cascade_fullres": cascade}
    nnunet.plans(901, "cascadePlans").write_text(json.dumps(plans))
    warm.run("nnUNetv2_preprocess", "-d", 901, "-plans_name", "cascadePlans", "-c", "3d_lowres", "-np", 1)
    trainer = "nnUNetTrainerDeconverTiny"
    # Every training case needs a prediction of the first stage, which nnU-Net makes for validation cases alone.
    split = nnunet.preprocessed / "Dataset901_Tiny" / "splits_final.json"
    before = split.read_text() if split.exists() else None
    cases = [f"case_{i}" for i in range(5)]
    split.write_text(json.dumps([{"train": cases, "val": cases}]))
    try:
        warm.train(901, trainer, configuration="3d_lowres", plans="cascadePlans", **tiny)
        _, model = nnunet.train(901, trainer, configuration="3d_cascade_fullres", plans="cascadePlans", **tiny)
    finally:
        split.unlink()
        if before is not None:
            split.write_text(before)
    assert checkpoint(model)["network_weights"]["encoder.stem.weight"].shape[1] == 3


def test_a_killed_training_continues_exactly(nnunet, warm, tiny):
    """Killed in epoch 25 of 60, continued from epoch 20: the schedule and epoch count of one that was not."""
    trainer = "nnUNetTrainerDeconverTinyLong"
    _, model = warm.train(901, trainer, TINY_DIES_IN="25", returncode=-9, **tiny)
    assert not (model / "fold_0" / "checkpoint_final.pth").exists()
    output, _ = nnunet.train(901, trainer, "--c", **tiny)
    assert "Epoch 19" not in output
    assert "Epoch 20" in output
    final = checkpoint(model)
    assert final["current_epoch"] == 60
    assert final["logging"]["lrs"] == pytest.approx([1e-4 * warmup_cosine(epoch, 60) for epoch in range(60)])
    assert len(final["logging"]["train_losses"]) == 60
    # 60 epochs of one iteration, none lost and none twice
    steps = {state["step"].item() for state in final["optimizer_state"]["state"].values()}
    assert steps == {60}


def test_a_loss_that_is_not_finite_stops_the_run(warm, tiny):
    output, model = warm.train(901, "nnUNetTrainerDeconverTinyDiverging", returncode=1, **tiny)
    assert "the training loss became" in output
    assert "lower it: class attribute learning_rate of nnUNetTrainerDeconverTinyDiverging" in output
    assert not (model / "fold_0" / "checkpoint_final.pth").exists()
