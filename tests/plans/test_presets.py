import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

from nnunet_deconver import plans as package
from nnunet_deconver import trainers
from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.plans.presets import load_preset, misfits, preset_names
from nnunet_deconver.recipes import RECIPES

FOLDER = Path(package.__file__).parent
SCHEMA = json.loads((FOLDER / "preset.schema.json").read_text())
NAMES = preset_names()
BUILT = [name for name in NAMES if load_preset(name).architecture]


def build(name: str) -> nn.Module:
    preset = load_preset(name)
    with torch.device("meta"):
        return build_network(preset.architecture, preset.input_channels, preset.num_classes, deep_supervision=False)


def test_every_row_of_the_papers_tables_that_is_our_network_has_a_preset():
    deconver = ["isles22", "isles22-k5", "brats23", "brats23-k5", "glas", "glas-k5", "fives", "fives-k5"]
    deconver += ["isles22-r1", "isles22-r2", "isles22-g1", "isles22-g8", "isles22-i2"]
    isles26 = ["isles26", "isles26-small", "isles26-deep"]
    nerd = [f"{d}-{n}-{f}" for d in ("la", "wmh") for n in ("unet", "nerdm", "nerdc") for f in (256, 512)]
    upsamplings = ("tc", "tc-dtc", "linear", "linear-dtc", "dysample", "dysample-dtc")
    dtc = ["btcv-dtc", *(f"{d}-unet-{upsampling}" for d in ("isic", "busi") for upsampling in upsamplings)]
    dtc += [f"isic-unet-{base}-dtc-rf{rf}" for base in ("tc", "linear") for rf in ("inf", 2, 1)]
    rows = ("offset", "offset-tanh", "weight", "weight-tanh", "sigmoid")
    dtc += [f"busi-unet-{base}-dtc-{row}" for base in ("tc", "linear") for row in rows]
    assert sorted([*deconver, *isles26, *nerd, *dtc]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_and_says_where_it_is_from(name):
    entries = json.loads((FOLDER / "presets" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(SCHEMA)
    if "base" not in entries:
        Draft202012Validator(SCHEMA).validate(entries)
    preset = load_preset(name)
    assert preset.name == name
    assert "arXiv" in preset.source["network"] or "repository" in preset.source["network"]
    assert preset.patch_size or preset.notes  # what is left open is said


def test_no_two_presets_are_the_same():
    kept = {}
    for preset in map(load_preset, NAMES):
        described = json.dumps([preset.source, preset.architecture, preset.planned, preset.folds], sort_keys=True)
        # Papers train one network on several datasets.
        kept.setdefault((described, preset.name.partition("-")[0]), []).append(preset.name)
    assert [names for names in kept.values() if len(names) > 1] == []
    assert len({load_preset(name).title for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", [name for name in BUILT if "parameters_M" in (load_preset(name).published or {})])
def test_the_network_has_the_printed_parameters_or_a_reason(name):
    """Parameters with one head, as the sources count."""
    published = load_preset(name).published
    network = build(name)
    lower_heads = sum(p.numel() for head in network.decoder.seg_layers[:-1] for p in head.parameters())
    counted = (sum(p.numel() for p in network.parameters()) - lower_heads) / 1e6
    printed = published["parameters_M"]
    as_printed = f"{counted:.{len(printed.partition('.')[2])}f}" == printed
    # A reason where there is nothing to explain would be one that is out of date.
    assert as_printed is not ("parameters_M" in published.get("reasons", {}))


@pytest.mark.parametrize(
    "name, iterations, epochs",
    [
        ("isles22", 12_500, 50),
        ("isles22-g8", 12_500, 50),
        ("brats23-k5", 150_000, 600),
        ("glas", 8_250, 33),
        ("fives-k5", 40_000, 160),
        ("wmh-nerdc-256", 16_110, 64),
        ("la-unet-512", 61_097, 244),
        ("busi-unet-linear-dtc", 10_000, 40),
    ],
)
def test_the_length_of_the_training(name, iterations, epochs):
    """By hand: epochs x images / batch, and 250 iterations are an epoch of nnU-Net."""
    preset = load_preset(name)
    assert (round(preset.iterations), preset.nnunet_epochs) == (iterations, epochs)


@pytest.mark.parametrize("name", [name for name in NAMES if load_preset(name).training])
def test_the_trainer_of_a_preset_exists_in_its_length_and_has_its_recipe(name):
    preset = load_preset(name)
    trainer = getattr(trainers, preset.trainer_name)
    assert trainer.recipe is preset.recipe is RECIPES[preset.training["recipe"]]
    assert (trainer.epochs, trainer.deep_supervision) == (preset.nnunet_epochs, False)


def test_presets_print_what_the_papers_do():
    """Row by row from the texts: sections IV-A.3 of Deconver, 3.2 of NeRD, 4.1 of DTC."""
    found = {name: load_preset(name) for name in NAMES}
    for name, epochs, patch, batch in (
        ("isles22", 500, [64, 64, 64], 8),
        ("brats23", 300, [128, 128, 128], 2),
        ("glas", 500, [256, 256], 8),
        ("fives", 500, [512, 512], 8),
        ("wmh-unet-256", 90, [160, 224], 14),
        ("la-nerdm-512", 90, [304, 240], 14),
    ):
        preset = found[name]
        assert (preset.training["epochs"], preset.patch_size, preset.batch_size) == (epochs, patch, batch)
    stages = {"isles22": 4, "brats23": 5, "glas": 6, "fives": 6}  # L
    assert {name: found[name].architecture["arch_kwargs"]["n_stages"] for name in stages} == stages
    for name in NAMES:
        if "nerd" in name or name.startswith(("wmh", "la-")):
            assert found[name].regions and found[name].num_classes == 1  # a sigmoid
            width = 16 if name.endswith("256") else 32
            kwargs = found[name].architecture["arch_kwargs"]
            assert kwargs["features_per_stage"] == [width * 2**level for level in range(5)]
            assert kwargs.get("segmentation_head", {"bias": False}).get("bias", False) is False  # "no bias term"


@pytest.mark.parametrize(
    "name, receptive_field, base",
    [
        ("isic-unet-tc-dtc", 10, "transposed"),
        ("isic-unet-linear-dtc", 10, "linear"),
        ("busi-unet-tc-dtc", 10, "transposed"),
        ("busi-unet-linear-dtc", "inf", "linear"),
        ("isic-unet-tc-dtc-rf1", 1, "transposed"),
        ("isic-unet-linear-dtc-rfinf", "inf", "linear"),
        ("busi-unet-linear-dtc-weight", "inf", "linear"),
    ],
)
def test_dtc_in_presets_reads_lambda_as_the_formula_does(name, receptive_field, base):
    upsampling = load_preset(name).architecture["arch_kwargs"]["upsampling"]
    assert (upsampling["receptive_field"], upsampling["base"]) == (receptive_field, base)
    layer = build(name).decoder.transpconvs[-1]
    assert layer.displacement_limit([8, 16]) == (
        [1, 1] if receptive_field == "inf" else [receptive_field / 2 / 8, receptive_field / 2 / 16]
    )


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
        (lambda entries: entries["training"].update(recipe="lion"), "recipe 'lion' is unknown; known are nnunet"),
        (lambda entries: entries["training"].update(iterations=5), "training: .* is valid under each of"),
        (lambda entries: entries.update(batch_size=None), "needs a batch_size; give its iterations instead"),
        (lambda entries: entries["evaluation"].update(like="ours"), "evaluation.like: 'ours' is not one of"),
        (lambda entries: entries["published"].update(parameters_M=10.5), "published.parameters_M: 10.5 is not of type"),
    ],
)
def test_invalid_files(written, change, message):
    path = written(change)
    with pytest.raises(ValueError, match=rf"preset .*mine\.json is not valid: .*{message}"):
        load_preset(path)


def test_a_preset_derives_from_another(tmp_path):
    """Key by key, to any depth; title and printed numbers are its own."""
    path = tmp_path / "mine.json"
    arch = {"arch_kwargs": {"source_ratio": 8}}
    path.write_text(json.dumps({"base": "isles22-k5", "title": "Wide", "architecture": arch, "batch_size": 4}))
    found, base = load_preset(str(path)), load_preset("isles22")
    assert (found.name, found.title, found.published, found.batch_size) == ("mine", "Wide", None, 4)
    assert found.architecture["arch_kwargs"] == base.architecture["arch_kwargs"] | {
        "kernel_sizes": [[5, 5, 5]] * 4,
        "source_ratio": 8,
    }
    assert (found.source, found.notes, found.training) == (base.source, base.notes, base.training)
    path.write_text(json.dumps({"base": "isles22"}))
    with pytest.raises(ValueError, match="the file: 'title' is a required property"):
        load_preset(str(path))
    path.write_text(json.dumps({"base": "mine", "title": "Itself"}))
    with pytest.raises(ValueError, match=r"base 'mine' must be one of brats23, .*wmh"):
        load_preset(str(path))


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
        ({}, 2, {}, ["the dataset has one class, for which nnU-Net has two outputs and a softmax"]),
        ({}, 4, {}, ["the dataset needs 4 output channels, the preset's 1"]),
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
        # But for what a GPU computes again.
        again = entry["architecture"]["arch_kwargs"].pop("recompute")
        assert {type(of_stage) for of_stage in again} == {bool}
        assert entry["architecture"] == preset.architecture
        assert entry["data_identifier"] == "nnUNetPlans_3d_fullres"

    def test_what_is_not_published_is_planned(self, dataset):
        """A 2D network on slices of a 3D dataset, as its authors train it."""
        folder = dataset(shape=(40, 90, 100))
        preset = replace(load_preset("la-nerdm-256"), patch_size=None, batch_size=None)
        planner = preset.planner(memory_target=0.25)(860)
        planner.plan_experiment()
        plans = json.loads((folder / "nnUNetPresetLaNerdm256Plans.json").read_text())
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
        assert arch_kwargs["upsampling"] == {
            "name": "dtc",
            "base": "transposed",
            "receptive_field": 2,
            "offset_unit": "half_pixel",
        }

    @pytest.mark.parametrize("name", ["isles22", "btcv-dtc"])
    def test_a_3d_preset_for_a_2d_dataset(self, dataset, name):
        folder = dataset(shape=(1, 64, 64), spacing=(999, 1, 1))
        with pytest.raises(ValueError, match=f"preset {name} is 3D, Dataset860_Preset is 2D; take a 2D preset"):
            load_preset(name).planner(2)(860).plan_experiment()
        assert not list(folder.glob("*Plans.json"))
