"""Everything that is missing is found before anything is trained."""

import json
import shutil

import pytest

from nnunet_deconver.cli import main
from nnunet_deconver.errors import InputError
from nnunet_deconver.studies.checks import check_study
from nnunet_deconver.studies.resources import gpu_of, training_resources
from nnunet_deconver.studies.study import make_study
from nnunet_deconver.studies.tasks import TRAIN, Task, Workspace


@pytest.fixture
def check(folders, content):
    def run(**changes):
        check_study(Workspace.of(make_study(content | changes, "here"), folders / "out"))
        assert not (folders / "out").exists() and not any((folders / "results").rglob("fold_*"))

    return run


def preprocessed(folders):
    return folders / "preprocessed" / "Dataset910_Test"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_complete_passes(check):
    check(datasets=[910, 911], equal=["time"], metrics=["dice", "hd95"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainers": ["nnUNetTrainerNone"]}, "trainer nnUNetTrainerNone: nnU-Net finds no such trainer"),
        ({"plans": ["otherPlans"]}, "otherPlans.json: no such file; make it with nnUNetv2_plan_experiment"),
        ({"configurations": ["2d"]}, "has no configuration 2d; it has test"),
        ({"folds": [0, 3]}, "folds: 3 not there: .* has 3, 0 to 2"),
        ({"metrics": ["dise"]}, "metrics: must be among dice, .*, got dise"),
        ({"like": "wmh", "metrics": ["brats_dice"]}, "got brats_dice"),
    ],
)
def test_what_a_study_names_must_be_there(check, changes, message):
    with pytest.raises(InputError, match=message):
        check(**changes)


def test_a_dataset_that_is_not_preprocessed(check, folders):
    shutil.rmtree(preprocessed(folders) / "testPlans_test")
    with pytest.raises(InputError, match="run: nnUNetv2_preprocess -d 910 -plans_name testPlans -c test"):
        check()
    shutil.rmtree(preprocessed(folders))
    with pytest.raises(InputError, match="run: nnUNetv2_plan_and_preprocess -d 910"):
        check()


def test_cases_without_truth_or_data(check, folders):
    (preprocessed(folders) / "gt_segmentations" / "case_3.nii.gz").unlink()
    with pytest.raises(InputError, match="gt_segmentations: has no truth of: case_3"):
        check()
    (preprocessed(folders) / "testPlans_test" / "case_4.pkl").unlink()
    with pytest.raises(InputError, match="has no preprocessed: case_4"):
        check()


def test_test_images_without_truth(check, folders):
    raw = folders / "raw" / "Dataset910_Test"
    shutil.copy(raw / "imagesTs" / "case_9_0000.nii.gz", raw / "imagesTs" / "case_8_0000.nii.gz")
    with pytest.raises(InputError, match="labelsTs: has no truth of the test images: case_8"):
        check()


def test_folds_that_share_cases(check, folders):
    splits = preprocessed(folders) / "splits_final.json"
    edit(splits, lambda content: content[1]["val"].append("case_0"))
    with pytest.raises(InputError, match=r"share cases for validation \(case_0\)"):
        check()
    edit(splits, lambda content: content[1]["train"].append("case_2"))
    with pytest.raises(InputError, match=r"validates cases it trains on \(case_0, case_2\)"):
        check(folds=[1])
    splits.write_text('[{"train": []}]')
    with pytest.raises(InputError, match="each with the lists train and val"):
        check(folds=[0])


