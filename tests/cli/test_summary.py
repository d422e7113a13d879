import json
import math
import sys

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from PIL import Image

from nnunet_deconver.cli import main
from nnunet_deconver.networks.architecture import deconver_architecture

DATASET = "Dataset880_Summary"
DEFAULT = "nnU-Net's PlainConvUNet"


@pytest.fixture(scope="module")
def planned(tmp_path_factory, write_dataset):
    """A dataset planned by nnU-Net and for Deconver, nothing preprocessed; its preprocessed folder."""
    root = tmp_path_factory.mktemp("summary")
    folder = write_dataset(root, DATASET, (24, 32, 32), (1, 1, 1), channels=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(root / "raw"))
        patch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
        ExperimentPlanner(880).plan_experiment()
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["plans_name"] = "deconverPlans"
    for entry in plans["configurations"].values():
        entry["architecture"] = deconver_architecture(entry["architecture"])
    (folder / "deconverPlans.json").write_text(json.dumps(plans))
    return folder


@pytest.fixture
def folder(planned, monkeypatch):
    """All that a summary has to go by."""
    monkeypatch.setenv("nnUNet_preprocessed", str(planned.parent))
    for variable in ("nnUNet_raw", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return planned


def summary(*arguments) -> int:
    return main(["summary", *arguments])


def rows(output: str, header: str) -> dict[str, list[str]]:
    """The cells of the table whose first column has that header, by the first."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{header}  "))
    width = len(lines[start + 1].split("  ")[0])
    table = {}
    for line in lines[start + 2 :]:
        if not line:
            break
        table[line[:width].strip()] = [cell.strip() for cell in line[width:].split("  ") if cell.strip()]
    return table


def test_a_planned_network_beside_nnunets(folder, capsys):
    assert summary("-d", "880", "-p", "deconverPlans", "-tr", "nnUNetTrainerDeconver") == 0
    output = capsys.readouterr().out
    assert "patch 24 x 32 x 32, batch " in output
    stages = rows(output, "stage")
    assert list(stages)[:2] == ["encoder 0", "encoder 1"]
    assert list(stages)[-2:] == ["decoder 0", "heads"]
    assert stages["encoder 0"][:2] == ["24 x 32 x 32", "32"]
    networks = rows(output, "network")
    assert list(networks) == ["nnUNetTrainerDeconver", DEFAULT]
    parameters = sum(int(cells[-3].replace(",", "")) for name, cells in stages.items() if name != "heads")
    assert float(networks["nnUNetTrainerDeconver"][0]) == pytest.approx(parameters / 1e6, abs=0.02)
    # with the updates' convolutions, and without in brackets
    assert "(" in networks["nnUNetTrainerDeconver"][1]
    assert "(" not in networks[DEFAULT][1]
    step, without = (float(cell.replace(",", "")) for cell in networks["nnUNetTrainerDeconver"][2:4])
    assert step > without > 0
    assert networks[DEFAULT][2] == networks[DEFAULT][3]


def test_json(folder, capsys):
    arguments = ["-d", DATASET, "-p", "deconverPlans", "-c", "2d", "--batch-size", "2", "--json"]
    assert summary(*arguments, "-tr", "nnUNetTrainerDeconver") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["nnUNetTrainerDeconver", DEFAULT]
    ours = found["nnUNetTrainerDeconver"]
    assert ours["patch_size"] == [32, 32]
    assert ours["batch_size"] == 2
    assert sum(stage["parameters"] for stage in ours["stages"]) == ours["parameters"]
    assert ours["flops_per_voxel"] == ours["flops"] / math.prod(ours["patch_size"])
    assert ours["flops_per_voxel_without_ndc"] == (ours["flops"] - ours["ndc_flops"]) / math.prod(ours["patch_size"])
    assert ours["training_flops"] > ours["training_flops_without_recomputation"] > 3 * ours["flops"]
    of_default = found[DEFAULT]["training_flops"], found[DEFAULT]["training_flops_without_recomputation"]
    assert of_default[0] == of_default[1] > 0
    # AdamW keeps two numbers per parameter (and a count), SGD one.
    assert ours["memory"]["optimizer"] > 2 * ours["memory"]["parameters"]
    assert found[DEFAULT]["memory"]["optimizer"] == found[DEFAULT]["memory"]["parameters"]

    assert summary(*arguments, "--patch-size", "64", "64") == 0
    larger = json.loads(capsys.readouterr().out)["nnUNetTrainer"]
    assert larger["patch_size"] == [64, 64]
    assert larger["parameters"] == ours["parameters"]
    assert larger["flops"] == 4 * ours["flops"]
    assert larger["memory"]["peak"] > ours["memory"]["peak"]


def test_nnunets_own_network_is_not_shown_twice(folder, capsys):
    assert summary("-d", "880", "-c", "2d") == 0
    assert list(rows(capsys.readouterr().out, "network")) == ["nnUNetTrainer"]


def test_trainers_are_compared(folder, capsys):
    trainers = ["nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDeconverNeRDc", "nnUNetTrainerSegResNet"]
    assert summary("-d", "880", "-c", "2d", "--compare", *trainers) == 0
    output = capsys.readouterr().out
    assert list(rows(output, "network")) == trainers
    assert "encoder 0" not in output


def test_a_plans_file_alone(folder, capsys, monkeypatch, tmp_path):
    """As in the folder of a trained model, with no variable set."""
    monkeypatch.delenv("nnUNet_preprocessed")
    for source, name in (("deconverPlans.json", "plans.json"), ("dataset.json", "dataset.json")):
        (tmp_path / name).write_text((folder / source).read_text())
    assert summary("--plans-file", str(tmp_path / "plans.json"), "-c", "2d", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)) == ["nnUNetTrainer", DEFAULT]


def test_a_preset(capsys, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    assert summary("--preset", "isles22", "--batch-size", "2") == 0
    networks = rows(capsys.readouterr().out, "network")
    assert list(networks) == ["isles22", DEFAULT]
    # The paper's 10.48 M and two further heads; its FLOPs, and those of the updates.
    assert networks["isles22"][:2] == ["10.48", "707.4 (597.9)"]


@pytest.mark.parametrize("suffix, begins", [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_plot(folder, capsys, tmp_path, suffix, begins):
    path = tmp_path / f"plot{suffix}"
    assert summary("-d", "880", "-c", "2d", "--batch-size", "2", "--plot", str(path)) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    assert path.read_bytes().startswith(begins)
    if suffix == ".png":
        assert min(Image.open(path).size) > 500


def test_no_cuda_is_asked_for(folder, monkeypatch):
    import torch

    def refuse(*args, **kwargs):
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    assert summary("-d", "880", "-c", "2d") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-d", "880", "-p", "missingPlans"], "missingPlans.json: no such file; make it with nnUNetv2_plan_experiment"),
        (["-d", "880", "-c", "3d_lowres"], "--configuration 3d_lowres: "),
        (["-d", "880", "-tr", "nnUNetTrainerNowhere"], "nnU-Net finds no such trainer"),
        (["-d", "880", "--compare", "nnUNetTrainer", "nnUNetTrainerNowhere"], "--trainer nnUNetTrainerNowhere"),
        (["-d", "880", "-tr", "nnUNetTrainer_warmup", "-c", "2d"], "its optimizer cannot be made without training"),
        (["-d", "880", "-p", "deconverPlans", "-c", "2d", "--patch-size", "31", "32"], "must be divisible"),
        (["-d", "880", "-c", "2d", "--patch-size", "32"], "cannot be counted on patches of 32: "),
        (["-d", "880", "--patch-size", "0", "32", "32"], "--patch-size 0 32 32: must be positive"),
        (["-d", "880", "--batch-size", "0"], "--batch-size 0: must be positive"),
        (["-d", "881"], "--dataset 881: "),
        (["--preset", "isles23"], "--preset isles23: preset 'isles23' is neither one of"),
        (["--preset", "isles22", "-tr", "nnUNetTrainerDeconver"], "leave --compare and --trainer out"),
        (["--preset", "btcv-dtc"], "nnunet-deconver summary -d D -p nnUNetPresetBtcvDtcPlans"),
        (["--preset", "isic-unet-tc"], "--preset isic-unet-tc: batch is not published; add --batch-size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(folder, capsys, arguments, message):
    assert summary(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    # Not behind a progress bar.
    assert captured.err.rpartition("\r")[2].startswith("nnunet-deconver: error: ")
    assert not captured.out


@pytest.mark.parametrize("name", ["plot.jpg", "plot", "missing/plot.png"])
def test_bad_plots(folder, capsys, tmp_path, name):
    assert summary("-d", "880", "--plot", str(tmp_path / name)) == 2
    assert f"--plot {tmp_path / name}: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_variables(folder, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert summary("-d", "880") == 2
    assert "the variable nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_a_plans_file_without_its_dataset(folder, capsys, tmp_path):
    path = tmp_path / "plans.json"
    path.write_text((folder / "deconverPlans.json").read_text())
    assert summary("--plans-file", str(path)) == 2
    assert f"{tmp_path / 'dataset.json'}: no such file; it lies beside the plans" in capsys.readouterr().err
    path.write_text("{")
    assert summary("--plans-file", str(path)) == 2
    assert f"{path}: is not JSON" in capsys.readouterr().err


def test_one_of_dataset_file_and_preset():
    with pytest.raises(SystemExit) as left:
        summary()
    assert left.value.code == 2
    with pytest.raises(SystemExit) as left:
        summary("-d", "880", "--preset", "isles22")
    assert left.value.code == 2
    assert "nnunet_deconver.cli.summary" in sys.modules
