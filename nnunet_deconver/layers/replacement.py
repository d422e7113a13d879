"""Upsamplings and segmentation heads in any network, in the place of its own layers, trained or not."""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeGuard, TypeVar, cast

from torch import nn
from torch.nn.parameter import UninitializedParameter

from nnunet_deconver.layers.common import (
    Convolution,
    StartsAsPlain,
    TransposedConvolution,
    as_convolution,
)
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS, Components

_Layer = TypeVar("_Layer", bound=nn.Module)


def replace_transposed_convolutions(
    network: nn.Module, upsampling: dict | None, *, only: str | Sequence[str] | None = None, same_start: bool = True
) -> list[str]:
    """Puts an upsampling in the place of every transposed convolution that upsamples, in the network itself.

    The old layer becomes the base of the new one, with its weights, and the network computes what it did. It fits if it
    makes stride x n voxels of n along each axis: with kernel = stride, or with a larger kernel and the padding that
    goes with it (kernel = 2 x stride - stride mod 2; or kernel 3, stride 2, padding 1, output padding 1). Groups and a
    missing bias do not matter.

    Args:
        network: any, before it is wrapped for several devices.
        upsampling: entry, {"name": "dtc", ...}; None or {"name": "transposed"} replaces nothing.
        only: name of a layer as in `network.named_modules()`, or a pattern such as "decoder*.up", or several of them;
            the other layers stay. None for every transposed convolution with a stride greater than 1.
        same_start: refuse an upsampling that cannot start as the layer it replaces. With False, each starts as it does
            in a new network: for a network that is not trained yet.

    Returns:
        Names of the layers that were replaced.

    Raises:
        ValueError: if there is no such layer, one does not fit, or the upsampling is unknown, does not fit or cannot
            start as the layer; nothing is replaced then.
    """
    UPSAMPLINGS.check(upsampling)
    if upsampling is None or UPSAMPLINGS.is_default(upsampling):
        return []
    refusal = f"upsampling {upsampling['name']!r} cannot be put into {type(network).__name__}"
    _check_start(UPSAMPLINGS, upsampling, same_start, refusal)
    names: dict[TransposedConvolution, list[str]] = {}  # of each layer; more than one where a network shares it
    for name, layer in _layers(network):
        if _upsamples(layer):
            names.setdefault(layer, []).append(name)
    if not names:
        raise ValueError(
            f"{refusal}: it has no transposed convolution with a stride greater than 1{_replaced(network, UPSAMPLINGS)}"
        )
    patterns = ["*"] if only is None else [only] if isinstance(only, str) else list(only)
    for pattern in patterns:
        if not any(fnmatch.filter(each, pattern) for each in names.values()):
            has = _listed([each[0] for each in names.values()])
            raise ValueError(f"{refusal}: only={pattern!r} names none of its transposed convolutions, which are {has}")
    chosen = {
        each[0]: layer for layer, each in names.items() if any(fnmatch.filter(each, pattern) for pattern in patterns)
    }

    misfits = {name: misfit for name, layer in chosen.items() if (misfit := _misfit(layer)) is not None}
    if misfits:
        fitting = [name for name in chosen if name not in misfits]
        advice = f"; name those to replace by only={fitting}" if fitting else ""
        listed = _listed([f"{name} {misfit}" for name, misfit in misfits.items()])
        raise ValueError(
            f"{refusal}: {listed}; a layer fits that has 2 or 3 axes and makes stride x n voxels of n, as with "
            f"kernel = stride, or with output_padding = stride + 2 x padding - kernel{advice}"
        )
    _replace(network, chosen, lambda layer: _upsampling(layer, upsampling, same_start), refusal)
    return list(chosen)


