"""Studies on this machine, with a stand-in for nnU-Net's commands; evaluation and report are the real ones."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from nnunet_deconver.cli import main
from nnunet_deconver.errors import InputError
from nnunet_deconver.studies import local
from nnunet_deconver.studies.claims import process_started
from nnunet_deconver.studies.local import LocalRun, Slot, find_slots
from nnunet_deconver.studies.running import Stopped, describe_failure, run_task
from nnunet_deconver.studies.study import make_study
from nnunet_deconver.studies.tasks import TRAIN, Task, Workspace

# The command, with the stand-in in the place of nnU-Net's programs.
STUDY = (
    "import sys; from nnunet_deconver.integration import commands; from nnunet_deconver.cli import main\n"
    "folder = sys.argv.pop(1); commands.program_folders = lambda: (folder,); sys.exit(main())"
)
TOML = """
datasets = [{dataset}]
trainers = ["nnUNetTrainer", {{name = "ours", trainer = "nnUNetTrainerDeconver"}}]
plans = ["testPlans"]
configurations = ["test"]
folds = {folds}
seeds = [0]
device = "cpu"
epochs = 4
iterations = 2
equal = {equal}
metrics = ["dice"]
"""


def write(folders: Path, equal="iterations", dataset=911, folds=(0,)) -> Path:
    path = folders / "study.toml"
    path.write_text(TOML.format(equal=[equal], dataset=dataset, folds=list(folds)))
    return path


def workspace(folders, content, **changes) -> Workspace:
    return Workspace.of(make_study(content | changes, "here"), folders / "out")


def trainings(log: Path) -> Counter:
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def values(folder: Path) -> list:
    """What a study measured, and what it makes of it."""
    tables = sorted((folder / "evaluations").rglob("metrics.csv"))
    found = [(str(path.relative_to(folder)), path.read_text()) for path in tables]
    with (folder / "comparison.csv").open(newline="") as file:
        return [*found, *csv.reader(file)]


def test_a_whole_study(folders, fake, capsys):
    path = write(folders, "time", dataset=910, folds=(0, 1))
    assert main(["study", str(path), "--workers", "2"]) == 0
    out = folders / "study"
    assert "all done" in capsys.readouterr().out
    begun = trainings(fake)
    # Deconver's epochs take twice as long: at equal time it has half of them.
    ours = [line for line in begun if "begin" in line and "nnUNetTrainerDeconver_2epochs" in line]
    assert len(ours) == 2 and len([line for line in begun if line.startswith("begin")]) == 6
    assert set(begun.values()) == {1}
    assert (out / "report.html").stat().st_size > 10_000
    with (out / "comparison.csv").open(newline="") as file:
        rows = [(row["equal"], row["on"]) for row in csv.DictReader(file)]
    assert {("iterations", "cross-validation"), ("time", "cross-validation"), ("iterations", "test")} <= set(rows)
    # The same command finds all that is done.
    assert main(["study", str(path)]) == 0
    assert trainings(fake) == begun
    capsys.readouterr()
    assert main(["study", "status", str(path)]) == 0
    assert re.search(r"\d+ tasks: \d+ done\n", capsys.readouterr().out)
    # Nor is anything trained again because a report is.
    assert main(["study", "report", str(out)]) == 0
    assert trainings(fake) == begun


def test_what_fails_is_shown_the_rest_goes_on_and_it_is_tried_again(folders, fake, content, monkeypatch, capsys):
    path = write(folders)
    monkeypatch.setenv("FAKE_FAILS", "nnUNetTrainerDeconver_")
    assert main(["study", str(path)]) == 1
    printed = capsys.readouterr()
    assert "failed with exit code 3" in printed.err and "this one fails" in printed.err
    assert "4 of 7 tasks are not done" in printed.err
    assert main(["study", "status", str(path)]) == 0
    status = capsys.readouterr().out
    assert re.search(r"train/Dataset911_Other/ours/iterations/seed_0/fold_0 +failed", status)
    assert re.search(r"evaluate/Dataset911_Other/nnUNetTrainer/iterations/seed_0 +done", status)
    assert "this one fails" in status
    assert main(["study", "report", str(path)]) == 0
    assert "train/Dataset911_Other/ours/iterations/seed_0/fold_0: failed" in (folders / "study/report.html").read_text()
    monkeypatch.delenv("FAKE_FAILS")
    assert main(["study", str(path)]) == 0
    assert not list((folders / "study").rglob("failed.json"))


def test_a_command_that_makes_nothing_has_failed(folders, fake, content):
    made = workspace(folders, content)
    program = folders / "bin" / "nnUNetv2_train"
    program.write_text("#!/bin/sh\necho nothing to do\n")
    task = next(iter(made.tasks.values()))
    with pytest.raises(InputError, match="ended, but what it makes is not there"):
        run_task(made, task)
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(InputError, match=r"was ended by signal 9 \(out of memory\?\)"):
        run_task(made, task)
    assert describe_failure(made, task) is not None
    assert not made.claim(task).exists()


def test_a_task_alone_needs_what_comes_before(folders, fake, content, capsys):
    path = write(folders)
    assert main(["study", str(path), "--engine", "print"]) == 0
    assert "wrote" in capsys.readouterr().out
    evaluate = "evaluate/Dataset911_Other/ours/iterations/seed_0"
    assert main(["study", str(path), "--task", evaluate]) == 2
    assert f"{evaluate} needs what is not done: validate/" in capsys.readouterr().err
    assert main(["study", str(path), "--task", "nothing"]) == 2
    assert "--task nothing: is not one of this study" in capsys.readouterr().err
    line = (folders / "study/commands/1_train.txt").read_text().splitlines()[0].split()
    assert main(line[1:]) == 0
    assert main(line[1:]) == 0
    assert sum(trainings(fake).values()) == 2  # begin and end of one


def test_stop_ends_the_command_and_its_loaders(folders, fake, content, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "30")
    made = workspace(folders, content)
    task, stop = next(iter(made.tasks.values())), threading.Event()
    threading.Timer(1.5, stop.set).start()
    with pytest.raises(Stopped):
        run_task(made, task, stop=stop)
    assert not made.claim(task).exists()
    assert not subprocess.run(["pgrep", "-f", str(folders / "bin")], capture_output=True).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_study_that_is_ended_leaves_no_process(folders, fake, monkeypatch, number):
    monkeypatch.setenv("FAKE_SECONDS", "30")
    path = write(folders)
    command = [sys.executable, "-c", STUDY, str(folders / "bin"), "study", str(path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which is ignored where this runs in the background
    )
    while not list((folders / "results").rglob("training_log*")) and not trainings(fake):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert not list((folders / "study").rglob("running.json"))
    assert not list((folders / "study").rglob("failed.json"))
    assert not subprocess.run(["pgrep", "-f", str(folders / "bin")], capture_output=True).stdout


def processes_of(folders: Path) -> list[int]:
    """What a study runs: itself, its commands."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folders / "bin").encode() in words or b"fake_nnunet.py" in b" ".join(words):
            found.append(int(folder.name))
    return found


