"""What a study's file may say, and what a folder holds."""

import json

import pytest

from nnunet_deconver.errors import InputError
from nnunet_deconver.studies.study import FILE, Model, as_json, keep_study, make_study, read_study

TOML = """
datasets = [910, "Dataset911_Other"]
trainers = ["nnUNetTrainer", {trainer = "nnUNetTrainerDTC", name = "DTC", plans = "otherPlans"}]
plans = ["testPlans"]
folds = [0, 2]
seeds = [5]
epochs = 7
equal = ["time"]
device = "cpu"

[cluster]
hours = 3
gpus = [{memory_gb = 16, gres = "gpu:t4"}]
setup = ["module load cuda"]
sbatch = {partition = "gpu"}
"""


def test_a_file(folders, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TOML)
    study = read_study(path)
    assert study.datasets == ("Dataset910_Test", "Dataset911_Other")
    assert study.models == (
        Model("nnUNetTrainer", "nnUNetTrainer", "testPlans", None),
        Model("DTC", "nnUNetTrainerDTC", "otherPlans", None),
    )
    assert (study.folds, study.seeds, study.epochs, study.iterations) == ((0, 2), (5,), 7, None)
    assert study.equal == ("iterations", "time")  # which is measured on the former
    assert study.reference == "nnUNetTrainer"
    assert study.cluster.gpus[0]["gres"] == "gpu:t4" and study.cluster.sbatch == {"partition": "gpu"}


def test_defaults(folders):
    study = make_study({"datasets": [910], "trainers": ["nnUNetTrainer"]}, "here")
    assert (study.folds, study.seeds, study.epochs, study.equal) == ((0, 1, 2, 3, 4), (), None, ("iterations",))
    assert (study.device, study.num_gpus, study.models[0].plans) == ("cuda", 1, "nnUNetPlans")


def test_plans_and_configurations_are_combined_and_named(folders, content):
    content |= {"trainers": ["nnUNetTrainer"], "plans": ["a", "b"], "configurations": ["2d", "3d_fullres"]}
    names = [model.name for model in make_study(content, "here").models]
    assert names == [
        "nnUNetTrainer a 2d",
        "nnUNetTrainer a 3d_fullres",
        "nnUNetTrainer b 2d",
        "nnUNetTrainer b 3d_fullres",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": [912]}, "datasets: dataset 912"),
        ({"datasets": []}, "datasets"),
        ({"datasets": [910, "Dataset910_Test"]}, "datasets: Dataset910_Test is there twice"),
        ({"trainers": ["a", "a"]}, "trainers: a is there twice"),
        ({"trainers": [{"trainer": "a", "name": "x (y"}, {"trainer": "b", "name": "x [y"}]}, "twice"),
        ({"trainers": [{"name": "a"}]}, "trainers"),
        ({"trainers": [{"trainer": "a", "plan": "b"}]}, "trainers"),
        ({"folds": [0, 0]}, "folds: 0 is there twice"),
        ({"folds": ["all"]}, "folds"),
        ({"seeds": [-1]}, "seeds"),
        ({"epochs": 0}, "epochs"),
        ({"equal": ["money"]}, "equal"),
        ({"reference": "theirs"}, "reference: must be one of nnUNetTrainer, ours, got theirs"),
        ({"device": "tpu"}, "device"),
        ({"num_gpus": 2}, "num_gpus: 2 goes with device cuda"),
        ({"like": "nobody"}, "like: must be one of"),
        ({"cluster": {"hours": 0}}, "cluster.hours"),
        ({"cluster": {"gpus": [{"gres": "gpu"}]}}, "memory_gb"),
        ({"epoch": 3}, "epoch"),
    ],
)
def test_what_is_wrong_is_named(folders, content, change, message):
    with pytest.raises(InputError) as error:
        make_study(content | change, "study.toml")
    assert str(error.value).startswith("study.toml: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("datasets = [", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        ("[" * 3000, "is not TOML"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "study.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_study(path)


def test_a_folder_remembers_its_study(folders, content, tmp_path):
    study = make_study(content | {"cluster": {"gpus": [{"memory_gb": 16, "gres": "gpu:t4"}]}}, "here")
    keep_study(study, tmp_path / "out")
    assert as_json(read_study(tmp_path / "out")) == as_json(study)
    assert read_study(tmp_path / "out").settings == study.settings
    (tmp_path / "out" / FILE).write_text(json.dumps({"datasets": []}))
    with pytest.raises(InputError, match="is not what `nnunet-deconver study` writes"):
        read_study(tmp_path / "out")


def test_a_study_may_grow(folders, content, tmp_path):
    keep_study(make_study(content, "here"), tmp_path / "out")
    more = content | {"datasets": [910, 911], "seeds": [0, 1, 2], "equal": ["time"]}
    more["trainers"] = [*content["trainers"], "nnUNetTrainerDTC"]
    keep_study(make_study(more, "here"), tmp_path / "out")
    assert len(read_study(tmp_path / "out").models) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": [0, 1]}, r"folds 2 \(now not\)"),
        ({"datasets": [911]}, r"datasets Dataset910_Test \(now not\)"),
        ({"seeds": []}, "seeds"),
        ({"epochs": 5}, r"epochs 4 \(now 5\)"),
        ({"like": "nerd"}, r"like unset \(now nerd\)"),
        ({"trainers": ["nnUNetTrainer"]}, r"the trainer ours \(now not\)"),
        (
            {"trainers": ["nnUNetTrainer", {"name": "ours", "trainer": "nnUNetTrainerDTC"}]},
            r"ours: trainer nnUNetTrainerDeconver \(now nnUNetTrainerDTC\)",
        ),
    ],
)
def test_another_study_in_the_folder_is_refused(folders, content, tmp_path, change, message):
    keep_study(make_study(content, "here"), tmp_path / "out")
    before = (tmp_path / "out" / FILE).read_text()
    with pytest.raises(InputError, match=message):
        keep_study(make_study(content | change, "here"), tmp_path / "out")
    assert (tmp_path / "out" / FILE).read_text() == before


def test_a_folder_with_other_things_is_refused(folders, content, tmp_path):
    with pytest.raises(InputError, match="is not empty and holds no study"):
        keep_study(make_study(content, "here"), folders)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        keep_study(make_study(content, "here"), tmp_path / "file")
