"""What another package adds, as its users meet them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SITE = Path(__file__).parent / "extension"


@pytest.fixture
def call(tmp_path):
    """A function that runs this package's command, or another program, where the other package is installed."""
    variables = {"nnUNet_raw": tmp_path / "raw", "nnUNet_preprocessed": tmp_path / "preprocessed", "PYTHONPATH": SITE}

    def call(*arguments, program=("-m", "nnunet_deconver")):
        done = subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    return call


def test_choices_of_another_package_are_listed(call):
    done = call("list")
    for line in (
        "wide Deconver with an MLP twice as wide. [Journal of Width]",
        "nearest Copies voxels. [Journal of Copies]",
        "twice Two classifiers. [Journal of Heads]",
        "halving Adam 1e-3, halved once. [Journal of Halves]",
        "centres centre_distance [Journal of Centres]",
    ):
        assert line in [" ".join(printed.split()) for printed in done.stdout.splitlines()]
    assert "broken (no_such_package) cannot be imported, and adds nothing" in done.stderr


def test_choices_of_another_package_are_planned_and_built(call, tmp_path, write_dataset):
    folder = write_dataset(tmp_path, "Dataset870_Plan", (24, 32, 32), (1, 1, 1))
    choices = ("--backbone", "wide", "--upsampling", "nearest", "--head", "twice", "--recipe", "halving")
    planned = call("plan", "-d", 870, "--gpu-memory", 1, *choices).stdout
    name = "nnUNetWideNearestTwice1GBPlans"
    assert f"wrote {folder / name}.json" in planned
    assert planned.splitlines()[-1].endswith(f"nnUNetv2_train 870 3d_fullres 0 -p {name} -tr nnUNetTrainer_Halving")
    arch_kwargs = json.loads((folder / f"{name}.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    assert arch_kwargs["arch_kwargs"]["upsampling"] == {"name": "nearest"}
    summary = call("summary", "-d", 870, "-p", name, "-tr", "nnUNetTrainer_Halving")
    assert "decoder 0" in summary.stdout
    # As nnU-Net's own trainer does.
    script = (
        "import sys, json\n"
        "from nnunetv2.utilities.get_network_from_plans import get_network_from_plans\n"
        "entry = json.loads(open(sys.argv[1]).read())['configurations']['3d_fullres']['architecture']\n"
        "chosen = entry['network_class_name'], entry['arch_kwargs'], entry['_kw_requires_import']\n"
        "network = get_network_from_plans(*chosen, 1, 2)\n"
        "print(type(network).__name__, type(network.decoder.transpconvs[0]).__name__,"
        " type(network.decoder.seg_layers[0]).__name__)\n"
    )
    built = call(folder / f"{name}.json", program=("-c", script))
    assert built.stdout.split() == ["Wide", "Nearest", "Twice"]
