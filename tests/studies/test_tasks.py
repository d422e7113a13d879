"""What a study consists of, and what the disk says is done."""

import json
import os
import zipfile
from dataclasses import replace

import pytest

from nnunet_deconver.errors import InputError
from nnunet_deconver.studies.printed import write_commands
from nnunet_deconver.studies.status import status_rows, study_status
from nnunet_deconver.studies.study import make_study
from nnunet_deconver.studies.tasks import (
    EVALUATE,
    EVALUATE_TEST,
    PREDICT,
    REPORT,
    TIME,
    TRAIN,
    VALIDATE,
    Task,
    Workspace,
    shown,
    unfinished,
)

OURS = Task(TRAIN, "Dataset910_Test", "ours", "iterations", 1, 2)


@pytest.fixture
def workspace(folders, content):
    def make(**changes) -> Workspace:
        return Workspace.of(make_study(content | changes, "here"), folders / "out")

    return make


def finish(workspace, task, epochs=4, seconds=1.0):
    """A training as nnU-Net leaves it."""
    folder = workspace.fold_folder(task)
    (folder / "validation").mkdir(parents=True)
    with zipfile.ZipFile(folder / "checkpoint_final.pth", "w") as file:
        file.writestr("epoch", "4")
    (folder / "validation" / "summary.json").write_text("{}")
    (folder / "debug.json").write_text(json.dumps({"num_epochs": str(epochs)}))
    lines = "".join(f"Epoch {epoch}\ntrain_loss -0.5\nEpoch time: {seconds} s\n" for epoch in range(epochs))
    (folder / "training_log_1.txt").write_text(lines)


def test_all_tasks_each_after_those_it_needs(workspace):
    made = workspace(datasets=[910, 911], equal=["time"])
    names = list(made.tasks)
    assert len(set(names)) == len(names)
    for name, task in made.tasks.items():
        for needed in made.requires(task):
            assert names.index(needed.name) < names.index(name), (name, needed.name)
    kinds = [task.kind for task in made.tasks.values()]
    trained = 2 * 2 * 3 * 2 + 2 * 1 * 3 * 2  # datasets, models (at equal time without the reference), folds, seeds
    assert kinds.count(TRAIN) == kinds.count(VALIDATE) == trained
    assert kinds.count(EVALUATE) == trained / 3
    assert kinds.count(PREDICT) == kinds.count(EVALUATE_TEST) == trained / 6  # one dataset has test images
    assert names[-1] == "report"


def test_models_are_trained_alike_from_the_beginning(workspace):
    """What is done when a study is stopped early is of all models."""
    trained = [task for task in workspace().tasks.values() if task.kind == TRAIN]
    assert [(task.fold, task.seed, task.model) for task in trained[:4]] == [
        (0, 0, "nnUNetTrainer"),
        (0, 0, "ours"),
        (0, 1, "nnUNetTrainer"),
        (0, 1, "ours"),
    ]


def test_commands(workspace):
    made = workspace(num_gpus=2, device="cuda")
    assert shown(made.command(OURS)) == (
        "nnUNetv2_train Dataset910_Test test 2 -p testPlans -tr nnUNetTrainerDeconver_4epochs_2iterations_seed1 "
        "-device cuda -num_gpus 2"
    )
    assert shown(made.command(replace(OURS, kind=VALIDATE))).endswith("-num_gpus 2 --val")
    model = made.model_folder(OURS)
    evaluation = made.evaluation(replace(OURS, kind=EVALUATE, fold=None))
    assert shown(made.command(replace(OURS, kind=EVALUATE, fold=None))) == (
        f"nnunet-deconver evaluate --model {model} --folds 0 1 2 -o {evaluation}"
    )
    assert "-f 0 1 2 -p testPlans" in shown(made.command(replace(OURS, kind=PREDICT, fold=None)))
    assert shown(made.command(Task(REPORT))) == f"nnunet-deconver study report {made.out}"


def test_without_length_and_seed_the_trainer_is_as_it_is(folders):
    study = make_study({"datasets": [910], "trainers": ["nnUNetTrainer"], "plans": ["testPlans"]}, "here")
    made = Workspace.of(study, folders / "out")
    assert made.trainer(next(iter(made.tasks.values()))) == "nnUNetTrainer"


def test_a_training_goes_on_from_a_checkpoint_alone(workspace):
    made = workspace()
    folder = made.fold_folder(OURS)
    folder.mkdir(parents=True)
    assert "--c" not in made.command(OURS)
    with zipfile.ZipFile(folder / "checkpoint_latest.pth", "w") as file:
        file.writestr("a", "b" * 1000)
    assert made.command(OURS)[-1] == "--c"


def test_a_checkpoint_cut_short_is_no_result_and_put_away(workspace):
    made = workspace()
    finish(made, OURS)
    assert made.is_done(OURS)
    final = made.fold_folder(OURS) / "checkpoint_final.pth"
    final.write_bytes(final.read_bytes()[:-10])
    assert not made.is_done(OURS)
    made.prepare(OURS)
    assert not final.exists() and final.with_name("checkpoint_final.pth.cut_short").exists()
    assert "--c" not in made.command(OURS)


