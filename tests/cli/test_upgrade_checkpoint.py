import copy
import json

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_deconver import trainers
from nnunet_deconver.cli import main
from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.networks.backbones import BACKBONES, with_components

DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
NAMES = {
    "plain": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "residual": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "deconver": "nnunet_deconver.networks.Deconver",
}


def plans(backbone="plain", rank=3, **changes):
    blocks = "n_conv_per_stage" if backbone == "plain" else "n_blocks_per_stage"
    arch_kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
        "kernel_sizes": [[3] * rank] * 3,
        "strides": [[1] * rank, [1] + [2] * (rank - 1), [2] * rank],
        blocks: [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "dataset_name": "Dataset900_Test",
        "plans_name": "testPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {
            "cfg": {
                "data_identifier": "testPlans_cfg",
                "batch_size": 2,
                "patch_size": [8, 16, 16][:rank],
                "architecture": {
                    "network_class_name": NAMES[backbone],
                    "arch_kwargs": arch_kwargs | changes,
                    "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
                },
            }
        },
    }


MONAIS = {
    "MedNeXt": (
        {"init_filters": 4, "deep_supervision": True, "kernel_size": 3, "use_residual_connection": True}
        | {"blocks_down": [1] * 4, "blocks_bottleneck": 1, "blocks_up": [1] * 4},
        (1, 2, 2, 2, 2, 1),
    ),
    "UNETR": ({"feature_size": 4, "hidden_size": 24, "mlp_dim": 8, "num_heads": 2, "img_size": [32] * 3}, (1, 1, 16)),
    "AttentionUnet": ({"channels": [4, 8, 8], "strides": [2, 2]}, (1, 1, 4)),
}


def monais(name):
    """The architecture entry of a small network of MONAI's."""
    kwargs, strides = MONAIS[name]
    return {
        "network_class_name": "nnunet_deconver.networks.Adapted",
        "arch_kwargs": {
            "network": f"monai.networks.nets.{name}",
            "network_kwargs": {"spatial_dims": 3, **kwargs},
            "strides": [[stride] * 3 for stride in strides],
        },
        "_kw_requires_import": [],
    }


def trained(tmp_path, backbone="plain", rank=3, trainer="nnUNetTrainer", planned=None, **changes):
    """A model folder as nnU-Net leaves it, with weights that are not those of a start."""
    torch.manual_seed(0)
    content = plans(backbone, rank, **changes)
    configuration = content["configurations"]["cfg"]
    if planned is not None:
        configuration |= {"architecture": planned, "patch_size": [32] * rank}
    architecture = configuration["architecture"]
    if trainer != "nnUNetTrainer":
        architecture = getattr(trainers, trainer).architecture(architecture)
    network = build_network(architecture, 1, 2, deep_supervision=False)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    fold = tmp_path / "stock" / "fold_0"
    fold.mkdir(parents=True)
    (fold.parent / "plans.json").write_text(json.dumps(content))
    (fold.parent / "dataset.json").write_text(json.dumps(DATASET))
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": 0.5,
        "current_epoch": 3,
        "init_args": {
            "plans": copy.deepcopy(content) | {"continue_training": False},
            "configuration": "cfg",
            "fold": 0,
            "dataset_json": DATASET,
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1),
    }
    path = fold / "checkpoint_final.pth"
    torch.save(checkpoint, path)
    return path


def predict(model, image):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    return predictor.predict_sliding_window_return_logits(image)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("backbone", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        ("--upsampling", "dtc"),
        ("--upsampling", "dtc", "--receptive-field", "inf"),
        ("--head", "nerdc"),
        ("--head", "nerdm"),
        ("--upsampling", "dtc", "--receptive-field", "4", "--head", "nerdc"),
    ],
    ids=" ".join,
)
def test_nnunet_predicts_the_same_with_the_upgraded_model(tmp_path, backbone, rank, options):
    stock = trained(tmp_path, backbone, rank)
    out = tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), *options]) == 0
    image = torch.randn(1, *([1] if rank == 2 else [12]), 24, 20)
    expected, found = predict(stock.parents[1], image), predict(out, image)
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=2e-3)  # stored as float16
    upgraded = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert set(upgraded["network_weights"]) != set(torch.load(stock, weights_only=False)["network_weights"])
    assert "optimizer_state" not in upgraded


