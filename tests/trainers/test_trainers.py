"""The trainers without training: what they build, set and refuse."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_deconver.trainers as trainers
from nnunet_deconver.errors import InputError
from nnunet_deconver.layers import DeformableTransposedConvolution, NeRDc, NeRDm, NormHead
from nnunet_deconver.networks import BACKBONES, Adapted, Deconver, PlainConvUNet
from nnunet_deconver.recipes import RECIPES, EpochScheduler
from nnunet_deconver.trainers.losses import SquaredDiceLoss

DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def plans(**configuration):
    return {
        "dataset_name": "Dataset900_Test",
        "plans_name": "testPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {
            "3d_fullres": {
                "data_identifier": "testPlans_3d_fullres",
                "batch_size": 2,
                "patch_size": [8, 16, 16],
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": 3,
                        "features_per_stage": [4, 8, 16],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
                        "n_conv_per_stage": [2, 2, 2],
                        "n_conv_per_stage_decoder": [2, 2],
                    },
                    "_kw_requires_import": ["conv_op"],
                },
            }
            | configuration
        },
        "continue_training": False,
    }


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def make(name, folders, content=None):
    return getattr(trainers, name)(content or plans(), "3d_fullres", 0, DATASET, device=torch.device("cpu"))


def test_every_public_name_is_a_trainer_that_lives_where_it_says():
    assert {"nnUNetTrainerDeconver", "nnUNetTrainerDeconver_k5", "nnUNetTrainerDeconver_lr1e3"} < set(trainers.__all__)
    for name in trainers.__all__:
        trainer = getattr(trainers, name)
        assert issubclass(trainer, nnUNetTrainer)
        assert trainer.__name__ == name
        assert pickle.loads(pickle.dumps(trainer)) is trainer
        assert trainer.__doc__


@pytest.mark.parametrize("family", ["", "_k5", "_lr1e3", "_SGD"])
@pytest.mark.parametrize("suffix, epochs", [("_1epoch", 1), ("_5epochs", 5), ("_50epochs", 50), ("_300epochs", 300)])
def test_epoch_variants(folders, family, suffix, epochs):
    base = make(f"nnUNetTrainerDeconver{family}", folders)
    variant = make(f"nnUNetTrainerDeconver{family}{suffix}", folders)
    assert base.num_epochs == 1000
    assert variant.num_epochs == epochs
    assert (variant.initial_lr, variant.kernel_size) == (base.initial_lr, base.kernel_size)


@pytest.mark.parametrize(
    "name, rate, decay, optimizer, scheduler",
    [
        ("nnUNetTrainerDeconver", 1e-4, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerDeconver_k5", 1e-4, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerDeconver_lr1e3", 1e-3, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerDeconver_SGD", 1e-2, 3e-5, torch.optim.SGD, PolyLRScheduler),
        ("nnUNetTrainerDeconverDTCNeRDc", 1e-4, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerDeconverNorm", 1e-4, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerDeconverNorm_lr1e3", 1e-3, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerDTC", 1e-2, 3e-5, torch.optim.SGD, PolyLRScheduler),
        ("nnUNetTrainerNeRDc", 1e-2, 3e-5, torch.optim.SGD, PolyLRScheduler),
        ("nnUNetTrainerDeconver_paper", 1e-4, 1e-5, torch.optim.AdamW, EpochScheduler),
        ("nnUNetTrainerNeRDm_Adam", 1e-3, 1e-6, torch.optim.Adam, EpochScheduler),
        ("nnUNetTrainerNeRDc_Adam_300epochs", 1e-3, 1e-6, torch.optim.Adam, EpochScheduler),
        ("nnUNetTrainer_Adam_1head_64epochs", 1e-3, 1e-6, torch.optim.Adam, EpochScheduler),
    ],
)
def test_recipes(folders, name, rate, decay, optimizer, scheduler):
    trainer = make(name, folders)
    trainer.network = torch.nn.Linear(1, 1)
    chosen, schedule = trainer.configure_optimizers()
    assert type(chosen) is optimizer
    assert type(schedule) is scheduler
    assert (trainer.initial_lr, trainer.weight_decay) == (rate, decay)
    assert chosen.param_groups[0]["weight_decay"] == decay
    schedule.step(500)
    assert 0 < chosen.param_groups[0]["lr"] < rate


def test_the_recipe_of_dtc_has_a_constant_rate(folders):
    """Its paper prints optimizer, rate and decay, and no schedule."""
    trainer = make("nnUNetTrainer_AdamWConstant_1head_40epochs", folders)
    trainer.network = torch.nn.Linear(1, 1)
    optimizer, schedule = trainer.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["weight_decay"] == 1e-5
    for epoch in (0, 20, 39):
        schedule.step(epoch)
        assert optimizer.param_groups[0]["lr"] == 1e-4
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 10_000


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("squared", [False, True], ids=["nnU-Net's Dice", "squared Dice"])
@pytest.mark.parametrize("heads", [1, 2])
def test_loss_and_heads_are_chosen_by_class_attributes(folders, heads, squared, regions):
    class Trainer(trainers.nnUNetTrainerNeRDc):
        squared_dice = squared
        deep_supervision = heads > 1

    labels = {"background": 0, "whole": [1, 2], "lesion": 2} if regions else DATASET["labels"]
    dataset = DATASET | {"labels": labels} | ({"regions_class_order": [1, 2]} if regions else {})
    content = plans()
    content["configurations"]["3d_fullres"]["batch_dice"] = False
    trainer = Trainer(content, "3d_fullres", 0, dataset, device=torch.device("cpu"))
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 2 if regions else 3, trainer.enable_deep_supervision
    )
    loss = trainer._build_loss()
    compound = loss.loss if heads > 1 else loss
    assert isinstance(compound.dc, SquaredDiceLoss) is squared
    # nnU-Net's settings stay: of labels the background is left out, of regions nothing is.
    assert (compound.dc.do_bg, compound.dc.smooth, compound.dc.batch_dice) == (regions, 1e-5, False)

    torch.manual_seed(0)
    outputs = trainer.network(torch.randn(1, 1, 8, 16, 16))
    channels = 2 if regions else 1
    sizes = [(8, 16, 16), (8, 8, 8)]
    targets = [torch.randint(0, 2, (1, channels, *size)).float() for size in sizes]
    loss(outputs, targets if heads > 1 else targets[0]).backward()
    # What asks for a gradient gets one, without which distributed training stops.
    asking = {name for name, parameter in trainer.network.named_parameters() if parameter.requires_grad}
    given = {name for name, parameter in trainer.network.named_parameters() if parameter.grad is not None}
    lower = {name for name, _ in trainer.network.named_parameters() if name.startswith("decoder.seg_layers.0.")}
    everything = {name for name, _ in trainer.network.named_parameters()}
    assert asking == everything - (set() if heads > 1 else lower)
    # nnU-Net gives the lowest of several heads no weight.
    assert asking - given <= lower


def test_the_squared_dice_is_compiled_as_nnunets_is(folders, monkeypatch):
    content = plans()
    content["configurations"]["3d_fullres"]["batch_dice"] = True
    trainer = make("nnUNetTrainerDeconver_paper", folders, content)
    monkeypatch.setattr(trainer, "_do_i_compile", lambda: True)
    dice = trainer._build_loss().dc
    assert isinstance(dice, torch._dynamo.OptimizedModule)
    assert isinstance(dice._orig_mod, SquaredDiceLoss)
    assert dice._orig_mod.batch_dice


def test_the_papers_deconver_has_one_head_and_the_squared_dice(folders):
    trainer = make("nnUNetTrainerDeconver_paper_160epochs", folders)
    assert (trainer.squared_dice, trainer.enable_deep_supervision, trainer.num_epochs) == (True, False, 160)
    assert make("nnUNetTrainerDeconver", folders).enable_deep_supervision
    for name in ("nnUNetTrainer_Adam_1head", "nnUNetTrainer_AdamWConstant_1head"):
        assert not make(name, folders).enable_deep_supervision


def test_class_attributes_are_what_a_variant_changes(folders):
    class nnUNetTrainerDeconver_mine(trainers.nnUNetTrainerDeconver):
        epochs = 300
        iterations_per_epoch = 10
        validation_iterations_per_epoch = 2
        learning_rate = 3e-4
        decay = 0.0

    trainer = nnUNetTrainerDeconver_mine(plans(), "3d_fullres", 0, DATASET, device=torch.device("cpu"))
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (300, 10, 2)
    assert (trainer.initial_lr, trainer.weight_decay) == (3e-4, 0)


@pytest.mark.parametrize("name, kernel", [("nnUNetTrainerDeconver", 3), ("nnUNetTrainerDeconver_k5", 5)])
def test_the_network_is_built_without_an_instance(name, kernel):
    """As inference does, by nnU-Net's names."""
    manager = PlansManager(plans())
    network = getattr(trainers, name).build_network_architecture(
        plans_manager=manager,
        configuration_manager=manager.get_configuration("3d_fullres"),
        num_input_channels=1,
        num_output_channels=3,
        enable_deep_supervision=True,
    )
    assert type(network) is Deconver
    assert network.encoder.stages[0][0].mixer.ndc.kernel_size == (1, kernel, kernel)
    assert [tuple(o.shape) for o in network(torch.zeros(1, 1, 8, 16, 16))] == [(1, 3, 8, 16, 16), (1, 3, 8, 8, 8)]