def test_validation_is_done_with_its_summary(workspace):
    made = workspace()
    finish(made, OURS)
    validate = replace(OURS, kind=VALIDATE)
    assert made.is_done(validate)
    (made.fold_folder(OURS) / "validation" / "summary.json").write_text('{"mean": ')
    assert made.is_done(OURS) and not made.is_done(validate)


def test_an_evaluation_is_done_until_what_it_is_of_is_made_again(workspace):
    made = workspace()
    task = replace(OURS, kind=EVALUATE, fold=None)
    for fold in (0, 1, 2):
        finish(made, replace(OURS, fold=fold))
    assert not made.is_done(task)
    summary = made.evaluation(task) / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    assert made.is_done(task)
    later = summary.stat().st_mtime + 10
    os.utime(made.fold_folder(OURS) / "validation" / "summary.json", (later, later))
    assert not made.is_done(task)


def test_predictions_take_their_name_when_they_are_whole(workspace):
    made = workspace()
    task = replace(OURS, kind=PREDICT, fold=None)
    folder = unfinished(made.predictions(task))
    folder.mkdir(parents=True)
    assert made.started(task) and not made.is_done(task)
    whole = (made.raw / "Dataset910_Test" / "labelsTs" / "case_9.nii.gz").read_bytes()
    (folder / "case_8.nii.gz").write_bytes(whole)
    (folder / "case_9.nii.gz").write_bytes(whole[: len(whole) // 2])
    made.prepare(task)
    assert [path.name for path in folder.iterdir()] == ["case_8.nii.gz"]
    made.finish(task)
    assert made.is_done(task)


def test_equal_time_is_known_when_all_trainings_are_done_and_stays(workspace):
    made = workspace(equal=["time"])
    task = replace(OURS, equal=TIME)
    trained = [each for each in made.tasks.values() if each.kind == TRAIN and each.equal == "iterations"]
    for each in trained[1:]:
        # The fastest epoch of each training, and their median: 3 s for ours, 2 s for the reference, of 30 epochs.
        finish(made, each, 30, {"ours": 3.0}.get(each.model, 2.0) + 10 * (each.fold == 2 and each.seed == 0))
    assert not made.is_done(task)
    with pytest.raises(InputError, match=f"trained at equal iterations, and {trained[0].name} is not done"):
        made.command(task)
    finish(made, trained[0], 30, 2.0)
    noted = made.fold_folder(trained[0]) / "debug.json"
    content = noted.read_text()
    noted.write_text("{}")
    with pytest.raises(InputError, match="does not say how many epochs"):
        made.command(task)
    noted.write_text(content)
    assert "nnUNetTrainerDeconver_20epochs_2iterations_seed1" in made.command(task)
    log = made.fold_folder(trained[0]) / "training_log_1.txt"
    log.write_text(log.read_text().replace("2.0 s", "0.1 s"))
    assert made.equal_time("Dataset910_Test", "ours") == 20


def test_status(workspace):
    made = workspace()
    finish(made, replace(OURS, seed=0, fold=0))
    half = made.fold_folder(replace(OURS, seed=1, fold=0))
    half.mkdir(parents=True)
    (half / "debug.json").write_text('{"num_epochs": "4"}')
    (half / "training_log_1.txt").write_text("Epoch 0\ntrain_loss -0.5\nEpoch time: 90.0 s\nEpoch 1\n")
    failed = made.folder(replace(OURS, seed=1, fold=1))
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text('{"exit_code": 1, "host": "here"}')
    rows = {row["task"]: row for row in status_rows(study_status(made))}
    prefix = "Dataset910_Test/ours/iterations/seed"
    assert rows[f"train/{prefix}_0/fold_0"]["state"] == rows[f"validate/{prefix}_0/fold_0"]["state"] == "done"
    interrupted = rows[f"train/{prefix}_1/fold_0"]
    assert (interrupted["state"], interrupted["epoch"], interrupted["time left"]) == ("interrupted", "1/4", "4 min")
    assert rows[f"train/{prefix}_1/fold_1"]["state"] == "failed"
    assert rows[f"evaluate/{prefix}_1"]["state"] == "blocked"
    assert rows[f"evaluate/{prefix}_0"]["state"] == "waiting"
    assert rows[f"train/{prefix}_0/fold_1"]["state"] == "ready"
    assert rows["report"]["state"] == "blocked"


def test_printed_commands_leave_out_what_is_done(workspace):
    made = workspace(equal=["time"])
    finish(made, OURS)
    files = write_commands(made)
    assert [path.name for path in files] == [
        "1_train.txt",
        "2_train_equal_time.txt",
        "3_predict.txt",
        "4_evaluate.txt",
        "5_report.txt",
    ]
    lines = [path.read_text().splitlines() for path in files]
    assert [len(each) for each in lines] == [11, 6, 6, 12, 1]
    train = "Dataset910_Test/nnUNetTrainer/iterations/seed_0/fold_0"
    assert lines[0][0] == f"nnunet-deconver study {made.out} --task train/{train} validate/{train}"
