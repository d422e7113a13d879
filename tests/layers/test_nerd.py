import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_deconver.layers.nerd import NeRDc, NeRDm
from nnunet_deconver.ops import nerd_chunked, policy
from nnunet_deconver.ops.nerd import border_distances, position_activations

HEADS = pytest.mark.parametrize("head", [NeRDm, NeRDc])
BIAS = pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "biased"])
SIZES = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}
RANKS = pytest.mark.parametrize("rank", SIZES)


def trained(head, *args, seed=0, **kwargs):
    """A head whose map is no longer constant."""
    torch.manual_seed(seed)
    layer = head(*args, **kwargs)
    for parameter in layer.mlp[-1].parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def features(rank=3, channels=4, batch=2, dtype=torch.float32, seed=1):
    return torch.randn(batch, channels, *SIZES[rank], generator=torch.Generator().manual_seed(seed)).to(dtype)


@RANKS
@BIAS
def test_nerdm_is_its_equations(rank, bias):
    """Eq. (5) with the perceptron's own forward."""
    layer = trained(NeRDm, 4, 3, rank, bias=bias).double()
    x = features(rank, dtype=torch.float64)
    v = border_distances(SIZES[rank], dtype=torch.float64)
    scale, shift = layer.mlp(v.t()).t().unflatten(1, SIZES[rank]).chunk(2)
    w = layer.classifier.weight.flatten(1)
    expected = torch.einsum("kc,bc...->bk...", w, x * (scale + 1) + shift)
    if bias:
        expected = expected + layer.classifier.bias.view(-1, *[1] * rank)
    torch.testing.assert_close(layer(x), expected)


@RANKS
@BIAS
def test_nerdc_is_its_equation(rank, bias):
    """Section 2.2 with the perceptron's own forward; the classifier is its last bias."""
    layer = trained(NeRDc, 4, 3, rank, bias=bias).double()
    x = features(rank, dtype=torch.float64)
    v = border_distances(SIZES[rank], dtype=torch.float64)
    position_map = layer.mlp(v.t()).t().unflatten(1, SIZES[rank])
    w = position_map[:12].unflatten(0, (3, 4)) + layer.classifier.weight.view(3, 4, *[1] * rank)
    expected = (x[:, None] * w).sum(2)
    if bias:
        expected = expected + position_map[12:] + layer.classifier.bias.view(-1, *[1] * rank)
    torch.testing.assert_close(layer(x), expected)


@HEADS
@RANKS
@BIAS
def test_the_start_is_the_plain_head(head, rank, bias):
    torch.manual_seed(0)
    layer = head(4, 3, rank, bias=bias)
    x = features(rank)
    tolerance = {NeRDm: 0, NeRDc: 1e-6}[head]
    torch.testing.assert_close(layer(x), layer.classifier(x), rtol=tolerance, atol=tolerance)
    assert layer(x).shape == (2, 3, *SIZES[rank])


@HEADS
def test_the_start_survives_initialisation(head):
    """As networks here draw every module anew, and as nnU-Net draws its convolutions."""
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He

    def initialize(module):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    for draw in (initialize, InitWeights_He(1e-2)):
        network = nn.Sequential(nn.Conv3d(4, 4, 1), head(4, 3, 3))
        before = network[1].classifier.weight.clone()
        network.apply(draw)
        x = features()
        layer = network[1]
        assert not torch.equal(layer.classifier.weight, before)
        torch.testing.assert_close(layer(x), layer.classifier(x))
    trained_layer = trained(head, 4, 3, 3)
    trained_layer.apply(initialize)
    torch.testing.assert_close(trained_layer(x), trained_layer.classifier(x))


@HEADS
@RANKS
def test_a_plain_head_is_taken_over_exactly(head, rank):
    torch.manual_seed(0)
    plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank](4, 6, 1).double()  # more classes than channels
    layer = trained(head, 4, 6, rank, bias=True).double()
    layer.load_plain_head(plain.weight, plain.bias)
    x = features(rank, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-14, atol=1e-14)
    layer.load_plain_head(plain.weight)
    plain.bias.data.zero_()
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-14, atol=1e-14)


