"""Commands that are killed at chosen and at random moments, and called again.

How many random moments, and which: `--kills 20 --kills-seed 1`.
"""

import random
import shutil
import time
from pathlib import Path

import blosc2
import pytest
import torch

pytestmark = pytest.mark.slow
TRAINER = "nnUNetTrainerDeconverTinyKilled"


def state(model: Path) -> dict:
    """What does not depend on chance in a training that is done."""
    folder = model / "fold_0"
    assert sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name) == [
        "checkpoint_best.pth",
        "checkpoint_final.pth",
    ]
    final = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    logging = final["logging"]
    assert final["_best_ema"] == max(logging["ema_fg_dice"])
    return {
        "epochs": final["current_epoch"],
        "rates": logging["lrs"],
        "lengths": {key: len(values) for key, values in logging.items()},
        "last rate": [group["lr"] for group in final["optimizer_state"]["param_groups"]],
        "steps": {state["step"].item() for state in final["optimizer_state"]["state"].values()},
        "validation": sorted(path.name for path in (folder / "validation").iterdir()),
    }


def check_checkpoints(model: Path):
    """Every checkpoint is whole and finite, at any moment."""
    for path in (model / "fold_0").glob("checkpoint_*.pth"):
        weights = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
        assert all(weight.isfinite().all() for weight in weights.values()), path


@pytest.fixture(scope="module")
def undisturbed(warm, tiny):
    """The state of a training that nobody kills, and the seconds it takes."""
    began = time.monotonic()
    _, model = warm.train(901, TRAINER, **tiny)
    seconds = time.monotonic() - began
    expected = state(model)
    assert (expected["epochs"], expected["steps"], set(expected["lengths"].values())) == (20, {20}, {20})
    shutil.rmtree(model)
    return expected, seconds


@pytest.fixture(autouse=True)
def no_model(warm, undisturbed):
    """No test begins with the model of another."""
    yield
    shutil.rmtree(warm.results / "Dataset901_Tiny" / f"{TRAINER}__tinyPlans__3d_fullres", ignore_errors=True)


@pytest.fixture
def rng(request):
    seed = request.config.getoption("kills_seed")
    print(f"--kills-seed {seed}")  # pytest shows it with a failure
    return random.Random(seed)


def test_a_training_killed_while_it_writes_goes_on(warm, tiny, undisturbed):
    """In the middle of the second checkpoint_latest, then of checkpoint_final: from the one before, each time."""
    _, model = warm.train(901, TRAINER, TINY_DIES_WRITING="checkpoint_latest.pth 10", returncode=-9, **tiny)
    check_checkpoints(model)
    output, _ = warm.train(901, TRAINER, "--c", TINY_DIES_WRITING="checkpoint_final.pth 20", returncode=-9, **tiny)
    assert "Epoch 5\n" in output and "Epoch 4\n" not in output
    check_checkpoints(model)
    assert list((model / "fold_0").glob(".*.unfinished"))
    output, _ = warm.train(901, TRAINER, "--c", **tiny)
    assert "Epoch 15\n" in output and "Epoch 14\n" not in output
    assert not list((model / "fold_0").glob(".*.unfinished"))
    assert state(model) == undisturbed[0]


def test_a_training_killed_at_random_moments_goes_on(warm, tiny, undisturbed, rng, request):
    """Start, epochs, checkpoints and validation; a training that gets to its end is compared and begun again."""
    expected, seconds = undisturbed
    kills, options = 0, []
    while kills < request.config.getoption("kills"):
        moment = rng.uniform(0, seconds)
        output, model = warm.train(901, TRAINER, *options, kill_after=moment, **tiny)
        done = "Mean Validation Dice" in output
        unfinished = [path.name for path in (model / "fold_0").glob(".*.unfinished")]
        print(f"killed after {moment:.2f} s:", "it was done" if done else output.splitlines()[-1:], *unfinished)
        if done:
            assert state(model) == expected
            shutil.rmtree(model)
            options = []
            continue
        kills += 1
        check_checkpoints(model)
        options = ["--c"]
    warm.train(901, TRAINER, "--c", **tiny)
    assert state(model) == expected


