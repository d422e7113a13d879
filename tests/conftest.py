import copy
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, settings
from torch._subclasses.fake_tensor import FakeTensorMode

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter then; it reads this when it is first imported, by a test.
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Fixtures that a test only reads may serve all its examples; and this machine may be busy.
settings.register_profile(
    "fast",
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "soak", parent=settings.get_profile("fast"), max_examples=1000, derandomize=False, print_blob=True
)
settings.load_profile("fast")  # --hypothesis-profile, where there is one, is loaded later


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=1, help="random moments at which tests/end_to_end kills a command")
    parser.addoption("--kills-seed", type=int, default=0, help="of these moments")


def pytest_collection_modifyitems(items):
    # The longest first, so that no worker is left with them at the end.
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=["cpu", "plain", "cuda"])
def path(request, monkeypatch):
    """The test runs once on each path; on that of GPUs with tensors that hold no numbers."""
    from nnunet_deconver.ops import assume_device
    from nnunet_deconver.ops.nonnegative_deconvolution import backends

    if request.param == "cuda":
        with FakeTensorMode(), assume_device("cuda"):
            yield request.param
        return
    if request.param == "plain":
        monkeypatch.setattr(backends, "_named", "plain")
    yield request.param


@pytest.fixture
def check_empty_batch(path):
    """A function that runs a module without images, forward and backward, and asserts what comes of it."""

    def check(module: torch.nn.Module, shape, expected):
        x = torch.zeros(shape, requires_grad=True)
        outputs = module(x)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        assert [output.shape for output in outputs] == expected
        sum(output.sum() for output in outputs).backward()
        assert x.grad.shape == x.shape
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name
            assert path == "cuda" or not parameter.grad.any(), name

    return check


@pytest.fixture
def little_space():
    """A context in which no file can get longer than a number of bytes, as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


LABELS = {"background": 0, "organ": 1, "lesion": 2}


def _write_dataset(
    root: Path, name: str, shape, spacing, *, cases=30, channels=1, labels=LABELS, **description
) -> Path:
    """A dataset after nnUNetv2_extract_fingerprint; returns its preprocessed folder.

    The fingerprint is written by hand, so that the images, which planning only asks for their file format, are tiny.
    """
    raw, preprocessed = root / "raw" / name, root / "preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8))
    for case in ("a", "b"):
        for channel in range(channels):
            sitk.WriteImage(image, str(raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"))
        sitk.WriteImage(image, str(raw / "labelsTr" / f"{case}.nii.gz"))
    described = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described | description))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [list(spacing)] * cases,
        "shapes_after_crop": [list(shape)] * cases,
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return preprocessed


@pytest.fixture(scope="session")
def write_dataset():
    """Makes a dataset as it is after nnUNetv2_extract_fingerprint."""
    return _write_dataset


def _plans(rank: int, reader: str, channels: int) -> dict:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "testPlans_test",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * rank,
        "median_image_size_in_voxels": [20] * rank,
        "spacing": [1.0] * rank,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities_kwargs": resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 16],
                "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
                "kernel_sizes": [[3] * rank] * 3,
                "strides": [[1] * rank, [2] * rank, [2] * rank],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset900_Test",
        "plans_name": "testPlans",
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(channels)},
        "experiment_planner_used": "ExperimentPlanner",
        "configurations": {"test": configuration},
    }


@pytest.fixture(scope="session")
def make_plans():
    """Makes plans with one configuration, `test`, of a rank, a reader and a number of channels."""
    return _plans


@pytest.fixture(scope="session")
def label_finding():
    """A function that varies a network's weights such that it finds all labels: nothing learns that in a test."""

    def vary(network, shape, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            logits = network.eval()(torch.randn(shape, generator=generator))
            head = network.decoder.seg_layers[-1]
            getattr(head, "classifier", head).bias -= logits.flatten(2).mean((0, 2))
        return network.state_dict()

    return vary


@pytest.fixture
def trained_model(tmp_path, label_finding):
    """A function that makes a model folder as nnU-Net's training leaves it, with weights that find all labels."""

    def make(
        folds=(0,),
        rank=3,
        reader="SimpleITKIO",
        ending=".nii.gz",
        channels=("MRI",),
        trainer="nnUNetTrainer",
        labels=LABELS,
        **description,
    ):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_deconver import trainers

        plans = _plans(rank, reader, len(channels))
        dataset = {
            "channel_names": {str(number): name for number, name in enumerate(channels)},
            "labels": labels,
            "file_ending": ending,
            **description,
        }
        model = tmp_path / "results" / "Dataset900_Test" / f"{trainer}__testPlans__test"
        model.mkdir(parents=True)
        (model / "plans.json").write_text(json.dumps(plans))
        (model / "dataset.json").write_text(json.dumps(dataset))
        builder = getattr(trainers, trainer, None) or recursive_find_trainer_class_by_name(trainer)
        manager = PlansManager(copy.deepcopy(plans))
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        for fold in folds:
            network = builder.build_network_architecture(
                manager, manager.get_configuration("test"), len(channels), heads, enable_deep_supervision=False
            )
            shape = (1, len(channels), *[16] * rank)
            checkpoint = {
                "network_weights": label_finding(network, shape, seed=fold if fold != "all" else 9),
                "optimizer_state": {"momentum": torch.zeros(1000)},
                "grad_scaler_state": {},
                "init_args": {"plans": plans, "configuration": "test", "fold": fold, "dataset_json": dataset},
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": tuple(range(rank)),
            }
            (model / f"fold_{fold}").mkdir()
            torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
        return model

    return make


@pytest.fixture
def cross_validated(tmp_path, monkeypatch):
    """A function that gives a model folder validation predictions, and its dataset the references and images."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))

    def write(path, voxels):
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))

    def predict(model, rank=3):
        rng = np.random.default_rng(0)
        ending = json.loads((model / "dataset.json").read_text())["file_ending"]
        for index, case in enumerate(("a", "b", "c")):
            truth = np.zeros((20, 18, 22)[-rank:], np.uint8)
            truth[tuple(slice(4, 9 + index) for _ in truth.shape)] = 1
            write(tmp_path / "preprocessed" / "Dataset900_Test" / "gt_segmentations" / f"{case}{ending}", truth)
            write(model / "fold_0" / "validation" / f"{case}{ending}", np.roll(truth, index, -1))
            image = rng.integers(0, 255, truth.shape).astype(np.uint8)
            write(tmp_path / "raw" / "Dataset900_Test" / "imagesTr" / f"{case}_0000{ending}", image)

    return predict
