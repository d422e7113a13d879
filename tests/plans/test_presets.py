import copy
import json
import math
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver import plans as package
from nnunet_deconver.layers import NonnegativeDeconvolution
from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.ops import recompute
from nnunet_deconver.plans.presets import load_preset, misfits, preset_names

FOLDER = Path(package.__file__).parent
SCHEMA = json.loads((FOLDER / "preset.schema.json").read_text())
NAMES = preset_names()
BUILT = [name for name in NAMES if load_preset(name).architecture]


def build(name: str) -> nn.Module:
    preset = load_preset(name)
    return build_network(preset.architecture, preset.input_channels, preset.num_classes, deep_supervision=False)


def test_the_papers_are_there():
    assert {"isles22", "isles22-k5", "brats23", "brats23-k5", "glas", "fives", "btcv-dtc", "isles26"} <= set(NAMES)
    assert {name for name in NAMES if "nerd" in name} == {f"{d}-nerd-{n}" for d in ("la", "wmh") for n in (256, 512)}


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_and_says_where_it_is_from(name):
    entries = json.loads((FOLDER / "presets" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(entries)
    preset = load_preset(name)
    assert preset.name == name
    assert "arXiv" in preset.source["network"] or "repository" in preset.source["network"]
    assert preset.patch_size or preset.notes  # what is left open is said


@pytest.mark.parametrize("name", BUILT)
def test_the_network_builds_as_published(name):
    """Parameters with one head, as the sources count."""
    published = load_preset(name).published or {}
    network = build(name)
    if "parameters_M" in published:
        lower_heads = sum(p.numel() for head in network.decoder.seg_layers[:-1] for p in head.parameters())
        counted = (sum(p.numel() for p in network.parameters()) - lower_heads) / 1e6
        digits = len(str(published["parameters_M"]).partition(".")[2])
        assert round(counted, digits) == published["parameters_M"]


@pytest.mark.parametrize("name", [n for n in BUILT if "kflops_per_voxel" in (load_preset(n).published or {})])
def test_flops_are_those_published_but_for_norms_and_activations(monkeypatch, name):
    monkeypatch.setattr(recompute, "GROUP_ELEMENTS", 10**9)  # parts of a layer do not count as that layer
    preset, network = load_preset(name), build(name).to("meta")
    updates = []
    with FlopCounterMode(display=False) as counter:
        for module in network.modules():
            if isinstance(module, NonnegativeDeconvolution):
                module.register_forward_pre_hook(lambda *_: updates.append(-counter.get_total_flops()))
                module.source.register_forward_pre_hook(lambda *_: updates.append(counter.get_total_flops()))
                module.source.register_forward_hook(lambda *_: updates.append(-counter.get_total_flops()))
                module.register_forward_hook(lambda *_: updates.append(counter.get_total_flops()))
        network(torch.empty(1, preset.input_channels, *preset.patch_size, device="meta"))
    counted = (counter.get_total_flops() - sum(updates)) / math.prod(preset.patch_size) / 1e3
    assert counted < preset.published["kflops_per_voxel"] < 1.03 * counted


@pytest.mark.parametrize(
    "name, blocks, width",
    [("isles26", [1, 2, 2, 4], 64), ("isles26-small", [1, 2, 2, 4], 32), ("isles26-deep", [1, 2, 2, 4, 4], 64)],
)
def test_the_authors_layouts(name, blocks, width):
    network = build(name)
    assert [len(stage) for stage in network.encoder.stages] == blocks
    assert network.encoder.output_channels == [min(width * 2**level, 512) for level in range(len(blocks))]
    # The layouts are named after the encoder; the decoder has one block a stage.
    assert {len(stage) for stage in network.decoder.stages} == {1}


@pytest.fixture
def written(tmp_path):
    """Writes a changed copy of a preset and returns its path."""
    path = tmp_path / "mine.json"

    def write(change, name="isles22") -> str:
        entries = copy.deepcopy(json.loads((FOLDER / "presets" / f"{name}.json").read_text()))
        change(entries)
        path.write_text(json.dumps(entries))
        return str(path)

    return write


def arch_kwargs(**changes):
    return lambda entries: entries["architecture"]["arch_kwargs"].update(changes)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda entries: entries.pop("title"), "the file: 'title' is a required property"),
        (lambda entries: entries.update(dimension=4), r"dimension: 4 is not one of \[2, 3\]"),
        (lambda entries: entries.update(patch=[1]), "Additional properties"),
        (lambda entries: entries.update(batch_size=0), "batch_size: 0 is less than the minimum"),
        (lambda entries: entries.pop("architecture"), "the file: .* is not valid under any"),
        (lambda entries: entries.update(planned={"backbone": "plain"}), "the file: .* is valid under each of"),
        (lambda entries: entries["source"].pop("network"), "source: 'network' is a required property"),
        (arch_kwargs(n_stages=5), "features_per_stage must have 5 entries"),
        (arch_kwargs(strides=[[1, 1, 1], [2, 2, 2]]), "strides must have 4 entries"),
        (arch_kwargs(kernel_sizes=[[3, 3]] * 4), "must have 3 axes, as dimension says"),
        (lambda entries: entries.update(patch_size=[64, 64]), "must have 3 axes, as dimension says"),
        (lambda entries: entries.update(patch_size=[64, 60, 64]), r"divisible by the total strides \[8, 8, 8\]"),
        (arch_kwargs(upsampling={"name": "cubic"}), "upsampling 'cubic' is unknown"),
        (arch_kwargs(segmentation_head={"name": "nerdc", "width": 3}), "has no option width"),
    ],
)
def test_invalid_files(written, change, message):
    path = written(change)
    with pytest.raises(ValueError, match=rf"preset .*mine\.json is not valid: .*{message}"):
        load_preset(path)


