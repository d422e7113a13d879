"""The estimate against what really happens, and against sums made by hand."""

import math
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from nnunet_deconver.layers import DeconverBlock
from nnunet_deconver.networks.architecture import (
    build_network,
    deconver_architecture,
    plain_architecture,
)
from nnunet_deconver.ops import assume_device, cpu_kernels, device_type
from nnunet_deconver.plans import memory
from nnunet_deconver.plans.memory import TrainingMemory, training_memory
from nnunet_deconver.recipes import RECIPES

BACKBONES = ("plain", "residual", "deconver")
AXES = {
    "own": {},
    "dtc-nerdc": {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdc"}},
    "dtc-linear-nerdm": {"upsampling": {"name": "dtc", "base": "linear"}, "segmentation_head": {"name": "nerdm"}},
    "dysample": {"upsampling": {"name": "dysample"}},
    "linear": {"upsampling": {"name": "linear"}},
}
# rank, whether the first stages are flat, patch
GEOMETRIES = {"2d": (2, False, (64, 64)), "3d": (3, False, (16, 16, 16)), "anisotropic": (3, True, (8, 32, 32))}
CHANNELS, CLASSES, BATCH = 2, 3, 2

sgd, adamw = (RECIPES[name].build_optimizer for name in ("nnunet", "deconver"))

backbones = pytest.mark.parametrize("backbone", BACKBONES)
axes = pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def estimate(entry, patch_size, *, regions=False, batch_size=BATCH, **kwargs) -> TrainingMemory:
    return training_memory(
        partial(build_network, entry, CHANNELS, CLASSES, deep_supervision=True),
        input_channels=CHANNELS,
        num_classes=CLASSES,
        regions=regions,
        patch_size=patch_size,
        batch_size=batch_size,
        **kwargs,
    )


def nbytes(tensors) -> int:
    """Of their storages, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class Saved:
    """What autograd saves while this is entered, apart from parameters."""

    def __init__(self, network: nn.Module):
        self._own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
        self._storages = {}

    def _pack(self, tensor):
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    @contextmanager
    def counted(self):
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for key, storage in self._storages.items() if key not in self._own)


def real_step(entry, patch_size, regions, build_optimizer) -> dict[str, int]:
    """Bytes of a training step on real tensors, those of the allocator included."""
    network = build_network(entry, CHANNELS, CLASSES, deep_supervision=True)
    optimizer = build_optimizer(network)
    loss = memory.nnunet_loss(regions)
    image = torch.randn(BATCH, CHANNELS, *patch_size)
    # nnU-Net's loss leaves out the lowest head; the estimate gives it a gradient like any other.
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step(saved=None):
        with saved.counted() if saved else nullcontext():
            outputs = network(image)
            channels = CLASSES if regions else 1
            targets = [torch.randint(2, (BATCH, channels, *o.shape[2:]), dtype=torch.int16) for o in outputs]
            value = loss(outputs, targets)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    saved = Saved(network)
    step(saved)
    found = {
        "parameters": nbytes(network.parameters()),
        "gradients": nbytes(parameter.grad for parameter in network.parameters()),
        "optimizer": nbytes(t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)),
        "kept": saved.nbytes,
    }
    del saved
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    added = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    before = found["parameters"] + found["optimizer"] + image.nbytes
    return found | {"peak": before + added.cumsum(0).max().item()}


@geometries
@axes
@backbones
def test_a_step_on_the_cpu_takes_what_was_estimated(architecture, backbone, axes, geometry):
    rank, anisotropic, patch_size = geometry
    compare_with_a_real_step(architecture(backbone, rank, anisotropic=anisotropic, **axes), patch_size, False, sgd)


@backbones
def test_a_step_for_regions_with_adamw_takes_what_was_estimated(architecture, backbone):
    compare_with_a_real_step(architecture(backbone, 3), (16, 16, 16), True, adamw)


def compare_with_a_real_step(entry, patch_size, regions, build_optimizer):
    # Compiled kernels are for real tensors; fake ones take the paths without, with which they are compared here.
    with mock.patch.object(cpu_kernels, "libraries", dict):
        real = real_step(entry, patch_size, regions, build_optimizer)
    estimated = estimate(
        entry, patch_size, regions=regions, build_optimizer=build_optimizer, device_type="cpu", autocast=False
    )
    for name in ("parameters", "gradients", "optimizer", "kept"):
        assert getattr(estimated, name) == real[name], name
    # What PyTorch's CPU kernels allocate inside, for their own layouts, is all that goes unseen.
    assert 0.97 < estimated.peak / real["peak"] <= 1


@contextmanager
def cuda_autocast():
    """As `torch.autocast("cuda")`, which turns itself off where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


@geometries
@axes
@backbones
def test_the_step_keeps_what_it_would_on_a_gpu(architecture, backbone, axes, geometry):
    rank, anisotropic, patch_size = geometry
    compare_with_a_step_on_a_gpu(architecture(backbone, rank, anisotropic=anisotropic, **axes), patch_size)


@geometries
@pytest.mark.parametrize("axes", ["own", "dtc-nerdc"])
def test_group_norm_goes_to_float32_as_on_a_gpu(architecture, axes, geometry):
    """In MedNeXt; in half precision, a step would keep much less."""
    rank, anisotropic, patch_size = geometry
    compare_with_a_step_on_a_gpu(architecture("mednext", rank, anisotropic=anisotropic, **AXES[axes]), patch_size)


def compare_with_a_step_on_a_gpu(entry, patch_size):
    """Fake CUDA tensors go forward without a GPU, through CUDA's autocast; backward they do not."""
    with FakeTensorMode(), torch.device("cuda"):
        network = build_network(entry, CHANNELS, CLASSES, deep_supervision=True)
        saved = Saved(network)
        with cuda_autocast(), saved.counted():
            outputs = network(torch.empty(BATCH, CHANNELS, *patch_size))
            targets = [torch.empty(BATCH, 1, *o.shape[2:], dtype=torch.int16) for o in outputs]
            memory.nnunet_loss(regions=False)(outputs, targets)
        kept = saved.nbytes
        recomputed = {m for block in network.modules() if isinstance(block, DeconverBlock) for m in block.modules()}
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m not in recomputed]
    # CUDA's norms keep mean and deviation of each channel in float32, and its loss the logits as they come, which are
    # there until the step ends in any case.
    statistics = sum(2 * BATCH * norm.num_features * 2 for norm in norms)
    logits = BATCH * CLASSES * math.prod(patch_size) * 2
    assert kept - estimate(entry, patch_size).kept == statistics + logits