@pytest.mark.parametrize(
    "name, backbone, receptive_field, head",
    [
        ("nnUNetTrainerDTC", PlainConvUNet, 2, None),
        ("nnUNetTrainerDTC_rf1", PlainConvUNet, 1, None),
        ("nnUNetTrainerDTC_rf4", PlainConvUNet, 4, None),
        ("nnUNetTrainerDTC_rf10_50epochs", PlainConvUNet, 10, None),
        ("nnUNetTrainerDTC_rfinf", PlainConvUNet, float("inf"), None),
        ("nnUNetTrainerNeRDm", PlainConvUNet, None, NeRDm),
        ("nnUNetTrainerNeRDc_5epochs", PlainConvUNet, None, NeRDc),
        ("nnUNetTrainerDeconverDTC", Deconver, 2, None),
        ("nnUNetTrainerDeconverNeRDc", Deconver, None, NeRDc),
        ("nnUNetTrainerDeconverDTCNeRDc_250epochs", Deconver, 2, NeRDc),
        ("nnUNetTrainerDeconverNorm_lr1e3_5epochs", Deconver, None, NormHead),
    ],
)
def test_axes(name, backbone, receptive_field, head):
    manager = PlansManager(plans())
    network = getattr(trainers, name).build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, 3, False
    )
    assert type(network) is backbone
    upsamplings = list(network.decoder.transpconvs)
    if receptive_field is None:
        assert {type(layer) for layer in upsamplings} == {torch.nn.ConvTranspose3d}
    else:
        assert {type(layer) for layer in upsamplings} == {DeformableTransposedConvolution}
        assert {layer.receptive_field for layer in upsamplings} == {receptive_field}
    assert {type(layer) for layer in network.decoder.seg_layers} == {head or torch.nn.Conv3d}


