"""A backbone, an upsampling and a head of another package, as its users meet them."""

import json
import os
import subprocess
import sys

import pytest

MODULE = '''
from torch import nn

from nnunet_deconver.networks import BACKBONES, SEGMENTATION_HEADS, UPSAMPLINGS, Backbone, Component, Deconver
from nnunet_deconver.networks.architecture import deconver_architecture


class Wide(Deconver):
    """Deconver with an MLP twice as wide."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, mlp_ratio=8, **kwargs)


def wide(entry):
    return deconver_architecture(entry) | {"network_class_name": "wide_package.Wide"}


class Nearest(nn.Sequential):
    """Copies voxels."""

    def __init__(self, in_channels, out_channels, stride):
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(stride)]
        super().__init__(nn.Upsample(scale_factor=tuple(stride)), convolution(in_channels, out_channels, 1))


class Twice(nn.Sequential):
    """Two classifiers."""

    def __init__(self, in_channels, num_classes, spatial_dims, *, hidden=8):
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        super().__init__(convolution(in_channels, hidden, 1), convolution(hidden, num_classes, 1))


BACKBONES["wide"] = Backbone("wide_package.Wide", "Wide", "Journal of Width", wide)
UPSAMPLINGS.choices["nearest"] = Component(Nearest, "Nearest", "Journal of Copies")
SEGMENTATION_HEADS.choices["twice"] = Component(Twice, "Twice", "Journal of Heads")
'''


@pytest.fixture
def call(tmp_path):
    """A function that runs this package's command, or another program, where the other package is installed."""
    site = tmp_path / "site"
    metadata = site / "wide_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "wide_package.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[nnunet_deconver]\nwide = wide_package\nbroken = no_such_package\n")
    variables = {"nnUNet_raw": tmp_path / "raw", "nnUNet_preprocessed": tmp_path / "preprocessed", "PYTHONPATH": site}

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
        "wide      Deconver with an MLP twice as wide. [Journal of Width]",
        "nearest     Copies voxels. [Journal of Copies]",
        "twice  Two classifiers. [Journal of Heads]",
    ):
        assert line in done.stdout.splitlines()
    assert "broken (no_such_package) cannot be imported, and adds nothing" in done.stderr


def test_choices_of_another_package_are_planned_and_built(call, tmp_path, write_dataset):
    folder = write_dataset(tmp_path, "Dataset870_Plan", (24, 32, 32), (1, 1, 1))
    choices = ("--backbone", "wide", "--upsampling", "nearest", "--head", "twice")
    planned = call("plan", "-d", 870, "--gpu-memory", 1, *choices).stdout
    name = "nnUNetWideNearestTwice1GBPlans"
    assert f"wrote {folder / name}.json" in planned
    arch_kwargs = json.loads((folder / f"{name}.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    assert arch_kwargs["arch_kwargs"]["upsampling"] == {"name": "nearest"}
    summary = call("summary", "-d", 870, "-p", name)
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