class OneConvolution(nn.Module):
    """Its output is the one resolution there is."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x):
        return [self.convolution(x)]


def one_convolution(**kwargs) -> TrainingMemory:
    arguments = {"input_channels": 2, "num_classes": 4, "regions": False, "patch_size": (8, 8), "batch_size": 3}
    return training_memory(OneConvolution, **arguments | kwargs)


def test_one_convolution_by_hand(monkeypatch):
    class Square:
        def __call__(self, outputs, targets):
            return outputs[0].square().sum()

    monkeypatch.setattr(memory, "nnunet_loss", lambda regions: Square())
    weights, image, output = 4 * 2 * 4, 4 * 3 * 2 * 64, 4 * 3 * 4 * 64
    counted = one_convolution(device_type="cpu", autocast=False)
    assert (counted.parameters, counted.gradients) == (weights, weights)
    assert counted.optimizer == weights  # momentum
    # the convolution keeps its input, the square keeps the output
    assert counted.kept == image + output
    assert counted.kept_by == {"": image + output}
    # AdamW has two numbers per parameter, and a step count per tensor
    assert one_convolution(device_type="cpu", autocast=False, build_optimizer=adamw).optimizer == 2 * weights + 4

    # Half precision: the convolution keeps image and weights as it reads them, the square the float32 output.
    half = one_convolution(device_type="cpu")
    assert half.kept == image // 2 + weights // 2 + output
    assert (half.parameters, half.optimizer) == (weights, weights)


def test_the_peak_by_hand():
    """Of tensors that live as long as the test says."""
    ledger = memory._Ledger(workspace=False)
    with FakeTensorMode(), ledger:
        first = torch.empty(100)
        view = first.view(10, 10)
        shared = view[:5]
        second = first + 1
        assert ledger.alive == 800
        del first, view
        assert ledger.alive == 800  # the slice still holds the storage
        del shared
        assert ledger.alive == 400
        second.mul_(2)
        assert ledger.alive == ledger.peak - 400 == 400
        third = torch.empty(200)
        assert ledger.alive == ledger.peak == 1200
        del second, third
    assert (ledger.alive, ledger.peak) == (0, 1200)


def test_a_storage_shared_by_several_saved_tensors_counts_once():
    kept = memory._Kept([], {})
    with FakeTensorMode(), kept:
        x = torch.empty(100, requires_grad=True).exp()  # keeps its result
        _ = (x.view(10, 10).square(), x[:50].square(), x.square())  # keep views of it
    assert kept.by == {"": 400}


def test_the_workspace_of_a_convolution_is_a_copy_of_all_it_reads_and_writes():
    def peak(groups: int, workspace: bool) -> int:
        ledger = memory._Ledger(workspace)
        with FakeTensorMode(), ledger, torch.no_grad():
            F.conv2d(torch.empty(1, 4, 8, 8), torch.empty(8, 4 // groups, 3, 3), padding=1, groups=groups)
        return ledger.peak

    tensors = 4 * (4 * 64 + 8 * 4 * 9 + 8 * 64)
    assert peak(1, workspace=False) == tensors
    assert peak(1, workspace=True) == 2 * tensors
    assert peak(4, workspace=True) == peak(4, workspace=False)


@backbones
def test_half_precision_halves_the_features(architecture, backbone):
    """What is kept in float32 all the same: the loss, and the update of nonnegative deconvolution."""
    entry = architecture(backbone, 3)
    full, half = (estimate(entry, (32, 32, 32), autocast=autocast) for autocast in (False, True))
    assert half.parameters == full.parameters
    assert 0.5 < half.kept / full.kept < (0.95 if backbone == "deconver" else 0.6)


def test_layouts_for_the_cpu_are_left_out_on_a_gpu(architecture):
    """In 3D the CPU's path of the update works on copies whose channels lie side by side."""
    entry = architecture("deconver", 3)
    on_cpu = estimate(entry, (16, 16, 16), device_type="cpu", autocast=False)
    on_gpu = estimate(entry, (16, 16, 16), autocast=False)
    source = BATCH * 4 * 16 * 16**3 * 4  # of one block at the highest resolution
    assert on_cpu.kept - on_gpu.kept > source