@HEADS
def test_a_plain_head_that_does_not_fit(head):
    layer = trained(head, 4, 3, 2, bias=False)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"weight must have shape \(3, 4, 1, 1\), got \(3, 4, 1\)"):
        layer.load_plain_head(torch.zeros(3, 4, 1), None)
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got \(4,\)"):
        layer.load_plain_head(torch.zeros(3, 4, 1, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=f"{head.__name__} has no class bias to take over; build it with bias=True"):
        layer.load_plain_head(torch.zeros(3, 4, 1, 1), torch.ones(3))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    layer.load_plain_head(torch.zeros(3, 4, 1, 1), torch.zeros(3))
    assert not layer(features(2)).any()


def test_biases_are_the_documented_ones():
    assert NeRDm(4, 3, 2).classifier.bias is None
    assert NeRDc(4, 3, 2).classifier.bias is not None
    assert NeRDm(4, 3, 2, bias=True).mlp[-1].out_features == NeRDm(4, 3, 2).mlp[-1].out_features == 8
    assert NeRDc(4, 3, 2).mlp[-1].out_features == 15
    assert NeRDc(4, 3, 2, bias=False).mlp[-1].out_features == 12
    assert [m.in_features for m in NeRDc(4, 3, 3).mlp if isinstance(m, nn.Linear)] == [6, 32, 32]
    assert [m.in_features for m in NeRDc(4, 3, 2).mlp if isinstance(m, nn.Linear)] == [4, 32, 32]
    widths = [m.in_features for m in NeRDm(4, 3, 2, hidden_channels=5, hidden_layers=3).mlp if isinstance(m, nn.Linear)]
    assert widths == [4, 5, 5, 5]


@HEADS
@RANKS
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients(head, rank, classes):
    layer = trained(head, 2, classes, rank, hidden_channels=3).double()
    x = features(rank, channels=2, batch=1, dtype=torch.float64)[..., :3].requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))