def replace_segmentation_head(
    network: nn.Module, head: dict | None, *, name: str | None = None, same_start: bool = True
) -> str | None:
    """Puts a segmentation head in the place of a network's last pointwise convolution, in the network itself.

    The head takes over its weights, and the network computes what it did.

    Args:
        network: any, before it is wrapped for several devices.
        head: entry, {"name": "nerdc", ...}; None or {"name": "conv"} replaces nothing.
        name: of the convolution as in `network.named_modules()`; None for the last one in that order. A network with a
            head per resolution takes a call for each, and its last one may be any.
        same_start: as for `replace_transposed_convolutions`.

    Returns:
        Name of the convolution that was replaced; None if none was to be.

    Raises:
        ValueError: if there is no such convolution, or the head is unknown, does not fit or cannot start as it; nothing
            is replaced then.
    """
    SEGMENTATION_HEADS.check(head)
    if head is None or SEGMENTATION_HEADS.is_default(head):
        return None
    refusal = f"segmentation_head {head['name']!r} cannot be put into {type(network).__name__}"
    _check_start(SEGMENTATION_HEADS, head, same_start, refusal)
    convolutions = {
        each: layer for each, layer in _layers(network) if isinstance(layer, Convolution | TransposedConvolution)
    }
    pointwise = {each: layer for each, layer in convolutions.items() if _is_pointwise(layer)}
    known = f"its pointwise convolutions are {_listed([*pointwise])}" if pointwise else "it has none that is pointwise"
    known += _replaced(network, SEGMENTATION_HEADS)
    if name is None:
        name = next(reversed(convolutions), "")
        if name not in pointwise or _replaced(network, SEGMENTATION_HEADS):
            last = f"its last convolution is {name} ({_geometry(convolutions[name])}); " if name else ""
            raise ValueError(f"{refusal}: {last}{known}; choose one by name=")
    elif name not in pointwise:
        raise ValueError(f"{refusal}: name={name!r} is no pointwise convolution of it; {known}")
    _replace(network, {name: pointwise[name]}, lambda layer: _head(layer, head, same_start), refusal)
    return name


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All layers by name, a shared one under each of its names; none from inside an upsampling or a head of ours."""
    ours = tuple(_choices(UPSAMPLINGS) | _choices(SEGMENTATION_HEADS))
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, ours):
            inside += (f"{name}." if name else "",)
        elif not name.startswith(inside):
            yield name, module


def _choices(components: Components) -> set[type[nn.Module]]:
    return {component.module for component in components.choices.values()}


def _replaced(network: nn.Module, components: Components) -> str:
    """What a message says of the choices that a network has already."""
    names = [name for name, module in network.named_modules() if isinstance(module, tuple(_choices(components)))]
    return f"; replaced already: {_listed(names)}" if names else ""


def _listed(items: list[str]) -> str:
    """Some of many, the last of them for sure: heads are at the end."""
    return ", ".join(items if len(items) <= 6 else [*items[:3], "...", *items[-2:]])


def _check_start(components: Components, entry: dict, same_start: bool, refusal: str) -> None:
    if same_start:
        try:
            components.check_can_start(entry)
        except ValueError as error:
            raise ValueError(f"{refusal}: {error}; pass same_start=False for a network not trained yet") from error


def _upsamples(layer: nn.Module) -> TypeGuard[TransposedConvolution]:
    return isinstance(layer, TransposedConvolution) and any(stride > 1 for stride in layer.stride)


def _is_pointwise(layer: nn.Module) -> TypeGuard[Convolution | TransposedConvolution]:
    if not isinstance(layer, Convolution | TransposedConvolution):
        return False
    padding = () if isinstance(layer.padding, str) else layer.padding
    return {*layer.kernel_size, *layer.stride, layer.groups} == {1} and not any((*padding, *layer.output_padding))


def _geometry(layer: nn.Module) -> str:
    """Kernel, stride and the rest as PyTorch prints them."""
    return repr(layer).partition("(")[2].removesuffix(")")


def _misfit(layer: TransposedConvolution) -> str | None:
    """What keeps upsamplings from the place of a layer; None if one can be put there."""
    if isinstance(layer.weight, UninitializedParameter):
        return "has no weights before the network was run once"
    # What is beyond n times the stride in an output of n voxels.
    beyond = {
        dilation * (kernel - 1) + 1 + extra - 2 * padding - stride
        for kernel, stride, padding, extra, dilation in zip(
            layer.kernel_size,
            layer.stride,
            cast(tuple[int, ...], layer.padding),
            layer.output_padding,
            layer.dilation,
            strict=True,
        )
    }
    return None if beyond == {0} and len(layer.stride) in (2, 3) else f"({_geometry(layer)})"


def _is_plain(layer: TransposedConvolution) -> bool:
    """Whether a layer has nothing but the kernel of its stride, which every upsampling can start as."""
    extra = {layer.groups - 1, *layer.padding, *layer.output_padding, *(d - 1 for d in layer.dilation)}
    return layer.kernel_size == layer.stride and extra == {0} and _computes_as_usual(layer)


def _computes_as_usual(layer: nn.Module) -> bool:
    """Whether a convolution is not of a class with a `forward` of its own."""
    return any(type(layer).forward is kind.forward for kind in (Convolution | TransposedConvolution).__args__)


def _upsampling(layer: TransposedConvolution, entry: dict, same_start: bool) -> nn.Module:
    entry = UPSAMPLINGS.start_entry(entry) if same_start else dict(entry)
    has_base = "base" in UPSAMPLINGS.choices[entry["name"]].options
    if has_base and entry.get("base", UPSAMPLINGS.default) == UPSAMPLINGS.default:
        entry["base"] = layer
    elif same_start and not _is_plain(layer):
        raise ValueError(f"it can only start as a plain transposed convolution with kernel = stride, not as {layer}")
    upsampling = UPSAMPLINGS.build(entry, layer.in_channels, layer.out_channels, layer.stride)
    return _started(upsampling, layer, same_start)


def _head(layer: Convolution | TransposedConvolution, entry: dict, same_start: bool) -> nn.Module:
    if same_start:
        entry = SEGMENTATION_HEADS.start_entry(entry)
        if not _computes_as_usual(layer):
            raise ValueError(f"its class, {type(layer).__name__}, computes otherwise than PyTorch's convolution")
    layer = as_convolution(layer)
    head = SEGMENTATION_HEADS.build(entry, layer.in_channels, layer.out_channels, len(layer.kernel_size))
    return _started(head, layer, same_start)


def _started(new: nn.Module, old: Convolution | TransposedConvolution, same_start: bool) -> nn.Module:
    """The new layer where, and in the mode in which, the old one is, and as the old one if it is to be."""
    like = (old.weight.device, old.weight.dtype)
    # Tensors without memory can be moved nowhere, not even to where they are.
    if any((parameter.device, parameter.dtype) != like for parameter in new.parameters()):
        new.to(*like)
    new.train(old.training)
    if same_start:
        assert isinstance(new, StartsAsPlain)  # as `_check_start` has seen to
        new.start_as(old)
    return new


def _replace(
    network: nn.Module, chosen: Mapping[str, _Layer], make: Callable[[_Layer], nn.Module], refusal: str
) -> None:
    """Puts new layers wherever the chosen ones are; makes all of them before it puts the first."""
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in chosen.items():
        if not name:
            raise ValueError(f"{refusal}: it is the layer itself, not a network that has it")
        try:
            made[layer] = make(layer)
        except ValueError as error:
            raise ValueError(f"{refusal}: {name}: {error}") from error
    for name, layer in list(_layers(network)):
        if layer in made:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, made[layer])