def test_what_is_kept_is_attributed(architecture):
    entry = architecture("plain", 2)

    def groups(network):
        return {"encoder": [network.encoder], "decoder": [network.decoder.stages[0], network.decoder.stages[1]]}

    counted = estimate(entry, (64, 64), groups=groups)
    assert set(counted.kept_by) == {"", "encoder", "decoder"}
    assert sum(counted.kept_by.values()) == counted.kept
    assert all(counted.kept_by.values())
    assert estimate(entry, (64, 64)) == TrainingMemory(
        counted.parameters, counted.gradients, counted.optimizer, counted.kept, {"": counted.kept}, counted.peak
    )


def test_memory_grows_with_the_batch_as_what_is_kept_does(architecture):
    entry = architecture("plain", 3)
    two, four = (estimate(entry, (32, 32, 32), batch_size=batch_size) for batch_size in (2, 4))
    assert two.parameters == four.parameters
    # The convolution's weights in half precision are kept once, whatever the batch.
    assert 1.95 < four.kept / two.kept <= 2
    assert math.isclose(four.peak - two.peak, four.kept - two.kept, rel_tol=0.5)


# Small images, large ones, one, and flat ones.
@pytest.mark.parametrize(
    "rank, patch_size, batch_size",
    [(3, (40, 56, 40), 7), (3, (96, 96, 96), 2), (3, (128, 128, 128), 1), (2, (512, 512), 4)],
    ids=str,
)
def test_deconver_takes_no_more_than_nnunets_network(rank, patch_size, batch_size):
    strides = [[1] * rank] + [[2] * rank] * 3
    topology = {
        "n_stages": 4,
        "features_per_stage": [32, 64, 128, 256],
        "conv_op": f"torch.nn.Conv{rank}d",
        "kernel_sizes": [[3] * rank] * 4,
        "strides": strides,
    }
    plain = plain_architecture({"network_class_name": "", "arch_kwargs": topology})
    peaks = [
        estimate(entry, patch_size, batch_size=batch_size, build_optimizer=build_optimizer).peak
        for entry, build_optimizer in ((deconver_architecture(plain), adamw), (plain, sgd))
    ]
    assert peaks[0] <= peaks[1]


def test_counting_leaves_no_trace(architecture):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    estimate(architecture("deconver", 2), (64, 64))
    assert torch.equal(torch.rand(3), expected)
    assert device_type(torch.empty(1)) == "cpu"
    with pytest.raises(ValueError, match="must be divisible"):
        estimate(architecture("deconver", 2), (63, 64))
    assert device_type(torch.empty(1)) == "cpu"


def test_assumed_devices_nest():
    tensor = torch.empty(1)
    with assume_device("cuda"):
        assert device_type(tensor) == "cuda"
        with assume_device("cpu"):
            assert device_type(tensor) == "cpu"
        assert device_type(tensor) == "cuda"
    assert device_type(tensor) == "cpu"