def test_a_checkpoint_that_is_cut_short_is_told(warm, tiny):
    _, model = warm.train(901, TRAINER, TINY_DIES_IN="12", returncode=-9, **tiny)
    latest = model / "fold_0" / "checkpoint_latest.pth"
    with latest.open("r+b") as file:
        file.truncate(latest.stat().st_size // 2)
    output, _ = warm.train(901, TRAINER, "--c", returncode=1, **tiny)
    epochs = torch.load(model / "fold_0" / "checkpoint_best.pth", weights_only=False)["current_epoch"]
    assert f"InputError: {latest}: is cut short or damaged" in output
    assert f"--c then goes on from checkpoint_best.pth, which is whole, after {epochs} epochs" in output
    latest.unlink()
    output, _ = warm.train(901, TRAINER, "--c", TINY_DIES_IN=str(epochs), returncode=-9, **tiny)
    assert f"Epoch {epochs}\n" in output and f"Epoch {epochs - 1}\n" not in output


def test_a_training_that_diverged_goes_on_from_a_finite_checkpoint(warm, tiny, undisturbed):
    """In an epoch at whose end a checkpoint is due."""
    output, model = warm.train(901, TRAINER, TINY_DIVERGES_IN="14", returncode=1, **tiny)
    assert "FloatingPointError: the validation loss was not finite in any iteration in epoch 14" in output
    assert "--c then goes on from checkpoint_latest.pth, which is whole, after 10 epochs" in output
    output, _ = warm.train(901, TRAINER, "--c", **tiny)
    assert "Epoch 10\n" in output and "Epoch 9\n" not in output
    assert state(model) == undisturbed[0]


def content(folder: Path) -> dict[str, object]:
    """What nnU-Net reads of preprocessed cases; how it is compressed differs from time to time."""
    return {
        path.name: path.read_bytes() if path.suffix == ".pkl" else blosc2.open(str(path))[:].tobytes()
        for path in folder.iterdir()
    }


def test_preprocessing_killed_at_random_moments_is_done_by_calling_it_again(warm, rng, request):
    command = ["nnUNetv2_preprocess", "-d", 901, "-plans_name", "tinyPlans", "-c", "3d_fullres", "-np", 1]
    folder = warm.preprocessed / "Dataset901_Tiny" / "nnUNetPlans_3d_fullres"
    began = time.monotonic()
    warm.run(*command)
    seconds, expected = time.monotonic() - began, content(folder)
    for _ in range(request.config.getoption("kills")):
        moment = rng.uniform(0, seconds)
        warm.run(*command, kill_after=moment)
        print(f"killed after {moment:.2f} s: {len(list(folder.glob('*')))} files")
    warm.run(*command)
    assert content(folder) == expected


def test_planning_killed_at_random_moments_leaves_whole_plans_or_none(warm, rng, request):
    if request.config.getoption("kills") == 1:
        pytest.skip("for --kills 2 or more: tests/plans/test_planners.py tries it in one process")
    command = ["nnunet-deconver", "plan", "-d", 901, "--gpu-memory", 1, "--plans-name", "killedPlans"]
    path = warm.plans(901, "killedPlans")
    began = time.monotonic()
    warm.run(*command)
    seconds, expected = time.monotonic() - began, path.read_text()
    for _ in range(request.config.getoption("kills")):
        path.unlink(missing_ok=True)
        moment = rng.uniform(0, seconds)
        warm.run(*command, kill_after=moment)
        print(f"killed after {moment:.2f} s: {'plans' if path.exists() else 'none'}")
        assert not path.exists() or path.read_text() == expected
    warm.run(*command)
    assert path.read_text() == expected
    path.unlink()