def test_a_network_with_the_axes_starts_from_the_upgraded_checkpoint(tmp_path, capsys):
    """`-pretrained_weights` into the network that nnUNetTrainerDTC builds from the stock plans."""
    stock = trained(tmp_path)
    assert main(["upgrade-checkpoint", str(stock), "-o", str(tmp_path / "upgraded"), "--upsampling", "dtc"]) == 0
    path = tmp_path / "upgraded" / "fold_0" / "checkpoint_final.pth"
    assert f"-pretrained_weights {path}" in capsys.readouterr().out
    architecture = plans()["configurations"]["cfg"]["architecture"]
    network = build_network(with_components(architecture, upsampling={"name": "dtc"}), 1, 2, deep_supervision=False)
    load_pretrained_weights(network, str(path))
    original = build_network(architecture, 1, 2, deep_supervision=False)
    original.load_state_dict(torch.load(stock, weights_only=False)["network_weights"])
    # nnU-Net never takes over heads
    network.decoder.seg_layers.load_state_dict(original.decoder.seg_layers.state_dict())
    x = torch.randn(1, 1, 8, 16, 16)
    torch.testing.assert_close(network.eval()(x), original.eval()(x))


FLAT = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]


@pytest.mark.parametrize(
    "backbone, rank, changes, kernels",
    [
        ("deconver", 2, {}, [[5, 5]] * 3),
        ("deconver", 3, {"kernel_sizes": FLAT}, [[1, 5, 5], [5, 5, 5], [5, 5, 5]]),
        ("deconver", 2, {"kernel_sizes": 3}, 5),
        ("plain", 3, {"kernel_sizes": FLAT}, [[1, 5, 5], [5, 5, 5], [5, 5, 5]]),
    ],
)
def test_nnunet_predicts_the_same_with_larger_kernels(tmp_path, backbone, rank, changes, kernels):
    stock, out = trained(tmp_path, backbone, rank, **changes), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), "--kernel", "5"]) == 0
    architecture = json.loads((out / "plans.json").read_text())["configurations"]["cfg"]["architecture"]
    assert architecture["arch_kwargs"]["kernel_sizes"] == kernels
    image = torch.randn(1, *([1] if rank == 2 else [12]), 24, 20)
    expected, found = predict(stock.parents[1], image), predict(out, image)
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=2e-3)  # stored as float16
    weights = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert any(weight.shape[2:] == (5,) * rank for weight in weights.values())


def test_kernels_and_components_at_once(tmp_path):
    stock, out = trained(tmp_path, "deconver"), tmp_path / "upgraded"
    options = ["--kernel", "5", "--upsampling", "dtc", "--head", "nerdc"]
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), *options]) == 0
    image = torch.randn(1, 12, 24, 20)
    expected, found = predict(stock.parents[1], image), predict(out, image)
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=2e-3)
    kwargs = json.loads((out / "plans.json").read_text())["configurations"]["cfg"]["architecture"]["arch_kwargs"]
    assert kwargs["upsampling"] == {"name": "dtc"} and kwargs["kernel_sizes"] == [[5, 5, 5]] * 3


def test_mednexts_kernels_are_interpolated_as_its_upkern_does(tmp_path):
    pytest.importorskip("monai")
    stock, out = trained(tmp_path, planned=monais("MedNeXt")), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), "--kernel", "5"]) == 0
    planned = json.loads((out / "plans.json").read_text())["configurations"]["cfg"]["architecture"]
    assert planned["arch_kwargs"]["network_kwargs"]["kernel_size"] == 5
    small, large = (
        torch.load(path, weights_only=False)["network_weights"]
        for path in (stock, out / "fold_0" / "checkpoint_final.pth")
    )
    assert small.keys() == large.keys()
    enlarged = [key for key, weight in small.items() if weight.shape != large[key].shape]
    assert len(enlarged) > 10
    for key, weight in small.items():
        expected = F.interpolate(weight, size=(5, 5, 5), mode="trilinear") if key in enlarged else weight
        assert torch.equal(large[key], expected), key
    network = build_network(planned, 1, 2, deep_supervision=True)
    load_pretrained_weights(network, str(out / "fold_0" / "checkpoint_final.pth"))
    assert predict(out, torch.randn(1, 32, 32, 32)).isfinite().all()