def adapted_plans(network="PlainConvUNet", patch=(16, 32, 32)):
    """Plans whose patch UNETR takes, of nnU-Net's network or of UNETR, small."""
    content = plans()
    configuration = content["configurations"]["3d_fullres"]
    configuration |= {"patch_size": list(patch), "batch_dice": False}
    if network == "UNETR":
        backbone = BACKBONES["unetr"]
        entry = backbone.for_patch(backbone.architecture(configuration["architecture"]), patch)
        entry["arch_kwargs"]["network_kwargs"] |= {"hidden_size": 24, "mlp_dim": 8, "num_heads": 2}
        configuration["architecture"] = entry
    return content


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerUNETR", "nnUNetTrainer_AdamW", "nnUNetTrainerUNETRDTC", "nnUNetTrainerDTC"]
)
def test_trainers_of_a_plan_that_names_an_adapted_network(folders, name):
    trainer = make(name, folders, adapted_plans("UNETR"))
    architecture = trainer.plans_manager, trainer.configuration_manager, 1, 3
    network = trainer.build_network_architecture(*architecture, trainer.enable_deep_supervision)
    has_dtc = any(isinstance(module, DeformableTransposedConvolution) for module in network.modules())
    assert (type(network), network.plan.name, has_dtc) == (Adapted, "monai.networks.nets.UNETR", "DTC" in name)
    # nnU-Net makes targets for these, of which the second has no weight.
    assert trainer._get_deep_supervision_scales() == [[1, 1, 1], [1, 1, 1]]
    assert trainer._build_loss().weight_factors == (1, 0)
    # The lower head that a trainer with one head freezes is there to be looked for.
    build = trainers.nnUNetTrainer_Adam_1head.build_network_architecture
    assert any(parameter.requires_grad for parameter in build(*architecture, False).parameters())