def test_nnunets_folds_are_made_once(check, folders):
    """Trainings that begin at the same time would all make them."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    path = preprocessed(folders) / "splits_final.json"
    path.unlink()
    check(folds=[0, 4])
    cases = [f"case_{number}" for number in range(6)]
    expected = generate_crossval_split(cases, seed=12345, n_splits=5)
    assert json.loads(path.read_text()) == json.loads(json.dumps(expected, default=str))


def test_models_of_other_plans_are_not_taken_for_done(check, folders, content):
    made = Workspace.of(make_study(content, "here"), folders / "out")
    model = made.model_folder(Task(TRAIN, "Dataset910_Test", "ours", "iterations", 1, 0))
    (model / "fold_0").mkdir(parents=True)
    shutil.copy(preprocessed(folders) / "testPlans.json", model / "plans.json")
    check_study(made)
    edit(model / "plans.json", lambda plans: plans["configurations"]["test"].update(batch_size=3))
    with pytest.raises(InputError, match="was trained with other plans than testPlans are now"):
        check_study(made)


def test_the_second_stage_of_a_cascade(check, folders):
    def cascade(plans):
        first = plans["configurations"]["test"]
        plans["configurations"]["second"] = first | {"previous_stage": "test"}

    edit(preprocessed(folders) / "testPlans.json", cascade)
    with pytest.raises(InputError, match="is the second stage of a cascade"):
        check(configurations=["second"])


def test_all_problems_are_named_at_once(check, folders):
    (folders / "raw" / "Dataset910_Test" / "labelsTs" / "case_9.nii.gz").rename(folders / "x.nii.gz")
    (folders / "raw" / "Dataset910_Test" / "labelsTs" / "other.nii.gz").touch()
    with pytest.raises(InputError) as error:
        check(trainers=["nnUNetTrainerNone", "nnUNetTrainer"], metrics=["dise"])
    assert str(error.value).startswith("the study cannot be run:")
    assert all(word in str(error.value) for word in ("nnUNetTrainerNone", "dise", "case_9"))


def test_a_cluster_without_slurm(folders, content, monkeypatch, capsys):
    path = folders / "study.toml"
    path.write_text(
        'datasets = [910]\ntrainers = ["nnUNetTrainer"]\nplans = ["testPlans"]\nconfigurations = ["test"]\n'
    )
    monkeypatch.setenv("PATH", str(folders / "bin"))
    assert main(["study", str(path), "--engine", "slurm"]) == 2
    assert "sbatch, squeue, scontrol not found, so there is no SLURM here" in capsys.readouterr().err
    (folders / "bin").mkdir()
    for name, text in (("sbatch", ""), ("scontrol", ""), ("squeue", "echo no controller >&2; exit 1")):
        (folders / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folders / "bin" / name).chmod(0o755)
    assert main(["study", str(path), "--engine", "slurm"]) == 2
    assert "SLURM does not answer (no controller)" in capsys.readouterr().err
    assert not (folders / "study").exists()


def test_what_a_training_is_given(folders, content):
    gpu = Workspace.of(make_study(content | {"device": "cuda"}, "here"), folders / "out")
    few, many = (training_resources(gpu, "Dataset910_Test", "ours", loaders) for loaders in (2, 12))
    assert few.gpu_memory == many.gpu_memory > 1.5 * 2**30
    # A loader more takes half a GiB and three copies of a batch of 16^3 voxels, an image and its labels each.
    assert many.memory - few.memory == pytest.approx(10 * (2**29 + 3 * 4 * 2 * 2 * 16**3))
    cpu = Workspace.of(make_study(content, "here"), folders / "out")
    assert training_resources(cpu, "Dataset910_Test", "ours", 2).gpu_memory == 0
    # A case of 20 x 30 x 40 voxels of 2 mm and two classes, resampled to 1 mm.
    larger = json.loads((preprocessed(folders) / "dataset_fingerprint.json").read_text())
    larger["shapes_after_crop"][3] = [200, 300, 400]
    (preprocessed(folders) / "dataset_fingerprint.json").write_text(json.dumps(larger))
    grown = training_resources(gpu, "Dataset910_Test", "ours", 2)
    assert grown.memory - few.memory == pytest.approx(10 * 2 * 2 * (200 * 300 * 400 - 20 * 30 * 40))


def test_the_smallest_gpu_in_which_it_fits():
    gpus = ({"memory_gb": 80, "gres": "gpu:a100"}, {"memory_gb": 16, "gres": "gpu:t4"})
    assert gpu_of((), 1e12) is None
    assert (gpu_of(gpus, 15e9), gpu_of(gpus, 17e9)) == ("gpu:t4", "gpu:a100")
    with pytest.raises(InputError, match=r"takes about 90 GB on a GPU, and the largest of cluster\.gpus has 80"):
        gpu_of(gpus, 90e9)