@pytest.mark.parametrize("rank", [2, 3])
def test_kernels_of_mednext_on_nnunets_stages_are_interpolated(tmp_path, rank):
    changes = {"kernel_sizes": [[1] + [3] * (rank - 1)] + [[3] * rank] * 2}
    planned = plans(rank=rank, **changes)["configurations"]["cfg"]["architecture"]
    planned = BACKBONES["mednext"].architecture(planned)
    stock, out = trained(tmp_path, rank=rank, planned=planned), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), "--kernel", "5", "--head", "nerdc"]) == 0
    upgraded = json.loads((out / "plans.json").read_text())["configurations"]["cfg"]["architecture"]
    large_kernels = [[1] + [5] * (rank - 1)] + [[5] * rank] * 2
    assert upgraded["arch_kwargs"]["kernel_sizes"] == large_kernels
    small, large = (
        torch.load(path, weights_only=False)["network_weights"]
        for path in (stock, out / "fold_0" / "checkpoint_final.pth")
    )
    mode, enlarged = {2: "bilinear", 3: "trilinear"}[rank], 0
    for key, weight in small.items():
        if key.endswith("depthwise.weight"):
            size = [5 if extent > 1 else 1 for extent in weight.shape[2:]]
            weight, enlarged = F.interpolate(weight, size=size, mode=mode), enlarged + 1
        if "seg_layers" not in key:
            assert torch.equal(large[key], weight), key
    assert enlarged == 2 * (3 + 2) + 2 + 2
    build_network(upgraded, 1, 2, deep_supervision=True).load_state_dict(large)


def test_blocks_of_mednext_that_upsample_can_be_started_as_by_nothing(tmp_path, capsys):
    planned = BACKBONES["mednext"].architecture(plans()["configurations"]["cfg"]["architecture"])
    stock, out = trained(tmp_path, planned=planned), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), "--upsampling", "dtc"]) == 2
    assert "decoder.transpconvs.0 of MedNeXt is a MedNeXtUpsampling; " in capsys.readouterr().err
    assert not out.exists()


def test_a_model_of_mednexts_trainer_becomes_one_of_that_with_larger_kernels(tmp_path):
    pytest.importorskip("monai")
    stock, out = trained(tmp_path, trainer="nnUNetTrainerMedNeXtS"), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), "--kernel", "5"]) == 0
    upgraded = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert upgraded["trainer_name"] == "nnUNetTrainerMedNeXtSk5"
    planned = json.loads((out / "plans.json").read_text())["configurations"]["cfg"]["architecture"]
    assert trainers.nnUNetTrainerMedNeXtSk5.architecture(planned) == planned
    build_network(planned, 1, 2, deep_supervision=False).load_state_dict(upgraded["network_weights"])


@pytest.mark.parametrize(
    "name, options",
    [
        ("UNETR", ["--upsampling", "dtc", "--head", "nerdc"]),
        ("AttentionUnet", ["--upsampling", "dtc"]),
        ("MedNeXt", ["--head", "nerdc"]),
    ],
)
def test_networks_of_other_packages_predict_the_same(tmp_path, name, options):
    pytest.importorskip("monai")
    stock, out = trained(tmp_path, planned=monais(name)), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), *options]) == 0
    image = torch.randn(1, 32, 32, 32)
    expected, found = predict(stock.parents[1], image), predict(out, image)
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=2e-3)  # stored as float16
    assert torch.load(out / "fold_0" / "checkpoint_final.pth")["network_weights"].keys() != (
        torch.load(stock)["network_weights"].keys()
    )


