"""Options in a trainer's name: any trainer that nnU-Net finds, in another length, and with a seed.

    <trainer>[_<N>epochs][_<N>iterations][_seed<N>]

`_<N>iterations` are training iterations an epoch; validation has a fifth of them, as nnU-Net has 50 for 250. What a
seed makes equal is said in `seeds`, and in docs/trainers.md.
"""

import functools
import re
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.integration.trainers import search_trainer
from nnunet_deconver.trainers.seeds import SeededTrainer

GRAMMAR = "<trainer>[_<N>epochs][_<N>iterations][_seed<N>]"
_NAME = re.compile(r"\w+?(_(?P<epochs>\d+)epochs?)?(_(?P<iterations>\d+)iterations)?(_seed(?P<seed>\d+))?", re.ASCII)

# A name stands for one class, as pickle asks.
_made: dict[str, type[nnUNetTrainer]] = {}
# Names that nnU-Net is being asked for. It asks this package too, which has no class of its own for them then.
_asked: list[str] = []


class LengthTrainer(nnUNetTrainer):
    """Makes any trainer as long as its name says; comes before it among the bases of a class."""

    # nnU-Net's names of what is set, and values.
    named_length: dict[str, int]

    # nnU-Net reads the parameters' names off the signature and looks them up in its own: it has to be nnU-Net's.
    @functools.wraps(nnUNetTrainer.__init__)
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # After the trainer's own constructor, which may set its length; schedules are made later.
        for name, value in self.named_length.items():
            setattr(self, name, value)


def with_options(name: str) -> type[nnUNetTrainer] | None:
    """The trainer of a name with options.

    Returns:
        A class of this name, or None if the name has no options, or nnU-Net finds a class of exactly this name.

    Raises:
        ArgumentError: if there is no trainer to which the options could belong, or a length is 0.
    """
    if name in _asked:
        return None
    if name in _made:
        return _made[name]
    found = _NAME.fullmatch(name)
    options = {key: value for key, value in found.groupdict().items() if value} if found else {}
    if not options:
        return None
    trainer, left = _class_named(name), name
    if trainer is not None:
        return None
    # The longest name that is a class: what looks like an option may belong to it.
    chosen: dict[str, int] = {}
    for option in reversed(options):
        left = left[: left.rindex("_")]
        chosen[option] = int(options[option])
        trainer = _class_named(left)
        if trainer is not None:
            break
    else:
        problem = f"nnU-Net finds no trainer {left}; a name is {GRAMMAR}, see `nnunet-deconver list trainers`"
        raise ArgumentError("trainer", name, problem)
    for option in ("epochs", "iterations"):
        if chosen.get(option) == 0:
            raise ArgumentError("trainer", name, f"{option} must be at least 1, not 0")
    _made[name] = _make(name, trainer, chosen)
    return _made[name]


def without_options(name: str) -> str:
    """The name of the trainer to which the options in a name belong; the name itself if it has none that are known."""
    try:
        found = with_options(name)
    except InputError:
        return name
    return name if found is None else found.__bases__[-1].__name__


def _class_named(name: str) -> type[nnUNetTrainer] | None:
    """This package's class of exactly this name, or nnU-Net's, or the user's."""
    from nnunet_deconver import trainers

    if name in trainers.__all__:
        return getattr(trainers, name)
    _asked.append(name)
    try:
        return search_trainer(name)
    except InputError:
        return None
    finally:
        _asked.remove(name)


def _make(name: str, trainer: type[nnUNetTrainer], options: dict[str, int]) -> type[nnUNetTrainer]:
    length: dict[str, int] = {}
    content: dict[str, Any] = {"named_length": length}
    bases, said = [LengthTrainer, trainer], []
    if "epochs" in options:
        length["num_epochs"] = options["epochs"]
        said.append(f"{options['epochs']} epochs")
    if "iterations" in options:
        length["num_iterations_per_epoch"] = options["iterations"]
        length["num_val_iterations_per_epoch"] = max(1, options["iterations"] // 5)
        said.append(f"{options['iterations']} iterations an epoch")
    if "seed" in options:
        bases.insert(0, SeededTrainer)
        content["named_seed"] = options["seed"]
        said.append(f"seed {options['seed']}")
    content |= {"__module__": "nnunet_deconver.trainers", "__doc__": f"{trainer.__name__} with {', '.join(said)}."}
    return type(name, tuple(bases), content)