def test_a_study_killed_at_random_moments_ends_as_an_undisturbed_one(folders, fake, monkeypatch, request):
    """kill -9 of the study, of a training, or of both, which then goes on."""
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    seed = request.config.getoption("kills_seed")
    rng = random.Random(seed)
    path = write(folders, folds=(0, 1, 2))
    command = [sys.executable, "-c", STUDY, str(folders / "bin"), "study", str(path), "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(100):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        kills = 4 * request.config.getoption("kills")
        try:
            process.wait(rng.uniform(2, 7) if killed < kills else 200)
        except subprocess.TimeoutExpired:
            chosen = rng.choice(("study", "training", "both"))
            if chosen != "training":
                process.kill()
                process.wait()
            if chosen != "study":
                for number in rng.sample(others := processes_of(folders), min(1, len(others))):
                    os.kill(number, signal.SIGKILL)
            killed += 1
            if chosen == "training":
                process.wait(200)
        if killed >= kills and process.returncode == 0:
            break
    else:
        raise AssertionError("the study does not end")
    for training, times in trainings(fake).items():
        if training.startswith("end"):
            assert times == 1, training
    monkeypatch.setenv("nnUNet_results", str(folders / "undisturbed"))
    monkeypatch.setenv("FAKE_SECONDS", "0")
    (folders / "undisturbed").mkdir()
    assert main(["study", str(path), "-o", str(folders / "plain"), "--workers", "2"]) == 0
    assert values(folders / "study") == values(folders / "plain")


def test_slots(folders, content, monkeypatch):
    monkeypatch.setattr(local, "usable_cores", lambda: tuple(range(6)))
    for name in ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.delenv(name, raising=False)
    study = make_study(content, "here")
    assert [slot.cores for slot in find_slots(study, None)] == [(0, 1, 2, 3, 4, 5)]
    slots = find_slots(study, 2)
    assert [slot.cores for slot in slots] == [(0, 1, 2), (3, 4, 5)]
    assert slots[0].variables == dict.fromkeys(("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"), "3")
    for workers, message in ((0, "at least 1"), (7, "there are 6 cores")):
        with pytest.raises(InputError, match=message):
            find_slots(study, workers)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    gpus = make_study(content | {"device": "cuda"}, "here")
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in find_slots(gpus, None)] == ["4", "5", "6"]
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in find_slots(gpus, 4)] == ["4", "5", "6", "4"]
    two = make_study(content | {"device": "cuda", "num_gpus": 2}, "here")
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in find_slots(two, None)] == ["4,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="takes 1 GPU, and there are 0 here"):
        find_slots(gpus, None)


def test_a_study_that_cannot_run_here_leaves_nothing(folders, fake, monkeypatch, capsys):
    """Otherwise, the same with device = "cpu" would be another study in its folder."""
    path = write(folders)
    path.write_text(path.read_text().replace('"cpu"', '"cuda"'))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["study", str(path)]) == 2
    assert "a training takes 1 GPU, and there are 0 here" in capsys.readouterr().err
    assert not (folders / "study").exists()


