"""A study on a real SLURM, which is disturbed, beside the same on this machine, which is not."""

import csv
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nnunet_deconver.studies.claims import process_started

pytestmark = pytest.mark.slow

_specification = importlib.util.spec_from_file_location("slurm", Path(__file__).with_name("slurm.py"))
slurm = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(slurm)

STUDY = """
datasets = [901]
plans = ["tinyPlans"]
configurations = ["3d_fullres"]
trainers = [{name = "nnU-Net", trainer = "nnUNetTrainerTinyStudied"}, "nnUNetTrainerDeconverTinyStudied"]
folds = [0, 1, 2]
seeds = [7]
device = "cpu"
epochs = 12
iterations = 1
metrics = ["dice", "hd95"]

[cluster]
cpus = 1
memory_gb = 3
hours = 1
"""


@pytest.fixture
def cluster(tmp_path):
    reason = slurm.why_not()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("submitit")
    cluster = slurm.Cluster(tmp_path / "slurm")
    yield cluster
    cluster.stop()


@pytest.fixture
def environment(nnunet, tiny):
    """nnU-Net's data, a core for each training, and folders for results."""

    def make(results: Path, **variables) -> dict[str, str]:
        results.mkdir()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"), "1")
        # Without test images, as predictions of them take as long as trainings here.
        raw = results.with_name("raw")
        folder = raw / "Dataset901_Tiny"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            shutil.copy(nnunet.raw / folder.name / "dataset.json", folder)
        own = {"nnUNet_raw": str(raw), "nnUNet_results": str(results)}
        return nnunet.environment | tiny | threads | own | variables

    return make


def study(path: Path, out: Path, environment: dict, *options) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("nnunet-deconver")), "study", str(path), "-o", str(out), *options]
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def measured(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("metrics.csv")}


def comparison(out: Path) -> list[dict]:
    with (out / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def running(out: Path) -> dict[Path, dict]:
    """The claims of trainings that have done an epoch."""
    found = {}
    for path in out.rglob("tasks/train/**/running.json"):
        claim = json.loads(path.read_text())
        if claim.get("group") and process_started(claim["group"]):
            found[path] = claim
    return found


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def check_same(out: Path, undisturbed: Path):
    """Seeded trainings go on exactly as if nothing had been: even the last digits are equal."""
    assert measured(out) == measured(undisturbed) and len(measured(out)) == 2
    for one, other in zip(comparison(out), comparison(undisturbed), strict=True):
        for key in one:
            assert one[key] == other[key] or any(word in key for word in ("hours", "seconds")), key


def check_trained_once(results: Path, kills: int, epochs: int = 12):
    """No epoch twice, but for those after the last checkpoint of what was killed; nothing is missing."""
    folds = list(results.rglob("fold_*"))
    assert len(folds) == 6
    repeated = 0
    for fold in folds:
        assert (fold / "checkpoint_final.pth").exists()
        logs = [path.read_text() for path in fold.glob("training_log_*.txt")]
        begun = [int(number) for log in logs for number in re.findall(r": Epoch (\d+)", log)]
        assert set(begun) == set(range(epochs)), fold
        repeated += len(begun) - epochs
    assert repeated <= 2 * kills


def test_a_disturbed_study_on_slurm_ends_as_an_undisturbed_one_here(cluster, environment, tmp_path):
    """A training is killed, then a node, then the command; the report is that of a study nobody disturbed."""
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    out, results = tmp_path / "disturbed", tmp_path / "disturbed_results"
    variables = environment(results, **cluster.variables)
    process = study(path, out, variables, "--engine", "slurm")

    def training() -> dict:
        assert process.poll() is None, out.with_suffix(".log").read_text()
        begun = {file.parent for file in results.rglob("checkpoint_latest.pth")}
        return running(out) if begun else {}

    first = wait_for(training)
    killed = next(iter(first.values()))
    os.kill(killed["group"], signal.SIGKILL)
    # What runs on the node goes on, as its processes do not need the daemon: nobody may train it beside them.
    wait_for(lambda: len([claim for claim in running(out).values() if claim["group"] != killed["group"]]) > 0)
    cluster.kill_node("n2")
    time.sleep(2)
    process.kill()
    process.wait()
    cluster.start_node("n2")
    cluster.wait_for_nodes()
    process = study(path, out, variables, "--engine", "slurm")
    assert process.wait(900) == 0, out.with_suffix(".log").read_text()[-5000:]

    undisturbed = tmp_path / "undisturbed"
    process = study(path, undisturbed, environment(tmp_path / "undisturbed_results"), "--workers", "2")
    assert process.wait(900) == 0, undisturbed.with_suffix(".log").read_text()[-5000:]
    check_same(out, undisturbed)
    check_trained_once(results, kills=1)


def test_a_study_killed_here_ends_as_an_undisturbed_one(environment, tmp_path, request):
    """As in tests/studies, where nnU-Net is a stand-in: kill -9 of the study, of a training, or of both."""
    kills = request.config.getoption("kills")
    if kills < 2:
        pytest.skip("takes minutes; --kills 10 runs it")
    rng = random.Random(request.config.getoption("kills_seed"))
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace("epochs = 12", "epochs = 40"))
    out, results = tmp_path / "killed", tmp_path / "killed_results"
    variables = environment(results)
    for _ in range(kills):
        process = study(path, out, variables, "--workers", "2")
        wait_for(lambda process=process: running(out) or process.poll() is not None)
        time.sleep(rng.uniform(0, 8))
        chosen, claims = rng.choice(("study", "training", "both")), list(running(out).values())
        if chosen != "training":
            process.kill()
        if chosen != "study" and claims:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(claims)["group"], signal.SIGKILL)
        if chosen == "training":
            time.sleep(rng.uniform(0, 5))
            process.kill()
        process.wait()
    process = study(path, out, variables, "--workers", "2")
    assert process.wait(900) == 0, out.with_suffix(".log").read_text()[-5000:]
    undisturbed = tmp_path / "undisturbed"
    process = study(path, undisturbed, environment(tmp_path / "undisturbed_results"), "--workers", "2")
    assert process.wait(900) == 0
    check_same(out, undisturbed)
    check_trained_once(results, kills, 40)
    assert len(list(results.rglob("training_log_*.txt"))) > 6  # some were killed before their end
