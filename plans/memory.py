"""The memory that training a network takes, counted by running one training step on tensors without memory.

The step is nnU-Net's: mixed precision, its loss on every resolution, backward, the optimizer. PyTorch's fake tensors
go through it in place of real ones; every storage is counted from its creation to its end, once however many tensors
share it. Nothing is fitted to a network, and no GPU is needed: the step runs on fake CPU tensors while the ops of this
package take the path they have on a GPU (`ops.assume_device`).

What is counted is what PyTorch's allocator hands out in eager mode, `torch.cuda.max_memory_allocated`. A process holds
the CUDA context besides, and memory the allocator keeps in reserve.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_deconver.ops import assume_device, nerd_chunked
from nnunet_deconver.ops.nonnegative_deconvolution import triton_update
from nnunet_deconver.recipes import RECIPES

GIB = 2**30


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes.

    Attributes:
        parameters: parameters and buffers of the network.
        gradients: of the parameters.
        optimizer: the optimizer's state.
        kept: what the forward pass keeps for the backward pass, besides the parameters.
        kept_by: `kept` by name of the group of modules that keeps it; "" for what no group does, the loss above all.
        peak: the most there is at one time, all of the above that then exists included.
    """

    parameters: int
    gradients: int
    optimizer: int
    kept: int
    kept_by: dict[str, int]
    peak: int


def training_memory(
    build_network: Callable[[], nn.Module],
    *,
    input_channels: int,
    num_classes: int,
    regions: bool,
    patch_size: Sequence[int],
    batch_size: int,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = RECIPES["nnunet"].build_optimizer,
    groups: Callable[[nn.Module], Mapping[str, Iterable[nn.Module]]] = lambda network: {},
    device_type: str = "cuda",
    autocast: bool = True,
) -> TrainingMemory:
    """Counts the memory of a training step.

    Args:
        build_network: constructs the network, deep supervision on if it has that.
        input_channels: channels of the image, and of the previous stage's segmentation in a cascade.
        num_classes: output channels.
        regions: whether they are regions with a sigmoid each, rather than classes with one softmax; decides on
            nnU-Net's loss. The mask of an ignore label, a byte a voxel, is not counted.
        patch_size: voxels of the patch.
        batch_size: patches of a step.
        build_optimizer: constructs the optimizer.
        groups: maps names to disjoint groups of the network's modules, for `kept_by`.
        device_type: where training will run, "cuda" or "cpu".
        autocast: whether it runs in mixed precision (float16), as nnU-Net does on a GPU.

    Raises:
        ValueError: if the network rejects the patch.
    """
    with ExitStack() as stack:
        stack.enter_context(assume_device(device_type))
        stack.enter_context(FakeTensorMode())
        network = build_network().train()
        optimizer = build_optimizer(network)

        ledger = stack.enter_context(_Ledger(workspace=device_type == "cuda"))
        own = [*network.parameters(), *network.buffers()]
        ledger.add(own)
        parameters = ledger.alive
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        gradients = ledger.alive - parameters
        # The optimizer's state exists from its first step on: that is the step that is not counted.
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = ledger.alive - parameters
        ledger.peak = ledger.alive

        image = torch.empty(batch_size, input_channels, *patch_size)
        kept = _Kept(own, groups(network))
        with kept:
            outputs, targets = outputs_and_targets(network, image, num_classes if regions else 1, autocast=autocast)
            # Autocast on a GPU takes the logits to float32 in the loss; on a CPU it would not.
            value = nnunet_loss(regions)([output.float() for output in outputs], targets)
        value.backward()
        # nnU-Net clips the gradients' norm.
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
    return TrainingMemory(parameters, gradients, state, kept.by.total(), dict(kept.by), ledger.peak)