def test_planned_presets_are_checked_too(written):
    with pytest.raises(ValueError, match="upsampling 'cubic' is unknown"):
        load_preset(written(lambda entries: entries["planned"].update(upsampling={"name": "cubic"}), "btcv-dtc"))
    with pytest.raises(ValueError, match=r"patch_size: .* is not of type 'null'"):
        load_preset(written(lambda entries: entries.update(patch_size=[64, 64, 64]), "btcv-dtc"))


def test_files_that_are_no_preset(tmp_path):
    path = tmp_path / "mine.json"
    with pytest.raises(ValueError, match=r"preset 'isles23' is neither one of .*isles22, .* nor the path"):
        load_preset("isles23")
    with pytest.raises(ValueError, match="nor the path of a JSON file"):
        load_preset(str(path))
    for content in (b"{", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.json: is not JSON"):
            load_preset(str(path))


DATASET = {"channel_names": {"0": "DWI", "1": "ADC"}, "labels": {"background": 0, "lesion": 1}}
FITTING = {"patch_size": [64, 64, 64], "median_image_size_in_voxels": [73.0, 112.0, 112.0], "spacing": [2, 2, 2]}


@pytest.mark.parametrize(
    "dataset, heads, configuration, sentences",
    [
        ({}, 1, {}, []),
        ({"channel_names": {"0": "CT"}}, 1, {}, ["the dataset has 1 input channels, the preset's 2"]),
        ({}, 2, {}, ["the dataset needs 2 output channels, the preset's 1"]),
        ({}, 1, {"median_image_size_in_voxels": [40, 112, 112]}, ["larger than the median image [40, 112, 112]"]),
        ({}, 1, {"spacing": [5.0, 0.8, 0.8]}, ["the spacing [5.0, 0.8, 0.8] is anisotropic"]),
        ({}, 3, {"spacing": [5.0, 0.8, 0.8]}, ["3 output channels", "anisotropic"]),
    ],
)
def test_where_a_dataset_does_not_fit(dataset, heads, configuration, sentences):
    found = misfits(load_preset("isles22"), DATASET | dataset, heads, FITTING | configuration)
    assert len(found) == len(sentences)
    assert all(part in sentence for part, sentence in zip(sentences, found, strict=True))


class TestPlanning:
    @pytest.fixture
    def dataset(self, tmp_path, write_dataset, monkeypatch):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))

        def dataset(shape=(40, 48, 48), spacing=(1, 1, 1)) -> Path:
            return write_dataset(tmp_path, "Dataset860_Preset", shape, spacing)

        return dataset

    def test_a_published_configuration_is_planned_as_it_is(self, dataset):
        folder = dataset()
        preset = load_preset("isles22")
        planner = preset.planner()
        assert planner.plans_name == "nnUNetPresetIsles22Plans"
        planner(860).plan_experiment()
        plans = json.loads((folder / "nnUNetPresetIsles22Plans.json").read_text())
        assert list(plans["configurations"]) == ["3d_fullres"]
        entry = plans["configurations"]["3d_fullres"]
        assert (entry["patch_size"], entry["batch_size"]) == ([64, 64, 64], 8)
        assert entry["architecture"] == preset.architecture
        assert entry["data_identifier"] == "nnUNetPlans_3d_fullres"

    def test_what_is_not_published_is_planned(self, dataset):
        """A 2D network on slices of a 3D dataset, as its authors train it."""
        folder = dataset(shape=(40, 90, 100))
        preset = load_preset("la-nerd-256")
        planner = preset.planner(memory_target=0.25)(860)
        planner.plan_experiment()
        plans = json.loads((folder / "nnUNetPresetLaNerd256Plans.json").read_text())
        assert list(plans["configurations"]) == ["2d"]
        entry = plans["configurations"]["2d"]
        assert entry["architecture"] == preset.architecture
        assert entry["patch_size"] == [96, 112]  # what the strides, 16 in all, divide
        assert planner.memory(entry["architecture"], [96, 112], entry["batch_size"]).peak <= 2**28
        assert planner.memory(entry["architecture"], [96, 112], entry["batch_size"] + 1).peak > 2**28

    def test_a_planned_preset(self, dataset):
        folder = dataset()
        load_preset("btcv-dtc").planner(1)(860).plan_experiment()
        plans = json.loads((folder / "nnUNetPresetBtcvDtcPlans.json").read_text())
        arch_kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        assert arch_kwargs["upsampling"] == {"name": "dtc", "base": "transposed", "receptive_field": 2}

    @pytest.mark.parametrize("name", ["isles22", "btcv-dtc"])
    def test_a_3d_preset_for_a_2d_dataset(self, dataset, name):
        folder = dataset(shape=(1, 64, 64), spacing=(999, 1, 1))
        with pytest.raises(ValueError, match=f"preset {name} is 3D, Dataset860_Preset is 2D; take a 2D preset"):
            load_preset(name).planner(2)(860).plan_experiment()
        assert not list(folder.glob("*Plans.json"))