@HEADS
@BIAS
def test_every_parameter_gets_a_gradient(head, bias):
    """At the start that of the hidden layers is zero, as the last layer is; after one step none is."""
    torch.manual_seed(0)
    layer = head(4, 3, 3, bias=bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        layer(features()).square().mean().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            hidden = name.startswith("mlp") and not name.startswith("mlp.4")
            assert bool(parameter.grad.any()) == (step == 1 or not hidden), name
        optimizer.step()


@pytest.fixture
def evaluations(monkeypatch):
    """The number of positions of each call of the perceptron's hidden layers."""
    counted = []

    def spy(distances, layers):
        counted.append(distances.shape[1])
        return position_activations(distances, layers)

    monkeypatch.setattr(nerd_chunked, "position_activations", spy)
    return counted


@HEADS
@pytest.mark.parametrize("batch", [1, 5])
def test_training_evaluates_each_position_once_whatever_the_batch(head, batch, evaluations):
    layer = trained(head, 4, 3, 3)
    out = layer(features(batch=batch))
    assert evaluations == [60]
    out.sum().backward()
    assert evaluations == [60, 60]  # made again, not kept


@HEADS
def test_evaluation_computes_each_size_once(head, evaluations):
    layer = trained(head, 4, 3, 3).eval()
    with torch.no_grad():
        first = layer(features(batch=1))
        second = layer(features(batch=3, seed=1))
        assert evaluations == [60]
        torch.testing.assert_close(first, layer(features(batch=1)), rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(features())
        assert evaluations == [60, 60]
        layer(features()[..., :2])
        assert evaluations == [60, 60, 24]
    assert second.shape[0] == 3
    torch.testing.assert_close(first, layer.train()(features(batch=1)))


def test_inference_mode_keeps_the_map_too(evaluations):
    layer = trained(NeRDc, 4, 3, 3).eval()
    for _ in range(2):
        with torch.inference_mode():
            layer(features())
    assert evaluations == [60]
    with torch.no_grad():
        layer(features())
    assert evaluations == [60]


def trained_copy(layer):
    """A head of the same parameters that has never run, in training mode."""
    fresh = type(layer)(layer.in_channels, layer.num_classes, layer.spatial_dims)
    fresh.load_state_dict(layer.state_dict())
    return fresh.to(next(layer.parameters()).dtype)


def step_with(optimizer):
    def step(layer):
        chosen = optimizer(layer.parameters())
        with torch.enable_grad():
            layer(features()).square().sum().backward()
        chosen.step()

    return step


def replace_a_parameter(layer):
    layer.mlp[2].weight = nn.Parameter(layer.mlp[2].weight + 1)


CHANGES = {
    "sgd": step_with(lambda p: torch.optim.SGD(p, 0.1)),
    "adam": step_with(lambda p: torch.optim.AdamW(p, 0.1)),
    "adam-foreach": step_with(lambda p: torch.optim.AdamW(p, 0.1, foreach=True)),
    "adam-fused": step_with(lambda p: torch.optim.AdamW(p, 0.1, fused=True)),
    "load": lambda layer: layer.load_state_dict(trained(type(layer), 4, 3, 3, seed=7).state_dict()),
    "load-assign": lambda layer: layer.load_state_dict(trained(type(layer), 4, 3, 3, seed=7).state_dict(), assign=True),
    "in-place": lambda layer: layer.mlp[0].bias.add_(1),
    "initialise": lambda layer: layer.mlp[0].reset_parameters(),
    "replace": replace_a_parameter,
    "data": lambda layer: layer.mlp[0].weight.data.add_(1),
    "plain-head": lambda layer: layer.load_plain_head(torch.ones(3, 4, 1, 1, 1)),
    "half-and-back": lambda layer: layer.bfloat16().float(),
}


@HEADS
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_parameters_is_seen(head, change):
    """In evaluation mode all along, where the map is kept."""
    layer = trained(head, 4, 3, 3).eval()
    x = features()
    with torch.no_grad():
        before = layer(x)
        CHANGES[change](layer)
        after = layer(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, trained_copy(layer)(x))


@HEADS
def test_what_is_kept_does_not_travel(head):
    layer = trained(head, 4, 3, 3).eval()
    names = set(layer.state_dict())
    unused = len(pickle.dumps(layer))
    x = features()
    with torch.no_grad():
        expected = layer(x)
        assert layer._kept is not None
        assert set(layer.state_dict()) == names == {name for name, _ in layer.named_parameters()}
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved_and_loaded(layer)):
            assert other._kept is None
            torch.testing.assert_close(other(x), expected)
            other.mlp[0].weight.add_(1)
            assert not torch.equal(other(x), expected)
            torch.testing.assert_close(layer(x), expected)
    assert len(pickle.dumps(layer)) == unused
    layer.train()
    assert layer._kept is None


def saved_and_loaded(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("used", [False, True])
def test_a_fake_forward_leaves_nothing_behind(used):
    layer = trained(NeRDc, 4, 3, 3).eval()
    with torch.no_grad():
        if used:
            layer(features())
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert layer(torch.empty(2, 4, *SIZES[3])).shape == (2, 3, *SIZES[3])
        torch.testing.assert_close(layer(features()), trained_copy(layer)(features()))


@HEADS
@BIAS
def test_state_dict_round_trip(head, bias):
    layer, other = (trained(head, 4, 3, 3, bias=bias, seed=seed) for seed in (0, 1))
    x = features()
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


# Largest relative error of the logits under autocast.
TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 3e-2}


@HEADS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast_is_close_to_float64(head, dtype, mode):
    layer = trained(head, 8, 3, 3)
    x = features(channels=8)
    expected = copy.deepcopy(layer).double()(x.double())
    getattr(layer, mode)()
    with torch.autocast("cpu", dtype=dtype), torch.set_grad_enabled(mode == "train"):
        out = layer(x)
        assert out.dtype == layer.classifier(x).dtype == dtype
    assert (out.double() - expected).norm() / expected.norm() < TOLERANCE[dtype]


@HEADS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3])
def test_autocast_is_finite(head, dtype, scale):
    layer = trained(head, 8, 3, 3)
    x = (features(channels=8) * scale).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    out.float().mean().backward()
    assert out.isfinite().all()
    assert x.grad.dtype == torch.float32 and x.grad.isfinite().all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


