import math
from functools import partial

import pytest
from torch import nn

from nnunet_deconver.networks import Deconver
from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.ops import recompute
from nnunet_deconver.plans.cost import network_cost, prediction_cost, stage_modules, training_flops


def cost_of(entry, patch_size, inputs=1, classes=3, batch_size=2):
    return network_cost(
        lambda deep_supervision: build_network(entry, inputs, classes, deep_supervision=deep_supervision),
        input_channels=inputs,
        num_classes=classes,
        regions=False,
        patch_size=patch_size,
        batch_size=batch_size,
    )


ISLES, BRATS, GLAS = (2, 1, nn.Conv3d, 64, 4), (4, 3, nn.Conv3d, 32, 5), (3, 1, nn.Conv2d, 32, 6)


# configuration, kernel, options, parameters in M with one head, kFLOPs / voxel without and with the updates
@pytest.mark.parametrize(
    "configuration, kernel, options, parameters, without, with_updates",
    [
        pytest.param(ISLES, 3, {}, 10.48, 597.9, 707.4, id="isles"),
        pytest.param(ISLES, 3, {"source_ratio": 2}, 8.66, 479.1, 533.9, id="isles-r2"),
        pytest.param(ISLES, 3, {"source_ratio": 1}, 7.75, 419.7, 447.1, id="isles-r1"),
        pytest.param(ISLES, 5, {}, 11.03, 597.9, 1104.9, id="isles-k5"),
        pytest.param(BRATS, 3, {}, 10.55, 162.9, 218.0, id="brats"),
        pytest.param(GLAS, 3, {}, 20.64, 416.0, 442.9, id="glas"),
    ],
)
def test_the_published_table(configuration, kernel, options, parameters, without, with_updates):
    inputs, classes, conv_op, width, stages = configuration
    features = [min(width * 2**level, 512) for level in range(stages)]
    build = partial(Deconver, inputs, stages, features, conv_op, kernel, [1] + [2] * (stages - 1), classes, **options)
    patch_size = (64,) * (3 if conv_op is nn.Conv3d else 2)
    cost = network_cost(
        build, input_channels=inputs, num_classes=classes, regions=True, patch_size=patch_size, batch_size=2
    )
    # one head: that of the highest resolution
    (heads,) = [row for row in cost.stages if row.name == "heads"]
    one_head = (features[0] + 1) * classes
    assert round((cost.parameters - heads.parameters + one_head) / 1e6, 2) == parameters
    voxels = math.prod(patch_size)
    assert round((cost.flops - cost.ndc_flops) / voxels / 1e3, 1) == without
    assert round(cost.flops / voxels / 1e3, 1) == with_updates


def test_flops_are_the_same_in_parts(monkeypatch, architecture):
    entry = architecture("deconver", 3)
    whole = cost_of(entry, (16, 16, 16))
    monkeypatch.setattr(recompute, "GROUP_ELEMENTS", 1)
    in_parts = cost_of(entry, (16, 16, 16))
    for name in ("flops", "ndc_flops"):
        assert getattr(in_parts, name) == getattr(whole, name) > 0
    assert [(row.flops, row.ndc_flops) for row in in_parts.stages] == [(r.flops, r.ndc_flops) for r in whole.stages]


