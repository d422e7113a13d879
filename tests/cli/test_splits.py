import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver.cli import main

DATASET = "Dataset872_Splits"


@pytest.fixture
def folder(tmp_path, write_dataset, monkeypatch):
    """The preprocessed folder of a dataset of 12 cases, with lesions of 1 to 12 voxels."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = write_dataset(tmp_path, DATASET, (4, 4, 4), (1, 1, 1))
    for name in ("imagesTr", "labelsTr"):
        for path in (tmp_path / "raw" / DATASET / name).iterdir():
            path.unlink()
    for case in range(12):
        label = np.zeros(64, np.uint8)
        label[: case + 1] = 1
        image = sitk.GetImageFromArray(label.reshape(4, 4, 4))
        sitk.WriteImage(image, str(tmp_path / "raw" / DATASET / "labelsTr" / f"c{case:02}.nii.gz"))
        sitk.WriteImage(image, str(tmp_path / "raw" / DATASET / "imagesTr" / f"c{case:02}_0000.nii.gz"))
    return folder


def splits(*arguments) -> int:
    return main(["splits", "-d", "872", *arguments])


def test_folds_by_volume(folder, capsys):
    assert splits("--folds", "3") == 0
    output = capsys.readouterr().out
    path = folder / "splits_final.json"
    found = json.loads(path.read_text())
    assert f"wrote {path}" in output
    assert [len(split["val"]) for split in found] == [4, 4, 4]
    # One case of each quarter in each fold.
    assert all({int(case[1:]) // 3 for case in split["val"]} == {0, 1, 2, 3} for split in found)
    mean = sum(int(case[1:]) + 1 for case in found[2]["val"]) / 4
    assert output.splitlines()[-1].split()[:4] == ["2", "8", "4", f"{mean:.4g}"]

    assert splits("--folds", "3") == 0
    assert f"unchanged: {path}" in capsys.readouterr().out
    assert splits("--folds", "3", "--seed", "7") == 2
    assert f"{path} exists and has other folds; add --overwrite" in capsys.readouterr().err
    assert splits("--folds", "3", "--seed", "7", "--overwrite") == 0
    assert json.loads(path.read_text()) != found


def test_folds_by_a_column(folder, capsys, tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("case,site\n" + "".join(f"c{case:02},{'AB'[case % 3 == 0]}\n" for case in range(12)))
    assert splits("--by", str(table), "--folds", "4", "--column", "site") == 0
    assert [line.split()[3:] for line in capsys.readouterr().out.splitlines()[-4:]] == [["A:", "2,", "B:", "1"]] * 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--folds", "1"], "--folds 1: must be 2 to 12, the number of cases"),
        (["--seed", "-1"], "--seed -1: must be"),
        (["--by", "size"], "size: no such file"),
        (["--column", "site"], "--column site goes with --by FILE.csv"),
        (["-d", "873"], "--dataset 873: "),
    ],
    ids=str,
)
def test_bad_input(folder, capsys, arguments, message):
    assert splits(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out
    assert not (folder / "splits_final.json").exists()


def test_models_that_were_trained_stop_it(folder, capsys, tmp_path):
    (tmp_path / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0").mkdir(parents=True)
    assert splits("--overwrite") == 2
    assert "models were trained on other folds" in capsys.readouterr().err
    assert not (folder / "splits_final.json").exists()


def test_no_fingerprint_yet(folder, capsys):
    (folder / "dataset_fingerprint.json").unlink()
    folder.rmdir()
    assert splits() == 2
    assert "run: nnUNetv2_extract_fingerprint -d 872" in capsys.readouterr().err