def test_float64_stays_float64_under_autocast():
    layer = trained(NeRDc, 4, 3, 2).double()
    x = features(2, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert torch.equal(out, layer(x))


@HEADS
def test_neighbours_in_a_large_patch_are_told_apart_under_autocast(head):
    """A perceptron that amplifies one distance 4096 times: half precision would see 512 voxels in steps."""
    layer = head(1, 1, 1, hidden_channels=1, hidden_layers=1, bias=False)
    with torch.no_grad():
        layer.mlp[0].weight.copy_(torch.tensor([[512.0, 0.0]]))
        layer.mlp[0].bias.fill_(-384)
        layer.mlp[-1].weight.zero_()
        layer.mlp[-1].weight[0] = 1  # of NeRDm's two the scale
        layer.classifier.weight.fill_(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.ones(1, 1, 512))[0, 0, 384:]
    torch.testing.assert_close(out.float(), torch.arange(128) + 1.5, rtol=1e-2, atol=0)


@HEADS
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_on_no_memory(head, mode):
    with torch.device("meta"):
        layer = getattr(head(32, 4, 3), mode)()
        x = torch.empty(2, 32, 128, 128, 128, requires_grad=mode == "train")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(mode == "train"):
        out = layer(x)
    assert out.shape == (2, 4, 128, 128, 128) and out.device.type == "meta"
    if mode == "train":
        out.sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())


@HEADS
def test_compiled(head):
    """Whole, in training and evaluation, with the gradients of the eager head."""
    layer = trained(head, 4, 3, 3)
    compiled = torch.compile(layer, fullgraph=True)
    x = features()
    gradients = []
    for function in (layer, compiled):
        layer.zero_grad()
        out = function(x)
        out.cos().sum().backward()
        gradients.append([out, *(parameter.grad.clone() for parameter in layer.parameters())])
    for result, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(result, expected)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        layer.mlp[0].weight.add_(1)
        torch.testing.assert_close(compiled(x), trained_copy(layer)(x))


@pytest.mark.gpu
@HEADS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_autocast_on_the_gpu(head, dtype):
    layer = trained(head, 32, 4, 3).cuda()
    x = features(channels=32).cuda().requires_grad_()
    expected = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cuda", dtype=dtype):
        out = torch.compile(layer)(x)
    out.float().square().mean().backward()
    assert (out.double() - expected).norm() / expected.norm() < TOLERANCE[dtype]
    assert all(tensor.grad.isfinite().all() for tensor in (x, *layer.parameters()))
    layer.eval()
    with torch.autocast("cuda", dtype=dtype), torch.no_grad():
        torch.testing.assert_close(layer(x), out)


@pytest.mark.gpu
@HEADS
@pytest.mark.parametrize("classes", [4, 105])
def test_peak_memory_on_the_gpu(head, classes):
    """Of a step of the head alone, beside that of a plain head."""

    def peak(layer):
        layer = layer.cuda()
        x = torch.zeros(2, 32, 128, 128, 128, device="cuda", dtype=torch.float16, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=torch.float16):
            out = layer(x)
        out.backward(torch.zeros_like(out))
        return torch.cuda.max_memory_allocated()

    assert peak(trained(head, 32, classes, 3)) - peak(nn.Conv3d(32, classes, 1)) <= 0.85 * 2**30


def kept_for_backward(head, classes, *, autocast):
    """Bytes that nnU-Net's default network keeps at 128^3, batch 2, under deep supervision, counted on fake tensors."""
    with FakeTensorMode():
        network = PlainConvUNet(
            1,
            6,
            (32, 64, 128, 256, 320, 320),
            nn.Conv3d,
            3,
            (1, 2, 2, 2, 2, 2),
            2,
            classes,
            2,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
        if head is not None:
            plain = network.decoder.seg_layers
            network.decoder.seg_layers = nn.ModuleList(head(layer.in_channels, classes, 3) for layer in plain)
        parameters = {id(parameter.untyped_storage()) for parameter in network.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if id(storage) not in parameters:
                kept[id(storage)] = storage
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        ):
            outputs = network(torch.empty(2, 1, 128, 128, 128))
        assert [tuple(out.shape) for out in outputs] == [(2, classes, *[128 // 2**i] * 3) for i in range(5)]
        return sum(storage.nbytes() for storage in kept.values())


@HEADS
@pytest.mark.parametrize("classes", [4, 105])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "float32"])
def test_memory_is_a_quarter_of_the_network_at_most(head, classes, autocast):
    """What is kept beside the network's own, and what a chunk may take on top while backward is at the head."""
    plain = kept_for_backward(None, classes, autocast=autocast)
    assert plain / 2**30 == pytest.approx(3.4 if autocast else 6.7, abs=0.05)
    added = kept_for_backward(head, classes, autocast=autocast) - plain
    assert added + policy(torch.empty(0, device="meta")).chunk_bytes <= plain / 4
    if head is NeRDc:
        assert added < 2**20  # copies of parameters


@HEADS
@RANKS
@pytest.mark.parametrize("bias", [False, True])
def test_feature_map_size(head, rank, bias):
    """Logits, and the normalised features where they are kept."""
    layer = head(4, 3, rank, bias=bias)
    size = layer.compute_conv_feature_map_size(SIZES[rank])
    assert isinstance(size, np.int64)
    assert size == math.prod(SIZES[rank]) * {NeRDm: 4 + 3, NeRDc: 3}[head]
    with pytest.raises(ValueError, match=f"{rank} spatial axes"):
        layer.compute_conv_feature_map_size((4,) * (rank + 1))


def test_feature_map_size_does_not_overflow():
    assert NeRDc(32, 105, 3).compute_conv_feature_map_size((512, 512, 512)) == 105 * 2**27


@HEADS
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"spatial_dims": 4}, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"spatial_dims": 0}, "spatial_dims"),
        ({"num_classes": 0}, "num_classes must be a positive whole number, got 0"),
        ({"num_classes": 1.5}, "num_classes"),
        ({"in_channels": -1}, "in_channels"),
        ({"hidden_channels": 0}, "hidden_channels"),
        ({"hidden_layers": 0}, "hidden_layers"),
    ],
    ids=str,
)
def test_bad_input(head, arguments, message):
    with pytest.raises(ValueError, match=message):
        head(**({"in_channels": 4, "num_classes": 3, "spatial_dims": 3} | arguments))