def test_a_trainer_of_an_adapted_network_takes_nnunets_plans(folders):
    trainer = make("nnUNetTrainerUNETR", folders, adapted_plans())
    configuration = trainer.configuration_manager
    assert trainer.planned_architecture(configuration)["arch_kwargs"]["network_kwargs"]["img_size"] == [16, 32, 32]
    # The plan's network has strides of its own, and other targets.
    assert configuration.pool_op_kernel_sizes == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert trainer._get_deep_supervision_scales() == [[1, 1, 1], [1, 1, 1]]
    chosen, schedule = (trainer.initial_lr, trainer.weight_decay), trainer.recipe.schedule
    assert (chosen, schedule(0, 10), schedule(9, 10)) == ((1e-4, 1e-5), 1, 1)
    with pytest.raises(ValueError, match=r"UNETR does not take patches of 8 x 32 x 32; it takes 16 x 32 x 32:"):
        make("nnUNetTrainerUNETR", folders, adapted_plans(patch=(8, 32, 32)))
    with pytest.raises(ValueError, match=r"SegResNet cannot be put in the place of .* monai.networks.nets.UNETR"):
        make("nnUNetTrainerSegResNet", folders, adapted_plans("UNETR"))


def test_each_backbone_of_another_package_has_a_trainer_with_its_recipe():
    for backbone in BACKBONES.values():
        if backbone.adaptation is not None:
            trainer = getattr(trainers, backbone.trainer)
            expected = None if backbone.recipe == "nnunet" else RECIPES[backbone.recipe]
            assert (trainer.backbone, trainer.recipe) == (backbone, expected)


def test_a_device_that_lacks_an_operation_is_named_before_training(folders, monkeypatch):
    trainer = make("nnUNetTrainerDTC", folders)
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3, True)
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda self: setattr(self, "network", network))

    def refuse(*args, **kwargs):
        raise NotImplementedError("no kernel here")

    monkeypatch.setattr(torch.nn.functional, "grid_sample", refuse)
    with pytest.raises(ValueError, match=r"grid_sample in 3 dimensions.*no kernel here"):
        trainer.initialize()


@pytest.fixture
def trainer(folders):
    """A trainer of one weight, whose loss is that weight times the sum of what it sees."""
    trainer = make("nnUNetTrainerDeconver", folders)
    trainer.network = torch.nn.Linear(1, 1, bias=False)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = lambda output, target: output.sum()
    trainer.was_initialized = True
    return trainer


def batch(value=1.0):
    return {"data": torch.full((1, 1), value), "target": torch.ones(1, 1), "keys": np.array(["case_7"])}


