"""What a model folder may have this package import: data from others is not to run code.

A plans file names classes, and nnU-Net imports and calls whatever it names. Here only networks and operators of known
packages are built, and checkpoints are read without unpickling, unless the caller trusts the model.
"""

import pydoc

from torch import nn

from nnunet_deconver.errors import InputError
from nnunet_deconver.networks.backbones import BACKBONES

# Packages whose networks, and the operators that these take, are built.
NETWORKS = ("nnunet_deconver", "nnunetv2", "dynamic_network_architectures")
OPERATORS = (*NETWORKS, "torch.nn")


def check_trusted(architecture: dict, where: str) -> None:
    """Raises InputError unless all that an architecture entry names is a network or operator of a known package.

    Nothing else is imported on the way. Networks of `BACKBONES` are known, those of other installed packages too.

    Args:
        architecture: entry of checked plans.
        where: they are from.
    """
    name = architecture["network_class_name"]
    if name not in [backbone.network for backbone in BACKBONES.values()]:
        _check_class(name, "network_class_name", NETWORKS, where)
    arch_kwargs = architecture["arch_kwargs"]
    # Whatever the network is: who does not take the argument will say so.
    if "network" in arch_kwargs and arch_kwargs["network"] not in _adapted():
        _check_class(arch_kwargs["network"], "arch_kwargs.network", NETWORKS, where)
    for key in architecture["_kw_requires_import"]:
        if arch_kwargs.get(key) is not None:
            _check_class(arch_kwargs[key], f"arch_kwargs.{key}", OPERATORS, where)


def _adapted() -> list[str]:
    return [backbone.adaptation.network for backbone in BACKBONES.values() if backbone.adaptation is not None]


def _check_class(name: object, field: str, packages: tuple[str, ...], where: str) -> None:
    if not isinstance(name, str) or not _is_of(name, packages):
        raise _refusal(name, field, f"is not of {', '.join(packages)}", where)
    try:
        located = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise _refusal(name, field, f"cannot be imported ({error})", where) from error
    if located is None:
        # nnU-Net looks elsewhere for a network that has moved, and takes an operator that is not there for none.
        if field == "network_class_name":
            return
        raise InputError(f"{where}: {field} {name!r} is not there; look for a misspelling")
    # By way of a known package one comes to other modules (torch.nn.modules.module.os): the class must be of one.
    if not (isinstance(located, type) and issubclass(located, nn.Module) and _is_of(located.__module__, packages)):
        raise _refusal(name, field, f"is no torch.nn.Module of {', '.join(packages)}", where)


def _is_of(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refusal(name: object, field: str, problem: str, where: str) -> InputError:
    return InputError(
        f"{where}: {field} {name!r} {problem}, and is not imported for a file that may be somebody else's; if you "
        "trust a model, add --trust"
    )