@HEADS
@pytest.mark.parametrize("shape", [(2, 5, 3, 4, 5), (2, 4, 3, 4), (4, 3, 4, 5)], ids=str)
def test_features_that_do_not_fit(head, shape):
    with pytest.raises(ValueError, match=rf"{head.__name__} was built for \(B, 4, \*S\) with 3 spatial axes, got"):
        head(4, 3, 3)(torch.zeros(shape))


def test_repr():
    assert "NeRDc(\n  4, 3, spatial_dims=2" in repr(NeRDc(4, 3, 2))


# Learning. A patch of 16 x 16 with four noise features; two tasks of which a plain head sees nothing or half.


def where(x):
    """One region: the frame of the patch that is half its area. The features say nothing about it."""
    near = border_distances(x.shape[2:]).amin(0).unflatten(0, x.shape[2:])
    return (near < (1 - 0.5**0.5) / 2)[None, None].expand(len(x), 1, -1, -1).float()


def meaning(x):
    """Two regions, of the first feature's sign: one everywhere, the other its contrary in the right half."""
    positive = x[:, :1] > 0
    right = torch.arange(x.shape[3]) >= x.shape[3] // 2
    return torch.cat((positive, positive ^ right), dim=1).float()


def accuracy(head, task, **kwargs):
    torch.manual_seed(0)
    regions = task(torch.zeros(1, 4, 16, 16)).shape[1]
    layer = nn.Conv2d(4, regions, 1) if head is None else head(4, regions, 2, **kwargs)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(300):
        x = torch.randn(4, 4, 16, 16)
        loss = F.binary_cross_entropy_with_logits(layer(x), task(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(64, 4, 16, 16)
    with torch.no_grad():
        return ((layer(x) > 0) == task(x).bool()).double().mean().item()


def test_where_a_voxel_lies_is_learned():
    """A plain head cannot know; nor can NeRDc without a bias, whose logits have the sign of noise."""
    assert accuracy(None, where) < 0.6
    assert accuracy(NeRDc, where, bias=False) < 0.6
    assert accuracy(NeRDc, where) > 0.95
    assert accuracy(NeRDm, where) > 0.95


def test_what_a_feature_means_at_a_place_is_learned_by_nerdc_alone():
    """One sign of a feature's scale serves all classes of NeRDm: of two regions that part ways it gets one and a half.

    Its shift knows the place but not the feature there. A plain head gets as much.
    """
    assert accuracy(NeRDc, meaning) > 0.95
    assert accuracy(NeRDc, meaning, bias=False) > 0.95
    assert 0.7 < accuracy(None, meaning) < 0.8
    assert 0.7 < accuracy(NeRDm, meaning) < 0.8
    assert 0.7 < accuracy(NeRDm, meaning, bias=True) < 0.8