def save(trainer, name, epochs):
    path = f"{trainer.output_folder}/checkpoint_{name}.pth"
    trainer.current_epoch = epochs - 1
    trainer.save_checkpoint(path)
    return Path(path)


def names(trainer):
    return sorted(path.name for path in Path(trainer.output_folder).iterdir() if "checkpoint" in path.name)


def test_a_loss_that_is_not_finite_stops_the_training(trainer):
    assert np.isfinite(trainer.train_step(batch())["loss"])
    with pytest.raises(FloatingPointError, match=r"nan in epoch 0 .*case_7.*learning rate.*start again, without --c"):
        trainer.train_step(batch(float("nan")))


def test_the_message_names_the_checkpoint_to_go_on_from(trainer):
    save(trainer, "best", 40)
    save(trainer, "latest", 50)
    with pytest.raises(FloatingPointError, match=r"--c then goes on from checkpoint_latest.pth, .* after 50 epochs"):
        trainer.train_step(batch(float("nan")))


def test_an_iteration_that_the_gradient_scaler_skips_does_not_stop_the_training(trainer):
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    outputs = [trainer.train_step(batch(value)) for value in (1.0, float("nan"), 1.0)]
    assert [bool(np.isfinite(each["loss"])) for each in outputs] == [True, False, True]
    trainer.on_train_epoch_end(outputs)
    outputs = [trainer.train_step(batch(float("inf"))) for _ in range(3)]
    with pytest.raises(FloatingPointError, match="not finite in any iteration in epoch 0"):
        trainer.on_train_epoch_end(outputs)


def test_weights_that_the_last_iteration_ruins_stop_the_training(trainer):
    trainer.network.weight.register_hook(lambda gradient: gradient * float("nan"))
    outputs = [trainer.train_step(batch())]
    assert np.isfinite(outputs[0]["loss"])
    with pytest.raises(FloatingPointError, match="the weights became NaN or inf in epoch 0"):
        trainer.on_train_epoch_end(outputs)


def test_a_validation_without_a_finite_loss_stops_the_training(trainer):
    counts = {name: np.ones(2) for name in ("tp_hard", "fp_hard", "fn_hard")}
    nan, one = ({"loss": np.array(value), **counts} for value in (float("nan"), 1.0))
    trainer.on_validation_epoch_end([nan, one])
    with pytest.raises(FloatingPointError, match="the validation loss was not finite in any iteration in epoch 0"):
        trainer.on_validation_epoch_end([nan, nan])


def test_weights_that_are_not_finite_are_never_written(trainer):
    path = save(trainer, "latest", 50)
    before = path.read_bytes()
    for value in (float("nan"), float("-inf")):
        torch.nn.init.constant_(trainer.network.weight, value)
        with pytest.raises(FloatingPointError, match=r"epoch 99 .* checkpoint_latest.pth, .* after 50 epochs"):
            save(trainer, "latest", 100)
    assert path.read_bytes() == before
    assert names(trainer) == ["checkpoint_latest.pth"]


def test_a_mask_of_inf_is_no_weight(trainer):
    trainer.network.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    trainer.on_train_epoch_end([trainer.train_step(batch())])
    trainer.load_checkpoint(str(save(trainer, "latest", 50)))
    assert trainer.current_epoch == 50


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(trainer, little_space):
    trainer.network.more = torch.nn.Parameter(torch.zeros(10_000))
    path = save(trainer, "latest", 50)
    before = path.read_bytes()
    for size in (0, 100, 1000, 20_000, len(before) - 1):
        with little_space(size), pytest.raises(InputError, match=r"latest.pth: cannot be written .* after 50 epochs"):
            save(trainer, "latest", 100)
        assert path.read_bytes() == before
        assert names(trainer) == ["checkpoint_latest.pth"]


