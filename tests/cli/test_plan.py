import json

import pytest

from nnunet_deconver.cli import main

DATASET = "Dataset870_Plan"


@pytest.fixture
def folder(tmp_path, write_dataset, monkeypatch):
    """The preprocessed folder of a dataset with a fingerprint."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return write_dataset(tmp_path, DATASET, (24, 32, 32), (1, 1, 1))


def plan(*arguments) -> int:
    return main(["plan", "-d", "870", "--gpu-memory", "1", *arguments])


def test_plans_and_says_what_comes_next(folder, capsys):
    (folder / "nnUNetPlans_2d").mkdir()
    assert plan() == 0
    output = capsys.readouterr().out
    path = folder / "nnUNetDeconver1GBPlans.json"
    plans = json.loads(path.read_text())
    entry = plans["configurations"]["3d_fullres"]
    assert f"wrote {path}" in output
    (row,) = [line.split("  ") for line in output.splitlines() if line.startswith("3d_fullres")]
    cells = [cell.strip() for cell in row if cell]
    assert cells == [
        "3d_fullres",
        " x ".join(map(str, entry["patch_size"])),
        str(entry["batch_size"]),
        "1 x 1 x 1",
        str(entry["architecture"]["arch_kwargs"]["n_stages"]),
        "none",
        f"{plans['estimated_training_memory_GiB']['3d_fullres']:.2f}",
        "nnUNetPlans_3d_fullres (to be made)",
    ]
    assert output.split("next:\n")[1].splitlines() == [
        "    nnUNetv2_preprocess -d 870 -plans_name nnUNetDeconver1GBPlans -c 3d_fullres",
        "    nnunet-deconver summary -d 870 -p nnUNetDeconver1GBPlans -c 3d_fullres",
        "    nnUNetv2_train 870 3d_fullres 0 -p nnUNetDeconver1GBPlans -tr nnUNetTrainerDeconver",
    ]
    assert (
        entry["architecture"]["arch_kwargs"]["recompute"] == [False] * entry["architecture"]["arch_kwargs"]["n_stages"]
    )
    # nnU-Net's own talk is kept away.
    assert "configuration:" not in output


def test_a_network_that_is_built_for_its_patch_is_planned_for_one_that_it_takes(folder, capsys):
    assert main(["plan", "-d", "870", "--gpu-memory", "2", "--backbone", "unetr", "--upsampling", "dtc"]) == 0
    output = capsys.readouterr().out
    plans = json.loads((folder / "nnUNetUNETRDTC2GBPlans.json").read_text())
    entry = plans["configurations"]["3d_fullres"]
    # 24 x 32 x 32, and 24 is not divisible by 16.
    assert entry["patch_size"] == entry["architecture"]["arch_kwargs"]["network_kwargs"]["img_size"] == [32, 32, 32]
    assert entry["architecture"]["arch_kwargs"]["upsampling"] == {"name": "dtc"}
    # More than four numbers for each of its parameters, of the optimizer AdamW: 93 million.
    assert plans["estimated_training_memory_GiB"]["3d_fullres"] > 1.3
    assert output.splitlines()[-1].endswith("-p nnUNetUNETRDTC2GBPlans -tr nnUNetTrainerUNETR")


def test_mednext_is_planned_with_nnunets_stages(folder, capsys):
    assert plan("--backbone", "mednext-k5", "--upsampling", "dtc") == 0
    entry = json.loads((folder / "nnUNetMedNeXtk5DTC1GBPlans.json").read_text())["configurations"]["3d_fullres"]
    assert entry["architecture"]["network_class_name"] == "nnunet_deconver.networks.MedNeXt"
    arch_kwargs = entry["architecture"]["arch_kwargs"]
    assert arch_kwargs["upsampling"] == {"name": "dtc"}
    assert {extent for kernel in arch_kwargs["kernel_sizes"] for extent in kernel} == {5}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("-p nnUNetMedNeXtk5DTC1GBPlans -tr nnUNetTrainer_AdamWPoly1e3")


def test_a_backbone_that_has_no_layer_to_replace_is_named(folder, capsys):
    assert plan("--backbone", "unet-linear", "--upsampling", "dtc") == 2
    assert "upsampling 'dtc' cannot be put into BasicUNet" in capsys.readouterr().err
    assert not list(folder.glob("nnUNetUNet*"))


def test_other_plans_are_overwritten_on_demand_only(folder, capsys):
    choice = ["--backbone", "plain", "--plans-name", "mine"]
    assert plan(*choice) == 0
    path = folder / "mine.json"
    content = path.read_text()
    capsys.readouterr()

    assert plan(*choice) == 0
    assert f"unchanged: {path}" in capsys.readouterr().out

    assert plan(*choice, "--head", "nerdc") == 2
    error = capsys.readouterr().err
    assert f"{path} exists and has other settings; add --overwrite, or --plans-name another" in error
    assert path.read_text() == content

    assert plan(*choice, "--head", "nerdc", "--upsampling", "dtc", "--receptive-field", "4", "--overwrite") == 0
    output = capsys.readouterr().out
    assert f"wrote {path}" in output
    # nnU-Net's own trainer trains nnU-Net's own network.
    assert output.rstrip().endswith("nnUNetv2_train 870 3d_fullres 0 -p mine")
    arch_kwargs = json.loads(path.read_text())["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert arch_kwargs["upsampling"] == {"name": "dtc", "receptive_field": 4}
    assert arch_kwargs["segmentation_head"] == {"name": "nerdc"}
    assert sorted(found.name for found in folder.iterdir()) == ["dataset.json", "dataset_fingerprint.json", "mine.json"]


def test_what_is_computed_again_can_be_chosen(folder, capsys):
    def planned(name) -> tuple[dict, str]:
        (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("3d_fullres")]
        return json.loads((folder / f"{name}.json").read_text())["configurations"]["3d_fullres"], row

    assert plan("--plans-name", "always", "--recompute", "always") == 0
    always, row = planned("always")
    stages = range(always["architecture"]["arch_kwargs"]["n_stages"])
    assert always["architecture"]["arch_kwargs"]["recompute"] == "always"
    assert f"  {', '.join(map(str, stages))}  " in row
    assert plan("--plans-name", "never", "--recompute", "never") == 0
    never, row = planned("never")
    assert never["architecture"]["arch_kwargs"]["recompute"] == "never"
    assert "  none  " in row
    for key in ("patch_size", "batch_size"):
        assert never[key] == always[key]
    preset = "PresetIsles22Plans"
    assert plan("--preset", "isles22", "--recompute", "never") == 0
    assert planned(f"nnUNet{preset}")[0]["architecture"]["arch_kwargs"]["recompute"] == "never"


def test_a_preset_says_its_source_and_where_it_does_not_fit(folder, capsys):
    assert plan("--preset", "isles22") == 0
    output = capsys.readouterr().out
    plans = json.loads((folder / "nnUNetPresetIsles22Plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 8
    assert "isles22: Deconver for ISLES'22" in output
    assert "network: Deconver, arXiv 2504.00302" in output
    assert "printed: table I: 10.5 M parameters" in output
    assert "length: 500 epochs x 200 images (four fifths of 250 cases) / batch 8 = 12,500 iterations" in output
    assert output.rstrip().endswith(
        f"    nnunet-deconver evaluate --model $nnUNet_results/{DATASET}/nnUNetTrainerDeconver_paper_50epochs__"
        "nnUNetPresetIsles22Plans__3d_fullres -o evaluation_isles22 --like deconver"
    )
    assert "note: the dataset has 1 input channels, the preset's 2" in output
    assert "note: the patch [64, 64, 64] is larger than the median image [24, 32, 32]" in output
    assert "there is no trainer" not in output
    memory = plans["estimated_training_memory_GiB"]["3d_fullres"]
    assert f"note: 3d_fullres takes {memory:.2f} GiB, more than the 1 asked for" in output


def test_a_preset_of_ones_own_is_trained_as_long_as_it_says(folder, capsys, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": "isles22", "title": "Mine", "batch_size": 2}))
    assert plan("--preset", str(path)) == 0
    output = capsys.readouterr().out
    assert "500 epochs x 200 images (four fifths of 250 cases) / batch 2 = 50,000 iterations = 200 nnU-Net" in output
    assert "-tr nnUNetTrainerDeconver_paper_200epochs" in output and "note: there is no trainer" not in output


def untouched(folder) -> bool:
    return [path.name for path in folder.iterdir()] == ["dataset_fingerprint.json"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gpu-memory", "0"], "--gpu-memory 0.0: must be a positive number of GiB"),
        (["--gpu-memory", "nan"], "must be a positive number of GiB"),
        (["--gpu-memory", "inf"], "must be a positive number of GiB"),
        (["--preset", "isles23"], "preset 'isles23' is neither one of"),
        (["--preset", "isles22", "--head", "nerdc"], "leave --backbone, --upsampling, --head and --recipe out"),
        (["--backbone", "vit"], "backbone 'vit' is unknown; known are deconver, plain, residual"),
        (["--upsampling", "cubic"], "--upsampling cubic: upsampling 'cubic' is unknown"),
        (["--upsampling", "dtc", "--receptive-field", "0"], "--receptive-field 0: must be a positive number or inf"),
        (["--head", "nerd"], "--head nerd: segmentation_head 'nerd' is unknown"),
        (["--receptive-field", "3"], "goes with --upsampling dtc"),
        (["--recompute", "sometimes"], "recompute 'sometimes' is unknown; known are auto, always, never"),
        (["--backbone", "plain", "--recompute", "never"], "recompute 'never': only Deconver computes again"),
        (["--plans-name", "my__plans"], "without '__', on which nnU-Net splits names; got 'my__plans'"),
        (["--plans-name", "my\nplans"], "a plans name is made of letters, digits"),
        (["--plans-name", "dataset"], "dataset.json is another file of nnU-Net"),
        (["-d", "871"], "--dataset 871: "),
        (["-d", "Dataset871_Other"], "--dataset Dataset871_Other: nnU-Net finds no such dataset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(folder, capsys, arguments, message):
    assert plan(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out
    assert untouched(folder)


def test_a_target_too_small(folder, capsys):
    assert plan("--gpu-memory", "0.01") == 2
    assert "the GPU memory target of 0.01 GiB is too small" in capsys.readouterr().err
    assert not list(folder.glob("*Plans.json"))


def test_an_invalid_preset_file(folder, capsys, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("{}")
    assert plan("--preset", str(path)) == 2
    assert "mine.json is not valid: " in capsys.readouterr().err
    assert untouched(folder)


def test_no_fingerprint(folder, capsys):
    (folder / "dataset_fingerprint.json").unlink()
    assert plan() == 2
    assert "run: nnUNetv2_extract_fingerprint -d 870" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_no_raw_dataset(folder, capsys, tmp_path):
    (tmp_path / "raw" / DATASET / "dataset.json").unlink()
    assert plan() == 2
    assert f"{DATASET}/dataset.json: no such file; planning reads" in capsys.readouterr().err


def test_plans_that_are_not_json(folder, capsys):
    path = folder / "mine.json"
    path.write_text("{")
    assert plan("--plans-name", "mine") == 2
    assert f"{path}: is not JSON" in capsys.readouterr().err
    assert path.read_text() == "{"


@pytest.mark.parametrize("name", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_variables(folder, capsys, name, monkeypatch):
    monkeypatch.setenv(name, str(folder / "nowhere"))
    assert plan() == 2
    assert f"the variable {name} is {folder / 'nowhere'}, which is not a folder" in capsys.readouterr().err
    monkeypatch.delenv(name)
    assert plan() == 2
    assert f"the variable {name} is not set; run: export {name}=" in capsys.readouterr().err