@pytest.mark.parametrize("name", ["nnUNetTrainerDeconver", "nnUNetTrainerDTC", "nnUNetTrainerDTC_7epochs_seed1"])
@pytest.mark.parametrize("options", [("--kernel", "5"), ("--head", "nerdc")], ids=" ".join)
def test_models_of_our_trainers_keep_their_trainer(tmp_path, name, options):
    """Their network is not the one that the plans name; in the upgraded plans it is."""
    stock, out = trained(tmp_path, trainer=name), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), *options]) == 0
    planned = plans()["configurations"]["cfg"]["architecture"]
    upgraded = json.loads((out / "plans.json").read_text())["configurations"]["cfg"]["architecture"]
    before, after = (
        build_network(getattr(trainers, name).architecture(entry), 1, 2, deep_supervision=False).eval()
        for entry in (planned, upgraded)
    )
    for network, path in ((before, stock), (after, out / "fold_0" / "checkpoint_final.pth")):
        checkpoint = torch.load(path, weights_only=False)
        assert checkpoint["trainer_name"] == name
        network.load_state_dict(checkpoint["network_weights"])
    x = torch.randn(1, 1, 8, 16, 16)
    torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-4)


def test_the_trainer_with_kernels_of_5_starts_from_the_upgraded_checkpoint(tmp_path):
    """`-pretrained_weights` into the network that nnUNetTrainerDeconver_k5 builds from nnU-Net's plans."""
    stock, out = trained(tmp_path, trainer="nnUNetTrainerDeconver"), tmp_path / "upgraded"
    assert main(["upgrade-checkpoint", str(stock), "-o", str(out), "--kernel", "5"]) == 0
    planned = plans()["configurations"]["cfg"]["architecture"]
    small, large = (
        build_network(trainer.architecture(planned), 1, 2, deep_supervision=False)
        for trainer in (trainers.nnUNetTrainerDeconver, trainers.nnUNetTrainerDeconver_k5)
    )
    small.load_state_dict(torch.load(stock, weights_only=False)["network_weights"])
    load_pretrained_weights(large, str(out / "fold_0" / "checkpoint_final.pth"))
    large.decoder.seg_layers.load_state_dict(small.decoder.seg_layers.state_dict())
    x = torch.randn(1, 1, 8, 16, 16)
    torch.testing.assert_close(large.eval()(x), small.eval()(x))


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "nothing to upgrade to"),
        (("--kernel", "4"), "--kernel 4: must be an odd number greater than 3, the largest kernel of the plans"),
        (("--kernel", "3"), "--kernel 3: must be an odd number greater than 3"),
        (("--kernel", "-5"), "--kernel -5: must be an odd number greater than 3"),
        (("--upsampling", "linear"), "only dtc"),
        (("--head", "norm"), "--head norm: only nerdm and nerdc can start as the 1x1 convolution it replaces"),
        (("--upsampling", "dtc", "--receptive-field", "0"), "--receptive-field 0"),
        (("--upsampling", "dtc", "--receptive-field", "nan"), "--receptive-field nan"),
        (("--upsampling", "dtc", "--receptive-field", "wide"), "--receptive-field wide"),
        (("--receptive-field", "2"), "goes with --upsampling"),
        (("--head", "nerd"), "known are conv, nerdm, nerdc"),
    ],
    ids=str,
)
def test_bad_options(tmp_path, capsys, options, message):
    stock = trained(tmp_path)
    assert main(["upgrade-checkpoint", str(stock), "-o", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stock"]


def broken(path, change):
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("init_args"), "has no init_args"),
        (lambda c: c["network_weights"].popitem(), "do not fit"),
        (
            lambda c: c["init_args"]["plans"]["configurations"]["cfg"]["architecture"]["arch_kwargs"].update(
                features_per_stage=[4, 8, 8]
            ),
            "do not fit",
        ),
    ],
    ids=["no-arguments", "missing-weight", "other-topology"],
)
def test_bad_checkpoints(tmp_path, capsys, change, message):
    stock = trained(tmp_path)
    broken(stock, change)
    assert main(["upgrade-checkpoint", str(stock), "-o", str(tmp_path / "out"), "--head", "nerdc"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stock"]


def test_files_that_are_no_checkpoint_and_folders_that_exist(tmp_path, capsys):
    path = tmp_path / "x.pth"
    out = str(tmp_path / "out")
    assert main(["upgrade-checkpoint", str(path), "-o", out, "--head", "nerdc"]) == 2
    assert "no such file" in capsys.readouterr().err
    path.write_text("text")
    assert main(["upgrade-checkpoint", str(path), "-o", out, "--head", "nerdc"]) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err
    assert main(["upgrade-checkpoint", str(path), "-o", str(tmp_path), "--head", "nerdc"]) == 2
    assert "exists already" in capsys.readouterr().err