@pytest.mark.parametrize("reason", ["disable_checkpointing", "local_rank"])
def test_who_writes_no_checkpoint_touches_none(trainer, reason):
    path = save(trainer, "latest", 50)
    before = path.read_bytes()
    setattr(trainer, reason, 1)
    save(trainer, "latest", 100)
    assert path.read_bytes() == before


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -1000, -1])
def test_a_checkpoint_that_is_cut_short_is_told(trainer, length):
    save(trainer, "best", 40)
    path = save(trainer, "latest", 50)
    cut(path, length)
    message = r"latest.pth: is cut short or damaged .*remove it. --c then goes on from checkpoint_best.pth, .* after 40"
    with pytest.raises(InputError, match=message):
        trainer.load_checkpoint(str(path))
    cut(path.with_name("checkpoint_best.pth"), length)
    with pytest.raises(InputError, match=r"latest.pth: is cut short .* There is no whole checkpoint to go on from"):
        trainer.load_checkpoint(str(path))


def test_a_checkpoint_of_a_diverged_training_is_told(trainer):
    save(trainer, "best", 40)
    path = save(trainer, "latest", 50)
    content = torch.load(path, weights_only=False)
    content["network_weights"]["weight"][:] = float("nan")
    torch.save(content, path)
    with pytest.raises(InputError, match=r"latest.pth: holds weights that are NaN, .* checkpoint_best.pth, .* 40"):
        trainer.load_checkpoint(str(path))


def test_a_checkpoint_that_is_missing_is_called_so(trainer):
    with pytest.raises(FileNotFoundError):
        trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_best.pth")


def test_nnunet_goes_on_from_the_checkpoint_that_the_message_names(trainer):
    for name, epochs in (("best", 60), ("latest", 50), ("final", 100)):
        save(trainer, name, epochs)
    for name, epochs in (("final", 50), ("latest", 60)):
        path = Path(trainer.output_folder) / f"checkpoint_{name}.pth"
        cut(path, 100)
        with pytest.raises(InputError, match=f"after {epochs} epochs"):
            maybe_load_checkpoint(trainer, True, False)
        path.unlink()
        maybe_load_checkpoint(trainer, True, False)
        assert trainer.current_epoch == epochs


def test_the_best_epoch_is_known_after_going_on(trainer):
    """nnU-Net writes checkpoint_latest before it notes that the epoch was the best."""
    for epoch, dice in enumerate((0.2, 0.3)):
        trainer.logger.log("mean_fg_dice", dice, epoch)
    path = save(trainer, "latest", 2)
    trainer.load_checkpoint(str(path))
    assert trainer._best_ema == trainer.logger.get_value("ema_fg_dice", -1) > 0.2


def broken_plans(**change):
    content = plans()
    configuration = content["configurations"]["3d_fullres"]
    configuration["patch_size"] = change.pop("patch_size", configuration["patch_size"])
    configuration["architecture"]["network_class_name"] = change.pop(
        "network_class_name", configuration["architecture"]["network_class_name"]
    )
    configuration["architecture"]["arch_kwargs"] |= change
    return content


@pytest.mark.parametrize(
    "change, message",
    [
        ({"network_class_name": "some.where.Swin"}, "some.where.Swin"),
        ({"patch_size": [8, 18, 16]}, r"\(8, 18, 16\) must be divisible by .*\(2, 4, 4\)"),
        ({"patch_size": [16, 16]}, "3 spatial axes"),
        ({"conv_op": "torch.nn.Conv2d"}, "kernel_sizes must have 2"),
        ({"kernel_sizes": [[2, 2, 2]] * 3}, "odd"),
        ({"network_class_name": "nnunet_deconver.networks.Deconver", "ndc_groups": 3}, "groups = 3"),
    ],
    ids=str,
)
def test_plans_that_do_not_fit_leave_nothing_behind(folders, change, message):
    with pytest.raises(ValueError, match=message):
        make("nnUNetTrainerDeconver", folders, broken_plans(**change))
    assert not list(folders.iterdir())


def test_plans_survive_the_check(folders):
    content = plans()
    make("nnUNetTrainerDeconver", folders, content)
    expected = plans()
    del expected["continue_training"]
    assert json.dumps(content) == json.dumps(expected)