def test_cores_are_those_of_the_slot(folders, fake, content):
    made = workspace(folders, content, folds=[0], seeds=[0], trainers=["nnUNetTrainer"])
    program = folders / "bin" / "nnUNetv2_train"
    allowed = "$(grep Cpus_allowed_list /proc/self/status | cut -f 2)"
    program.write_text(f"#!/bin/sh\necho $SLOT {allowed} > {folders}/seen\nexit 1\n")
    core = max(os.sched_getaffinity(0))
    problems = LocalRun(made, [Slot("one", (core,), {"SLOT": "one"})]).run()
    assert (folders / "seen").read_text() == f"one {core}\n"
    assert list(problems) == [Task(TRAIN, "Dataset910_Test", "nnUNetTrainer", "iterations", 0, 0).name]
    assert process_started(os.getpid())


def test_what_this_program_does_wrong_is_not_swallowed(folders, fake, content, monkeypatch):
    made = workspace(folders, content)
    monkeypatch.setattr(local, "run_task", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LocalRun(made, [Slot("one"), Slot("two")]).run()


def test_a_study_of_options(folders, fake, capsys):
    options = ["--datasets", "911", "--trainers", "nnUNetTrainer", "nnUNetTrainerDTC", "--plans", "testPlans"]
    options += ["--configurations", "test", "--folds", "0", "--device", "cpu", "--epochs", "3", "--engine", "print"]
    assert main(["study", *options, "-o", str(folders / "out")]) == 0
    assert (folders / "out" / "commands" / "1_train.txt").read_text().count("\n") == 2
    noted = json.loads((folders / "out" / "study.json").read_text())
    assert (noted["epochs"], [model["name"] for model in noted["models"]]) == (3, ["nnUNetTrainer", "nnUNetTrainerDTC"])
    for arguments, message in (
        (["study", "report", str(folders / "out")], "nothing is evaluated yet"),
        (["study"], "name a study"),
        (["study", *options], "takes a folder: -o OUT"),
        (["study", str(folders / "out"), "--epochs", "4"], "--epochs goes without a file"),
        (["study", "a", "b"], "name one study"),
        (["study", *options, "--folds", "x", "-o", "b"], "--folds x: must be whole numbers"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