@pytest.mark.parametrize("axes", [{}, {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdc"}}], ids=str)
@pytest.mark.parametrize("anisotropic", [False, True], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("backbone", ["plain", "residual", "deconver", "mednext"])
def test_rows_sum_to_totals(architecture, backbone, anisotropic, axes):
    entry = architecture(backbone, 3, anisotropic=anisotropic, **axes)
    cost = cost_of(entry, (8, 16, 32))
    alone = prediction_cost(lambda: build_network(entry, 1, 3, deep_supervision=False), 1, (8, 16, 32))
    assert (alone.parameters, alone.flops, alone.ndc_flops) == (cost.parameters, cost.flops, cost.ndc_flops)
    names = ["encoder 0", "encoder 1", "encoder 2", "decoder 1", "decoder 0", "heads"]
    assert [row.name for row in cost.stages] == names
    half = 8 if anisotropic else 4
    sizes = [(8, 16, 32), (half, 8, 16), (half // 2, 4, 8)]
    assert [row.size for row in cost.stages] == [*sizes, sizes[1], sizes[0], ()]
    assert [row.channels for row in cost.stages] == [16, 32, 64, 32, 16, 3]
    assert sum(row.parameters for row in cost.stages) == cost.parameters
    assert cost.parameters * 4 == cost.memory.parameters
    assert sum(row.flops for row in cost.stages) == cost.flops
    assert sum(row.ndc_flops for row in cost.stages) == cost.ndc_flops
    assert (cost.ndc_flops > 0) == (backbone == "deconver")
    assert all(row.flops > row.ndc_flops >= 0 for row in cost.stages)
    # all but the loss
    assert sum(row.kept for row in cost.stages) == cost.memory.kept - cost.memory.kept_by[""]
    assert all(row.kept for row in cost.stages)


def test_a_stage_by_hand(architecture):
    """PlainConvUNet with two convolutions a stage in the encoder, in 2D."""
    rows = {row.name: row for row in cost_of(architecture("plain", 2), (32, 32)).stages}
    voxels = 32 * 32
    first, second = 9 * 1 * 16, 9 * 16 * 16
    norm = 2 * 16
    assert rows["encoder 0"].parameters == first + 16 + norm + second + 16 + norm
    assert rows["encoder 0"].flops == 2 * (first + second) * voxels
    upsampling, after = 4 * 32 * 16, 9 * 32 * 16
    assert rows["decoder 0"].parameters == upsampling + 16 + after + 16 + norm
    assert rows["decoder 0"].flops == 2 * (upsampling * voxels // 4 + after * voxels)
    # A head per resolution, of which the highest predicts.
    assert rows["heads"].parameters == (16 + 1) * 3 + (32 + 1) * 3
    assert rows["heads"].flops == 2 * 16 * 3 * voxels


def test_what_leads_into_a_stage_belongs_to_it(architecture):
    """Deconver's stem to the highest resolution, its downsamplings to the lower ones."""
    entry = architecture("deconver", 2)
    network = build_network(entry, 1, 3, deep_supervision=True)
    encoder, decoder = network.encoder, network.decoder
    expected = {
        "encoder 0": [encoder.stem, encoder.stages[0]],
        "encoder 1": [encoder.downsamplings[0], encoder.stages[1]],
        "encoder 2": [encoder.downsamplings[1], encoder.stages[2]],
        "decoder 1": [decoder.transpconvs[0], decoder.projections[0], decoder.stages[0]],
        "decoder 0": [decoder.transpconvs[1], decoder.projections[1], decoder.stages[1]],
        "heads": list(decoder.seg_layers),
    }
    found = stage_modules(network)
    assert list(found) == list(expected)
    for name, modules in expected.items():
        assert set(found[name]) == set(modules), name


def flops_of_step(entry, recompute=None, patch_size=(16, 16, 16), batch_size=2):
    if recompute is not None:
        entry = entry | {"arch_kwargs": entry["arch_kwargs"] | {"recompute": recompute}}
    return training_flops(
        partial(build_network, entry, 1, 3, deep_supervision=True),
        input_channels=1,
        num_classes=3,
        regions=False,
        patch_size=patch_size,
        batch_size=batch_size,
    )


def test_a_step_by_hand():
    step = partial(training_flops, Pointwise, input_channels=1, num_classes=3, regions=False, patch_size=(8, 8))
    # Forward, and the weights' gradient: that of the image is not needed.
    assert step(batch_size=1) == 2 * 2 * 3 * 64
    assert step(batch_size=5) == 5 * step(batch_size=1)


@pytest.mark.parametrize("elements", [10**9, 4 * 16**3], ids=["whole", "in parts"])
def test_what_is_computed_again_is_a_step_of_the_blocks(monkeypatch, architecture, elements):
    """Forward, but for the last convolutions of mixer and MLP, whose results nothing backward needs."""
    monkeypatch.setattr(recompute, "GROUP_ELEMENTS", elements)
    monkeypatch.setattr(recompute, "GROUP_SHARE", 10**9)
    entry = architecture("deconver", 3)
    never = flops_of_step(entry, "never")
    blocks = 0
    for channels, size, n in ((16, 16, 2), (32, 8, 2), (64, 4, 1)):
        # projection in, source, two convolutions with each source and one to it, MLP in
        weights = channels * channels + channels * 4 * channels + 3 * 4 * channels * 27 + channels * 4 * channels
        blocks += n * 2 * weights * size**3
    assert flops_of_step(entry, "always") - never == 2 * blocks
    assert flops_of_step(entry) == flops_of_step(entry, "always")
    assert never < flops_of_step(entry, [True, False, True]) < 2 * blocks + never


def test_the_cost_of_a_step_with_and_without_recomputation(architecture):
    entry = architecture("deconver", 3)
    cost = cost_of(entry, (16, 16, 16))
    assert cost.training_flops == flops_of_step(entry, "always")
    assert cost.training_flops_without_recomputation == flops_of_step(entry, "never")
    entry["arch_kwargs"]["recompute"] = [True, False, False]
    some = cost_of(entry, (16, 16, 16))
    assert cost.training_flops > some.training_flops > some.training_flops_without_recomputation
    assert some.training_flops_without_recomputation == cost.training_flops_without_recomputation
    plain = cost_of(architecture("plain", 3), (16, 16, 16))
    assert plain.training_flops == plain.training_flops_without_recomputation > 2 * 2 * plain.flops


class Pointwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return [self.layer(x)] if self.training else self.layer(x)


def test_a_network_of_unknown_structure_has_totals_only():
    assert stage_modules(Pointwise()) == {}
    cost = network_cost(
        lambda deep_supervision: Pointwise(),
        input_channels=1,
        num_classes=3,
        regions=False,
        patch_size=(8, 8),
        batch_size=2,
    )
    assert cost.stages == []
    assert (cost.parameters, cost.flops, cost.ndc_flops) == (6, 2 * 3 * 64, 0)
    assert cost.memory.kept == cost.memory.kept_by[""] > 0


def test_a_patch_the_network_rejects(architecture):
    with pytest.raises(ValueError, match=r"\(30, 32\) must be divisible"):
        cost_of(architecture("deconver", 2), (30, 32))
