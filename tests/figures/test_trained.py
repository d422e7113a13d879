import json
import math

import numpy as np
import pytest
import torch

from nnunet_deconver import cli
from nnunet_deconver.figures.trained import learned_displacement, position_maps
from nnunet_deconver.layers import DeformableTransposedConvolution, NeRDc, NeRDm
from nnunet_deconver.ops.nerd import border_distances, position_activations


@pytest.mark.parametrize("size", [(12, 10), (8, 6, 10)], ids=["2D", "3D"])
@pytest.mark.parametrize("receptive_field", [2, 4, math.inf])
def test_displacement_is_where_the_layer_samples(size, receptive_field):
    """Features that are their own coordinate tell where they were sampled."""
    torch.manual_seed(0)
    rank, stride = len(size), (2, 1, 2)[-len(size) :]
    base = torch.nn.Upsample(scale_factor=stride)
    layer = DeformableTransposedConvolution(rank, rank, stride, base=base, receptive_field=receptive_field)
    layer.projection.weight.data = torch.eye(rank).reshape(rank, rank, *[1] * rank)
    layer.projection.bias.data.zero_()
    layer.offset.bias.data = torch.randn(2 * rank) * 0.1  # so that an unbounded one stays inside
    low = [length // step for length, step in zip(size, stride, strict=True)]
    network = torch.nn.Sequential(torch.nn.AvgPool2d(stride) if rank == 2 else torch.nn.AvgPool3d(stride), layer)
    image = np.stack(np.meshgrid(*(np.arange(length, dtype=np.float32) for length in size), indexing="ij"))
    displacement = learned_displacement(network, layer, image)
    assert displacement.shape == (rank, *size)
    features = network[0](torch.from_numpy(image)[None])
    assert features.shape[2:] == tuple(low)
    with torch.no_grad():
        sampled = (layer(features) - base(features))[0].numpy()
    # Not at the border, beyond which features end.
    far = int(np.ceil(np.abs(displacement).max())) + 1
    inner = (slice(None), *(slice(far, -far) for _ in size))
    assert sampled[inner].size
    np.testing.assert_allclose(sampled[inner], (image + displacement)[inner], atol=1e-4)
    assert np.abs(displacement).max() > 0.01


def nerd(kind, rank):
    torch.manual_seed(0)
    head = kind(4, 3, rank, bias=True)
    for parameter in head.mlp[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return head


@torch.no_grad()
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("kind", [NeRDc, NeRDm])
def test_position_maps_are_those_of_the_equations(kind, softmax):
    head, size = nerd(kind, 2), (6, 5)
    code = position_activations(border_distances(size), head._hidden_layers())[-1]
    last = head.mlp[-1]
    changes = (last.weight @ code if last.bias is None else last.weight @ code + last.bias[:, None]).unflatten(1, size)
    weight, bias = head.classifier.weight.flatten(1), head.classifier.bias  # (3, 4), (3,)
    if kind is NeRDc:
        weights = weight[:, :, None, None] + changes[:12].unflatten(0, (3, 4))
        constants = bias[:, None, None] + changes[12:]
    else:
        weights = weight[:, :, None, None] * (1 + changes[:4])
        constants = bias[:, None, None] + torch.einsum("kc,cyx->kyx", weight, changes[4:])
    if softmax:
        weights, constants = weights[1:] - weights[:1], constants[1:] - constants[:1]
    mean = weights.mean((2, 3), keepdim=True)
    expected = (weights - mean).norm(dim=1) / mean.norm(dim=1)
    (constant,), (change,) = position_maps(head, size, softmax)
    np.testing.assert_allclose(constant, constants - constants.mean((1, 2), keepdim=True), atol=1e-5)
    np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-5)


def test_position_maps_of_a_volume_are_planes_through_its_middle():
    head = nerd(NeRDc, 3)
    constants, changes = position_maps(head, (4, 6, 8), softmax=False)
    assert [plane.shape for plane in constants] == [(3, 6, 8), (3, 4, 8), (3, 4, 6)]
    with torch.no_grad():
        whole = head(torch.zeros(1, 4, 4, 6, 8))[0, :, :, 3]
    np.testing.assert_allclose(constants[1], whole - whole.mean((1, 2), keepdim=True), atol=1e-6)
    plain = NeRDc(4, 3, 3)  # at its start: the same everywhere
    constants, changes = position_maps(plain, (4, 6, 8), softmax=True)
    for plane in (*constants, *changes):
        np.testing.assert_allclose(plane, 0, atol=1e-5)


@pytest.fixture
def figures(tmp_path):
    def run(*models):
        return cli.main(["figures", *map(str, models), "-o", str(tmp_path / "out")])

    return run


def drawn(tmp_path):
    return {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}


def both(*names):
    return {f"{name}.{ending}" for name in names for ending in ("png", "svg")}


@pytest.mark.parametrize("rank", [2, 3])
def test_sampling_and_position_of_a_model_folder(trained_model, cross_validated, tmp_path, figures, rank):
    reader, ending = {2: ("NaturalImage2DIO", ".png"), 3: ("SimpleITKIO", ".nii.gz")}[rank]
    model = trained_model(rank=rank, reader=reader, ending=ending, trainer="nnUNetTrainerDeconverDTCNeRDc")
    cross_validated(model, rank)
    assert figures(model) == 0
    assert drawn(tmp_path) == both("cases", f"sampling_{model.name}", f"position_{model.name}")
    svg = (tmp_path / "out" / f"sampling_{model.name}.svg").read_text()
    assert ">voxels (at most 1 along an axis)<" in svg  # receptive field 2, stride 2
    assert f">{model.name}, b<" in svg  # the median case


def test_the_model_of_predictions_that_were_evaluated(trained_model, cross_validated, tmp_path, figures):
    model = trained_model(trainer="nnUNetTrainerNeRDc", folds=(2,))
    cross_validated(model)
    references = tmp_path / "preprocessed" / "Dataset900_Test" / "gt_segmentations"
    predictions = (model / "fold_0" / "validation").rename(tmp_path / "predictions")
    for name in ("plans.json", "dataset.json"):  # as nnUNetv2_predict leaves them
        (predictions / name).write_text((model / name).read_text())
    arguments = [references, predictions, "--model", model, "-o", tmp_path / "evaluation", "-np", 1]
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    assert figures(tmp_path / "evaluation") == 0
    assert drawn(tmp_path) == both("cases", "position_evaluation")


def test_a_network_without_these_axes_has_no_such_figures(trained_model, cross_validated, tmp_path, figures, capsys):
    model = trained_model()
    (model / "fold_0" / "checkpoint_final.pth").unlink()  # which is not needed then
    cross_validated(model)
    assert figures(model) == 0
    assert drawn(tmp_path) == both("cases")
    assert "cannot be built" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "fold_0: has no checkpoint (checkpoint_final.pth"),
        (lambda path: path.write_bytes(b"no checkpoint"), "cannot be read as a checkpoint"),
        (
            lambda path: torch.save(torch.load(path, weights_only=False) | {"network_weights": {}}, path),
            "its weights are",
        ),
    ],
    ids=["missing", "unreadable", "of another network"],
)
def test_a_bad_checkpoint_is_told_and_the_cases_are_drawn(
    trained_model, cross_validated, tmp_path, figures, capsys, spoil, message
):
    model = trained_model(trainer="nnUNetTrainerDeconverDTCNeRDc")
    cross_validated(model)
    spoil(model / "fold_0" / "checkpoint_final.pth")
    assert figures(model) == 1
    told = capsys.readouterr().err
    assert f"not drawn: {model.name}: " in told
    assert message in told
    assert drawn(tmp_path) == both("cases")


