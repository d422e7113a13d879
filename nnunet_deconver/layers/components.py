"""The choices of what a network has besides its backbone: an upsampling and a segmentation head.

Either is one entry in a plan's `arch_kwargs`: a dict with the `name` of a choice below and its options, for instance
`"upsampling": {"name": "dtc", "receptive_field": 4}`. A further upsampling or head is one class, and one entry here;
names, lists, help texts and planners follow from that.

An upsampling is constructed with (in_channels, out_channels, stride), a head with (in_channels, num_classes,
spatial_dims); both have `compute_conv_feature_map_size(input_size)`. With `start_as(plain)` a trained network can be
given one: it then computes what the layer it replaces did.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from nnunet_deconver.layers.deformable_transposed_convolution import DeformableTransposedConvolution
from nnunet_deconver.layers.dysample import DySampleUpsampling
from nnunet_deconver.layers.linear_upsampling import LinearUpsampling
from nnunet_deconver.layers.nerd import NeRDc, NeRDm
from nnunet_deconver.layers.norm_head import NormHead


@dataclass(frozen=True)
class Component:
    """A choice.

    Attributes:
        module: class; the first line of its docstring says what it is.
        label: what it is called in names of trainers, planners and plans.
        source: where it is published.
        start_options: options with which its `start_as` can take over any plain layer.
    """

    module: type[nn.Module]
    label: str
    source: str
    start_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """Names of its options."""
        # What the networks give every class of its kind is no option.
        return list(inspect.signature(self.module).parameters)[3:]

    def option_type(self, option: str) -> object:
        """What its constructor says an option is; object where it says nothing."""
        return get_type_hints(self.module.__init__).get(option, object)

    @property
    def can_start_as_plain(self) -> bool:
        """Whether a trained network can be given one."""
        return hasattr(self.module, "start_as")


def _fits(value: object, hint: object) -> bool:
    """Whether a value of a plans file is of a type; types that JSON has not are left to the constructor."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:  # JSON has no infinity
        return value == "inf" or (isinstance(value, int | float) and not isinstance(value, bool))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, NoneType) else True


class Components:
    """What can be chosen for one argument of the networks.

    Args:
        argument: its name in `arch_kwargs`.
        default: name of what the backbones build by themselves.
        plain: what that is, in words.
        choices: by name.
    """

    def __init__(self, argument: str, default: str, plain: str, choices: dict[str, Component]) -> None:
        self.argument = argument
        self.default = default
        self.plain = plain
        self.choices = choices

    def is_default(self, entry: dict | None) -> bool:
        """Whether an entry leaves the backbone as it is."""
        return entry is None or entry == {"name": self.default}

    def check(self, entry: dict | None) -> None:
        """Raises ValueError unless `entry` is None or names a choice, with options it has."""
        if self.is_default(entry):
            return
        if not isinstance(entry, dict) or "name" not in entry:
            raise ValueError(f'{self.argument} must be a dict with a "name", such as {self._example()}, got {entry!r}')
        known = [self.default, *self.choices]
        if entry["name"] not in known:
            raise ValueError(f"{self.argument} {entry['name']!r} is unknown; known are {', '.join(known)}")
        options = [] if entry["name"] == self.default else self.choices[entry["name"]].options
        unknown = [option for option in entry if option not in ("name", *options)]
        if unknown:
            allowed = f"it has {', '.join(options)}" if options else "it has none"
            raise ValueError(f"{self.argument} {entry['name']!r} has no option {', '.join(unknown)}; {allowed}")
        for option in options:
            hint = self.choices[entry["name"]].option_type(option)
            if option in entry and not _fits(entry[option], hint):
                name = getattr(hint, "__name__", None) or str(hint)
                raise ValueError(
                    f"{option} of {self.argument} {entry['name']!r} must be of type {name}, got {entry[option]!r}"
                )

    def check_can_start(self, entry: dict) -> None:
        """Raises ValueError unless a checked entry names what can start as the plain layer."""
        able = [name for name, component in self.choices.items() if component.can_start_as_plain]
        if entry["name"] not in able:
            raise ValueError(f"only {' and '.join(able)} can start as the {self.plain} it replaces")

    def start_entry(self, entry: dict) -> dict:
        """A checked entry with the options that taking over a plain layer needs."""
        return {**entry, **self.choices[entry["name"]].start_options}

    def build(self, entry: dict, *arguments: object) -> nn.Module:
        """Constructs what a checked entry, not the default one, names."""
        return self.choices[entry["name"]].module(*arguments, **{k: v for k, v in entry.items() if k != "name"})

    def label(self, entry: dict) -> str:
        """What an entry is called in names: the choice's label, and its options by their initials."""
        options = "".join(
            f"{''.join(part[0] for part in key.split('_'))}{value}" for key, value in entry.items() if key != "name"
        )
        return self.choices[entry["name"]].label + options.replace(".", "p")

    def _example(self) -> dict:
        return {"name": next(iter(self.choices))}


UPSAMPLINGS = Components(
    "upsampling",
    "transposed",
    "transposed convolution",
    {
        "dtc": Component(DeformableTransposedConvolution, "DTC", "arXiv 2601.17939"),
        "dysample": Component(DySampleUpsampling, "DySample", "arXiv 2308.15085"),
        "linear": Component(LinearUpsampling, "Linear", "nnU-Net"),
    },
)
SEGMENTATION_HEADS = Components(
    "segmentation_head",
    "conv",
    "1x1 convolution",
    {
        "nerdm": Component(NeRDm, "NeRDm", "arXiv 2103.04020", {"bias": True}),
        "nerdc": Component(NeRDc, "NeRDc", "arXiv 2103.04020", {"bias": True}),
        "norm": Component(NormHead, "Norm", "nnunet-deconver"),
    },
)
