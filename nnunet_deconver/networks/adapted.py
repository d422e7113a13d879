"""Any network in a plan of nnU-Net, with an upsampling and a segmentation head of this package.

nnU-Net asks more of a network than a function from image to logits: a switch for deep supervision and outputs in a
list, at least two of them, highest resolution first; input and output channels under its own names; a count of feature
maps; heads that fine-tuning leaves out; no parameter without a gradient. `Adapted` answers for a class that knows none
of this.

What has to be known of the network is found with a pass on tensors without memory, once for each way to build it.
"""

import copy
import inspect
import itertools
import json
import logging
import math
import pydoc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.layers.replacement import replace_segmentation_head, replace_transposed_convolutions

# What most call what nnU-Net calls so.
CHANNEL_ARGUMENTS = {"input_channels": "in_channels", "num_classes": "out_channels"}
# Packages that come with an extra of that name of this one.
EXTRAS = ("monai",)
# Extents of images that are tried where strides and arguments do not tell one that the network takes.
_EXTENTS = (32, 64, 96, 128, 224, 256)
# By what extents of images have to be divisible in networks, usually; with windows of 7 voxels, too.
_DIVISORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 7, 14, 28, 56, 112, 224)


class Adapted(nn.Module):
    """A network of any package, which its own class does not know of nnU-Net.

    With one output, it trains with nnU-Net's deep supervision all the same: further outputs are views of the first at
    the voxels of lower resolutions. With deep supervision of its own, its outputs are used, and such views take the
    place of those that it leaves out in validation.

    Args:
        input_channels: channels of the image.
        num_classes: output channels.
        deep_supervision: whether a list of logits is returned, as `strides` tell, or the highest resolution alone.
        network: dotted name of the class.
        network_kwargs: its arguments, besides the channels.
        strides: downsampling from each output to the next, one number per axis: nnU-Net makes an output's target at
            the product of those up to it, but for the last entry, which has no output. Three at least, for two outputs:
            nnU-Net gives the last one no weight. A network with one output has [1, 1, 1] twice, then what a patch must
            be divisible by.
        channel_arguments: what the class calls `input_channels` and `num_classes`, where not `in_channels` and
            `out_channels`.
        upsampling: entry of the axis, see `layers.components`; None leaves the transposed convolutions.
        segmentation_head: entry of the axis; None leaves the last convolutions.

    Raises:
        ValueError: if the class cannot be imported, is no network, does not take the arguments or has no layer that
            could be replaced.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        network: str,
        strides: Sequence[Sequence[int]],
        network_kwargs: Mapping[str, Any] | None = None,
        channel_arguments: Mapping[str, str] | None = None,
        upsampling: dict | None = None,
        segmentation_head: dict | None = None,
    ) -> None:
        super().__init__()
        UPSAMPLINGS.check(upsampling)
        SEGMENTATION_HEADS.check(segmentation_head)
        self.plan = _Plan(
            network, dict(network_kwargs or {}), dict(channel_arguments or {}), input_channels, num_classes
        )
        self.strides = _checked_strides(strides)
        self.axes = upsampling, segmentation_head
        anatomy = self.plan.anatomy(self.strides)
        self.network = self.plan.build()
        for name, parameter in self.network.named_parameters():
            # Distributed training waits for the gradient of each parameter that asks for one.
            if name in (anatomy.unused if deep_supervision else anatomy.unused_by_first):
                parameter.requires_grad_(False)
        heads = _put_axes(self.network, upsampling, segmentation_head, anatomy.heads)
        for head in heads[len(self.strides) - 1 if deep_supervision else 1 :]:
            head.requires_grad_(False)
        for name, head in zip(anatomy.heads, heads, strict=True):
            _put(self.network, name, _Head(head))
        self.decoder = _Decoder(deep_supervision, heads[::-1])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Maps (B, input_channels, *S) to logits (B, num_classes, *S), or to a list of them, highest first.

        Raises:
            ValueError: if the network does not take the size of x, or its output has another size.
        """
        outputs = self._outputs(x)
        if not self.decoder.deep_supervision:
            return outputs[0]
        divisors = itertools.accumulate(self.strides[:-1], lambda a, b: tuple(i * j for i, j in zip(a, b, strict=True)))
        return [self._at(outputs, level, x.shape[2:], divisor) for level, divisor in enumerate(divisors)]

    def _outputs(self, x: Tensor) -> list[Tensor]:
        """What the network returns, highest resolution first."""
        rank = len(self.strides[0])
        if x.ndim != rank + 2:
            raise ValueError(f"{self.plan.name} has {rank} spatial axes by its strides, and got {_shape(x.shape[2:])}")
        if torch.compiler.is_compiling():
            return self.plan.outputs(self.network, x)
        try:
            return self.plan.outputs(self.network, x)
        except Exception as error:  # of a network of somebody else: any
            if rejection := self._rejection(x.shape[2:], error):
                raise ValueError(rejection) from error
            raise

    def _at(self, outputs: list[Tensor], level: int, size: Sequence[int], divisor: Sequence[int]) -> Tensor:
        """The logits of a level: the network's own, or a view of its highest resolution."""
        wanted = [-(-extent // by) for extent, by in zip(size, divisor, strict=True)]
        if level < len(outputs) and list(outputs[level].shape[2:]) == wanted:
            return outputs[level]
        if level < len(outputs) and outputs[level].shape[2:] != outputs[0].shape[2:]:
            raise ValueError(
                f"{self.plan.name} has outputs of {', '.join(_shape(o.shape[2:]) for o in outputs)}; with the strides "
                f"{[list(stride) for stride in self.strides]}, nnU-Net has a target of {_shape(wanted)} for number "
                f"{level + 1}: change the strides"
            )
        chosen = outputs[level] if level < len(outputs) else outputs[0]
        return chosen[(..., *(slice(None, None, by) for by in divisor))]

    def _rejection(self, size: Sequence[int], error: Exception) -> str | None:
        """Why the network does not take a size, with those nearby that it takes; None if it does take it."""
        with _without_memory():
            network = self.plan.build().train(self.training)
            if self.plan.takes(network, size):
                return None
            fitting = _nearest(partial(self.plan.takes, network), size, self.plan.sizes(self.strides))
        advice = (
            f"it takes {' or '.join(map(_shape, fitting))}: change patch_size in the plans"
            if fitting
            else "nor any size nearby that was tried: look at network_kwargs"
        )
        reason = " ".join(str(error).split())[:200]
        return f"{self.plan.name} does not take patches of {_shape(size)} ({type(error).__name__}: {reason}); {advice}"

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all outputs of convolutions and matrix products for one image of `input_size` voxels.

        Raises:
            ValueError: if the network does not take the size.
        """
        with _without_memory(), torch.no_grad():
            network = self.plan.build().train(self.decoder.deep_supervision)
            _put_axes(network, *self.axes, self.plan.anatomy(self.strides).heads)
            with _Products() as products:
                try:
                    network(torch.empty(1, self.plan.input_channels, *input_size))
                except Exception as error:  # of a network of somebody else: any
                    raise ValueError(self._rejection(input_size, error) or str(error)) from error
        return np.int64(products.elements)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Leaves `module` as its class made it; nnU-Net applies this to every module."""


class _Head(nn.Module):
    """A head under the name that nnU-Net leaves out of what it takes from pretrained weights."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.seg_layers = nn.ModuleList([head])

    def forward(self, x: Tensor) -> Tensor:
        return self.seg_layers[0](x)


class _Decoder(nn.Module):
    """What nnU-Net, and the trainers here, look for in a decoder.

    Args:
        deep_supervision: whether a list is returned.
        heads: of the network, lowest resolution first; none, where they are not known.
    """

    def __init__(self, deep_supervision: bool, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        # Not its own modules: they are in the network under their names there.
        self._heads = tuple(heads)

    @property
    def seg_layers(self) -> nn.ModuleList:
        """The heads, lowest resolution first."""
        return nn.ModuleList(self._heads)


@dataclass(frozen=True)
class _Anatomy:
    """What a pass through a network shows of it.

    Attributes:
        heads: names of the layers whose outputs are the network's, highest resolution first; empty, where something
            comes after them, or no size of an image was found that the network takes.
        unused: names of parameters without a gradient, of the outputs that there are targets for.
        unused_by_first: likewise, of the highest resolution alone.
    """

    heads: tuple[str, ...] = ()
    unused: frozenset[str] = frozenset()
    unused_by_first: frozenset[str] = frozenset()


class _Plan:
    """How a network is built.

    Args:
        name: dotted name of its class.
        network_kwargs: its arguments but for the channels.
        channel_arguments: its names for `input_channels` and `num_classes`, where they are not the usual.
        input_channels: channels of the image.
        num_classes: output channels.

    Raises:
        ValueError: if there is no such class, or it does not take the arguments.
    """

    def __init__(
        self,
        name: str,
        network_kwargs: dict[str, Any],
        channel_arguments: dict[str, str],
        input_channels: int,
        num_classes: int,
    ) -> None:
        self.name, self.input_channels, self.num_classes = name, input_channels, num_classes
        self._class = _located(name)
        if unknown := channel_arguments.keys() - CHANNEL_ARGUMENTS.keys():
            raise ValueError(
                f"channel_arguments has {', '.join(map(repr, sorted(unknown)))}; it may name "
                f"{' and '.join(CHANNEL_ARGUMENTS)} of {name}"
            )
        channels = CHANNEL_ARGUMENTS | channel_arguments
        given = {channels["input_channels"]: input_channels, channels["num_classes"]: num_classes}
        self.network_kwargs = network_kwargs
        self.arguments = network_kwargs | given
        parameters = inspect.signature(self._class).parameters.values()
        known = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        takes = f"it takes {', '.join(known)}"
        if twice := network_kwargs.keys() & given.keys():
            raise ValueError(f"network_kwargs has {', '.join(twice)}, which nnU-Net gives {name}: leave it out")
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            if missing := [argument for argument in given if argument not in known]:
                raise ValueError(
                    f"{name} has no argument {' nor '.join(missing)} for the channels; {takes}: name its own by "
                    'channel_arguments, such as {"input_channels": "in_chans"}'
                )
            if unknown := [argument for argument in network_kwargs if argument not in known]:
                raise ValueError(f"{name} has no argument {', '.join(unknown)} of network_kwargs; {takes}")
        required = [each.name for each in parameters if each.default is each.empty and each.name in known]
        if missing := [argument for argument in required if argument not in self.arguments]:
            raise ValueError(f"{name} needs {', '.join(missing)} in network_kwargs; {takes}")

    def build(self) -> nn.Module:
        """The network, as its class makes it.

        Raises:
            ValueError: if that fails.
        """
        probe = torch.empty(0)
        try:
            try:
                return self._made()
            except Exception:  # of a network of somebody else: any
                if not (isinstance(probe, FakeTensor) or probe.is_meta):
                    raise
            return self._made_without_memory()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(
                f"{self.name} cannot be built from network_kwargs {self.network_kwargs}: {reason}"
            ) from error

    def _made(self) -> nn.Module:
        # Classes may change what they are given.
        return self._class(**copy.deepcopy(self.arguments))

    def _made_without_memory(self) -> nn.Module:
        """The network where tensors have no memory, of a class that looks at numbers while it is built."""
        with unset_fake_temporarily():
            if self._key not in _SKELETONS:
                with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                    _SKELETONS[self._key] = self._made().to("meta")
            network = copy.deepcopy(_SKELETONS[self._key])
        for module in network.modules():
            parameters: dict[str, Any] = module._parameters
            for tensors in (parameters, module._buffers):
                for name, old in tensors.items():
                    if old is not None:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        tensors[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        return network

    def outputs(self, network: nn.Module, image: Tensor) -> list[Tensor]:
        """What a network returns for an image, highest resolution first.

        Raises:
            ValueError: if that is not logits of the image's size, or a list that has them.
        """
        returned = network(image)
        found = [returned] if isinstance(returned, Tensor) else list(returned) if _is_sequence(returned) else []
        if isinstance(returned, Tensor) and returned.ndim == image.ndim + 1:
            found = list(returned.unbind(1))  # several of one size, as MONAI's DynUNet has them
        logits = [o for o in found if isinstance(o, Tensor) and o.ndim == image.ndim and o.shape[1] == self.num_classes]
        logits.sort(key=lambda output: -math.prod(output.shape[2:]))
        if not logits or logits[0].shape[2:] != image.shape[2:]:
            shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in found]
            raise ValueError(
                f"{self.name} must return logits (B, {self.num_classes}, *S) of the input's {_shape(image.shape[2:])}, "
                f"or a list that has them; it returned {', '.join(map(str, shapes)) or type(returned).__name__}"
            )
        return logits

    def takes(self, network: nn.Module, size: Sequence[int]) -> bool:
        """Whether a network on tensors without memory takes images of a size."""
        try:
            with torch.no_grad():
                self.outputs(network, torch.empty(2, self.input_channels, *size))
        except Exception:  # of a network of somebody else: any
            return False
        return True

    def sizes(self, strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Sizes of images to try: by the strides, those that are among the arguments, usual ones."""
        rank = len(strides[0])
        sizes = [tuple(2 * math.prod(axis) for axis in zip(*strides, strict=True))]
        for value in self.network_kwargs.values():
            extents = (value,) * rank if isinstance(value, int) else value
            if _is_sequence(extents) and len(extents) == rank:
                sizes += [tuple(extents)] if all(isinstance(e, int) and 16 <= e <= 1024 for e in extents) else []
        return [*sizes, *((extent,) * rank for extent in _EXTENTS)]

    def anatomy(self, strides: Sequence[Sequence[int]]) -> _Anatomy:
        """What is to be known of the network; strides are those of the outputs."""
        key = f"{self._key} {strides}"
        if key not in _ANATOMIES:
            _ANATOMIES[key] = self._examined(strides)
        return _ANATOMIES[key]

    @property
    def _key(self) -> str:
        return json.dumps([self.name, self.arguments], default=repr)

    def _examined(self, strides: Sequence[Sequence[int]]) -> _Anatomy:
        with _without_memory():
            network = self.build().train()
            made: list[tuple[str, Tensor]] = []
            for name, layer in network.named_modules():
                if isinstance(layer, _ConvNd) and name:
                    layer.register_forward_hook(partial(_record, made, name))
            for size in self.sizes(strides):
                made.clear()
                try:
                    outputs = self.outputs(network, torch.empty(2, self.input_channels, *size))
                except Exception:  # of a network of somebody else: any
                    continue
                names = [next((name for name, tensor in made if tensor is output), None) for output in outputs]
                heads = tuple(name for name in names if name is not None)
                return _Anatomy(
                    heads if len(heads) == len(set(heads)) == len(outputs) else (),
                    _without_gradient(network, outputs[: len(strides) - 1]),
                    _without_gradient(network, outputs[:1]),
                )
        return _Anatomy()


# By how a network is built: what was found, and networks of tensors without memory to be copied.
_ANATOMIES: dict[str, _Anatomy] = {}
_SKELETONS: dict[str, nn.Module] = {}


def _record(made: list[tuple[str, Tensor]], name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
    made.append((name, output))


def _without_gradient(network: nn.Module, outputs: Iterable[Tensor]) -> frozenset[str]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    total = torch.stack([output.sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)


def _located(name: object) -> type[nn.Module]:
    if not isinstance(name, str):
        raise ValueError(f'network must be the dotted name of a class, such as "my_package.Net", got {name!r}')
    try:
        located = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"network {name} cannot be imported ({error})") from error
    package = name.partition(".")[0]
    if located is None and package in EXTRAS and find_spec(package) is None:
        raise ValueError(f'network {name} comes with an extra; run: pip install "nnunet-deconver[{package}]"')
    if located is None:
        raise ValueError(
            f"network {name} cannot be imported here; install its package, or add the folder of its file to PYTHONPATH"
        )
    if not (isinstance(located, type) and issubclass(located, nn.Module)):
        raise ValueError(f"network {name} is no class of networks (torch.nn.Module), but {located!r}")
    return located


def _checked_strides(strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    valid = _is_sequence(strides) and all(_is_sequence(entry) for entry in strides)
    if (
        not valid
        or len(strides) < 3
        or len({len(entry) for entry in strides}) != 1
        or not strides[0]
        or any(not isinstance(by, int) or by < 1 for entry in strides for by in entry)
    ):
        raise ValueError(
            "strides must have three entries at least, each with one positive whole number per axis, for nnU-Net needs "
            f"two outputs: [[1, 1, 1], [1, 1, 1], [16, 16, 16]] for a network with one, got {strides!r}"
        )
    return tuple(tuple(entry) for entry in strides)


def _put_axes(
    network: nn.Module,
    upsampling: dict | None,
    segmentation_head: dict | None,
    heads: Sequence[str],
) -> list[nn.Module]:
    """Gives a network that is not trained an upsampling and a head; returns its heads by their names."""
    replace_transposed_convolutions(network, upsampling, same_start=False)
    if segmentation_head is not None and not SEGMENTATION_HEADS.is_default(segmentation_head):
        for name in heads or (None,):
            replace_segmentation_head(network, segmentation_head, name=name, same_start=False)
    return [network.get_submodule(name) for name in heads]


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


def _nearest(
    takes: Callable[[Sequence[int]], bool], size: Sequence[int], others: Iterable[Sequence[int]]
) -> list[Sequence[int]]:
    """The nearest sizes below and above that a network takes; of others those that it takes, where there is none."""

    def nearby(divisors: Sequence[int]) -> list[list[int]]:
        below = [extent // by * by for extent, by in zip(size, divisors, strict=True)]
        above = [-(-extent // by) * by for extent, by in zip(size, divisors, strict=True)]
        return [sizes for sizes in (below, above) if all(sizes)]

    rank = len(size)
    found = next((by for by in _DIVISORS if takes(nearby([by] * rank)[-1])), None)
    if found is None:
        return list(dict.fromkeys(other for other in others if takes(other)))[:2]
    divisors = [found] * rank
    for axis in range(rank):
        for smaller in sorted(by for by in _DIVISORS if by < found):
            fewer = [*divisors[:axis], smaller, *divisors[axis + 1 :]]
            if all(map(takes, nearby(fewer))):
                divisors = fewer
                break
    return [sizes for sizes in nearby(divisors) if takes(sizes)]


class _Products(TorchDispatchMode):
    """Counts the elements of the outputs of convolutions and matrix products."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in _PRODUCTS:
            self.elements += out.numel()
        return out


_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.convolution.default, _ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Networks built and run in it take no memory, and draw no random numbers."""
    # PyTorch logs each size that is tried and does not fit, with tracebacks.
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.disabled = disabled


def _is_sequence(value: object) -> TypeGuard[Sequence]:
    return isinstance(value, list | tuple)


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