def test_a_folder_of_any_name_is_known_by_its_checkpoint(trained_model, cross_validated, tmp_path, figures):
    model = trained_model(trainer="nnUNetTrainerNeRDc")
    model = model.rename(model.with_name("upgraded"))
    cross_validated(model)
    assert figures(model) == 0
    assert drawn(tmp_path) == both("cases", "position_upgraded")


def test_without_a_case_of_its_own_a_model_has_no_sampling_figure(
    trained_model, cross_validated, tmp_path, figures, capsys
):
    models = [trained_model(), trained_model(trainer="nnUNetTrainerDTC")]
    for model in models:
        cross_validated(model)
    (models[1] / "fold_0" / "validation" / "a.nii.gz").unlink()
    assert figures(*models, "--cases", "a") == 1
    told = capsys.readouterr().err
    assert "not drawn: nnUNetTrainerDTC, a: no prediction" in told
    assert "not drawn: nnUNetTrainerDTC: none of its cases is drawn" in told
    assert drawn(tmp_path) == both("cases")


def test_a_cascade_has_no_sampling_figure(trained_model, cross_validated, tmp_path, figures, capsys):
    model = trained_model(trainer="nnUNetTrainerDTC")
    cross_validated(model)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["low"] = plans["configurations"]["test"]
    plans["configurations"]["test"] = plans["configurations"]["test"] | {"previous_stage": "low"}
    (model / "plans.json").write_text(json.dumps(plans))
    assert figures(model) == 1
    assert "not drawn" in capsys.readouterr().err
