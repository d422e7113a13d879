import pytest

from nnunet_deconver.layers import DeformableTransposedConvolution, NeRDc
from nnunet_deconver.networks import Deconver, PlainConvUNet
from nnunet_deconver.networks.architecture import (
    DECONVER,
    build_network,
    deconver_architecture,
    plain_architecture,
    with_larger_kernels,
)
from nnunet_deconver.networks.backbones import with_components


def plain(**changes):
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": kwargs | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


@pytest.mark.parametrize(
    "name", ["unet.PlainConvUNet", "unet.ResidualEncoderUNet", "residual_unet.ResidualEncoderUNet"]
)
def test_the_topology_is_carried_over(name):
    entry = plain() | {"network_class_name": f"dynamic_network_architectures.architectures.{name}"}
    translated = deconver_architecture(entry)
    network = build_network(translated, 2, 3, deep_supervision=True)
    assert type(network) is Deconver
    assert [stage[0].mixer.ndc.kernel_size for stage in network.encoder.stages] == [(1, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert [stage[0].mixer.ndc.channels for stage in network.encoder.stages] == [4, 8, 16]
    assert [layer.stride for layer in network.encoder.downsamplings] == [(1, 2, 2), (2, 2, 2)]
    assert network.encoder.stem.in_channels == 2
    assert network.decoder.seg_layers[-1].out_channels == 3
    assert network.decoder.deep_supervision


def test_the_kernel_is_replaced_where_it_is_not_flat():
    translated = deconver_architecture(plain(), kernel_size=5)
    assert translated["arch_kwargs"]["kernel_sizes"] == [[1, 5, 5], [5, 5, 5], [5, 5, 5]]
    network = build_network(translated, 1, 2, deep_supervision=False)
    assert network.encoder.stem.kernel_size == (1, 3, 3)


@pytest.mark.parametrize(
    "kernels, kernel, larger",
    [(3, 5, 5), ([3, 1], 5, [5, 1]), ([[1, 3, 3], [3, 5, 3]], 7, [[1, 7, 7], [7, 7, 7]])],
)
def test_kernels_of_a_plan_are_enlarged_where_they_are_not_flat(kernels, kernel, larger):
    entry = plain(kernel_sizes=kernels)
    assert with_larger_kernels(entry, kernel) == plain(kernel_sizes=larger)
    assert entry == plain(kernel_sizes=kernels)


def test_the_kernel_of_a_network_of_another_package_is_enlarged():
    entry = {
        "network_class_name": "nnunet_deconver.networks.Adapted",
        "arch_kwargs": {"network": "their.Network", "network_kwargs": {"kernel_size": 3, "features": 8}},
        "_kw_requires_import": [],
    }
    larger = with_larger_kernels(entry, 5)["arch_kwargs"]
    assert larger == {"network": "their.Network", "network_kwargs": {"kernel_size": 5, "features": 8}}
    del entry["arch_kwargs"]["network_kwargs"]["kernel_size"]
    with pytest.raises(ValueError, match=r"network their\.Network of the plans has no kernel_sizes, nor a kernel_size"):
        with_larger_kernels(entry, 5)


@pytest.mark.parametrize("kernel", [1, 3, 4, 6, -7])
def test_kernels_become_odd_and_larger(kernel):
    with pytest.raises(ValueError, match="must be an odd number greater than 3, the largest kernel of the plans"):
        with_larger_kernels(plain(), kernel)


def test_a_plan_that_names_deconver_is_kept():
    entry = deconver_architecture(plain())
    entry["arch_kwargs"]["source_ratio"] = 2
    assert deconver_architecture(entry, kernel_size=5) == entry
    network = build_network(entry, 1, 2, deep_supervision=False)
    assert network.encoder.stages[0][0].mixer.ndc.source_channels == 8


def test_the_plan_is_not_changed():
    entry = plain()
    deconver_architecture(entry, kernel_size=5)
    assert entry == plain()


def test_unknown_networks_are_named():
    entry = plain() | {"network_class_name": "dynamic_network_architectures.architectures.primus.PrimusM"}
    with pytest.raises(ValueError, match=r"PrimusM.*PlainConvUNet or ResidualEncoderUNet"):
        deconver_architecture(entry)


def test_a_missing_part_of_the_topology_is_named():
    entry = plain()
    del entry["arch_kwargs"]["strides"]
    with pytest.raises(ValueError, match="lack strides"):
        deconver_architecture(entry)


def test_a_name_that_cannot_be_imported():
    entry = {"network_class_name": DECONVER, "arch_kwargs": {"conv_op": "torch.nn.Conf3d"}}
    with pytest.raises(ValueError, match=r"torch\.nn\.Conf3d"):
        build_network(entry | {"_kw_requires_import": ["conv_op"]}, 1, 2, deep_supervision=False)


@pytest.mark.parametrize("entry", [plain(source_ration=2), plain(kernel_sizes=[3, 3])], ids=["unknown", "length"])
def test_arguments_that_the_network_rejects(entry):
    with pytest.raises(ValueError, match="PlainConvUNet cannot be built from its arch_kwargs"):
        build_network(entry, 1, 2, deep_supervision=False)


def test_axes_are_added_to_nnunets_network():
    entry = with_components(
        plain(), upsampling={"name": "dtc", "receptive_field": 4}, segmentation_head={"name": "nerdc"}
    )
    network = build_network(entry, 1, 2, deep_supervision=False)
    assert type(network) is PlainConvUNet
    assert all(type(layer) is DeformableTransposedConvolution for layer in network.decoder.transpconvs)
    assert {layer.receptive_field for layer in network.decoder.transpconvs} == {4}
    assert [layer.stride for layer in network.decoder.transpconvs] == [(2, 2, 2), (1, 2, 2)]
    assert all(type(layer) is NeRDc for layer in network.decoder.seg_layers)
    assert entry["arch_kwargs"]["n_conv_per_stage"] == [2, 2, 2]


def test_without_a_choice_the_plan_stays_as_it_is():
    assert with_components(plain()) == plain()
    chosen = with_components(plain(), upsampling={"name": "dtc"})
    assert with_components(chosen, upsampling={"name": "dtc"}) == chosen


def test_deconver_takes_over_the_axes_of_the_plan():
    entry = deconver_architecture(with_components(plain(), segmentation_head={"name": "nerdc"}))
    network = build_network(with_components(entry, upsampling={"name": "dtc"}), 1, 2, deep_supervision=False)
    assert type(network) is Deconver
    assert type(network.decoder.seg_layers[0]) is NeRDc
    assert type(network.decoder.transpconvs[0]) is DeformableTransposedConvolution


def test_a_plan_and_a_trainer_that_disagree():
    chosen = with_components(plain(), upsampling={"name": "linear"})
    with pytest.raises(ValueError, match=r"the plans have upsampling \{'name': 'linear'\}, the trainer"):
        with_components(chosen, upsampling={"name": "dtc"})


def test_networks_without_axes_are_named():
    entry = plain() | {"network_class_name": "dynamic_network_architectures.architectures.primus.PrimusM"}
    with pytest.raises(ValueError, match="PrimusM, which has no upsampling to choose"):
        with_components(entry, upsampling={"name": "dtc"})


@pytest.mark.parametrize(
    "kernel_sizes, expected, built",
    [
        ([[1, 3, 3], [3, 3, 3], [5, 5, 5]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]),
        ([5, 3, 1], [3, 3, 1], [(3, 3, 3), (3, 3, 3), (1, 1, 1)]),
        (5, 3, [(3, 3, 3)] * 3),
    ],
    ids=["per-axis", "per-stage", "one"],
)
def test_the_default_network_on_the_stages_of_another(kernel_sizes, expected, built):
    """nnU-Net's: two convolutions a stage, kernels of 3 at most, none of the other's axes."""
    entry = deconver_architecture(plain(kernel_sizes=kernel_sizes))
    entry = with_components(entry, upsampling={"name": "dtc"}, segmentation_head={"name": "nerdc"})
    default = plain_architecture(entry)
    stock = plain() | {"network_class_name": "nnunet_deconver.networks.PlainConvUNet"}
    del stock["arch_kwargs"]["dropout_op"], stock["arch_kwargs"]["dropout_op_kwargs"]
    assert default["arch_kwargs"].pop("norm_op") == "torch.nn.InstanceNorm3d"
    assert default["arch_kwargs"] == {key: value for key, value in stock["arch_kwargs"].items() if key != "norm_op"} | {
        "kernel_sizes": expected
    }
    default = plain_architecture(entry)
    network = build_network(default, 1, 2, deep_supervision=True)
    assert type(network) is PlainConvUNet
    assert [stage[0].convs[0].conv.kernel_size for stage in network.encoder.stages] == built


def test_the_default_network_needs_stages():
    entry = plain() | {"network_class_name": "dynamic_network_architectures.architectures.primus.PrimusM"}
    del entry["arch_kwargs"]["strides"]
    with pytest.raises(ValueError, match="PrimusM lack strides"):
        plain_architecture(entry)