def outputs_and_targets(
    network: nn.Module, image: Tensor, target_channels: int, *, autocast: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """What nnU-Net's loss compares in a training step: all that is there until the step ends.

    Args:
        network: in training.
        image: fake, (B, C, *S).
        target_channels: one, or the number of regions.
        autocast: see `training_memory`.
    """
    with torch.autocast("cpu", torch.float16, enabled=autocast), _AutocastAsOnGPU():
        outputs = network(image)
    if isinstance(outputs, Tensor):  # of a network without deep supervision
        outputs = [outputs]
    return outputs, [torch.empty(len(image), target_channels, *o.shape[2:], dtype=torch.int16) for o in outputs]


def nnunet_loss(regions: bool) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """nnU-Net's loss of the logits and targets of all resolutions, highest first; see `training_memory`."""
    dice = {"batch_dice": True, "smooth": 1e-5, "ddp": False}
    dice_class: Any = MemoryEfficientSoftDiceLoss  # as nnU-Net's trainer, but not as its types have it
    if regions:
        loss = DC_and_BCE_loss({}, dice | {"do_bg": True}, dice_class=dice_class)
    else:
        loss = DC_and_CE_loss(dice | {"do_bg": False}, {}, dice_class=dice_class)

    def deeply_supervised(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        # nnU-Net gives the lowest resolution no weight, and then does not compute its loss.
        weights = [1.0] * (len(outputs) - 1) + [0.0] if len(outputs) > 1 else [1.0]
        return DeepSupervisionWrapper(loss, weights)(outputs, targets)

    return deeply_supervised


class _AutocastAsOnGPU(TorchFunctionMode):
    """Where autocast on a CPU differs from that on a GPU.

    On a GPU, average pooling in 3D stays in half precision, and group norm goes to float32; on a CPU, the reverse.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.group_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        with torch.autocast("cpu", enabled=False) if function is F.avg_pool3d else nullcontext():
            return function(*args, **(kwargs or {}))


class _Ledger(TorchDispatchMode):
    """Follows the storages of all tensors that operations return.

    Args:
        workspace: count what kernels need besides their results: cuDNN's convolutions, whose tensor-core kernels work
            on channels-last copies of what they read and write, and our own.
    """

    def __init__(self, workspace: bool) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._workspace = workspace
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in _OPAQUE:
            with self:
                return _OPAQUE[function](*args, **(kwargs or {}))
        out = function(*args, **(kwargs or {}))
        self.add(out)
        if self._workspace and function in _WORKSPACES:
            self.peak = max(self.peak, self.alive + _WORKSPACES[function](function, args, out))
        return out

    def add(self, tensors: Any) -> None:
        """Counts the storages of tensors, in any nesting, that are not counted yet."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._remove, storage.nbytes())
        self.peak = max(self.peak, self.alive)

    def _remove(self, size: int) -> None:
        self.alive -= size


# Operations that hide from dispatch what they allocate on the way, and their insides.
_OPAQUE = {
    torch.ops.nnunet_deconver.nerd.default: nerd_chunked.run_forward,
    torch.ops.nnunet_deconver.nerd_backward.default: nerd_chunked.run_backward,
}


def _convolution_workspace(function: Any, args: tuple, out: Any) -> int:
    groups = args[-2] if function is torch.ops.aten.convolution_backward.default else args[-1]
    if groups > 1:  # PyTorch's own kernels, which need none
        return 0
    return sum(tensor.nbytes for tensor in tree_leaves((args, out)) if isinstance(tensor, Tensor))


def _update_workspace(function: Any, args: tuple, out: Any) -> int:
    # Gradient, image, source, filter, or from the image on.
    backward = function is torch.ops.nnunet_deconver.nonnegative_deconvolution_backward.default
    x, source = args[1:3] if backward else args[:2]
    return triton_update.scratch_bytes(x.shape, source.shape, backward=backward)


# What kernels take besides their results, by operation.
_WORKSPACES = {
    torch.ops.aten.convolution.default: _convolution_workspace,
    torch.ops.aten.convolution_backward.default: _convolution_workspace,
    torch.ops.nnunet_deconver.nonnegative_deconvolution.default: _update_workspace,
    torch.ops.nnunet_deconver.nonnegative_deconvolution_backward.default: _update_workspace,
}


class _Kept:
    """While entered, follows what autograd keeps.

    Args:
        own: parameters and buffers, which are there anyway.
        groups: modules by name of their group.

    Attributes:
        by: bytes by name of the group whose forward pass kept them first; "" outside of all groups.
    """

    def __init__(self, own: Iterable[Tensor], groups: Mapping[str, Iterable[nn.Module]]) -> None:
        self.by: Counter[str] = Counter()
        # Storages are held while they are followed, so that none takes the place of an earlier one.
        self._known: dict[int, torch.UntypedStorage | None] = {tensor.untyped_storage()._cdata: None for tensor in own}
        self._groups = groups
        self._current = ""
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> "_Kept":
        self._handles = []
        for name, modules in self._groups.items():
            for module in modules:
                self._handles += [
                    module.register_forward_pre_hook(lambda *_, name=name: self._set_current(name)),
                    module.register_forward_hook(lambda *_: self._set_current("")),
                ]
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._known.clear()

    def _set_current(self, name: str) -> None:
        self._current = name

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage
            self.by[self._current] += storage.nbytes()
        return tensor
