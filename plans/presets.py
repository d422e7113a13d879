"""The configurations the papers publish, `presets/*.json`, and how they are planned for a dataset."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_deconver.files import read_json
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.networks.backbones import BACKBONES, usual_recipe
from nnunet_deconver.networks.trust import check_trusted
from nnunet_deconver.plans.planners import MEMORY_TARGETS, MemoryPlanner, PluginPlanner, make_planner
from nnunet_deconver.recipes import RECIPES, Recipe

_FOLDER = Path(__file__).parent
# From this ratio on nnU-Net calls the spacings of two axes different, and kernels flat.
_ANISOTROPIC = 2
# What an epoch is to nnU-Net.
ITERATIONS_PER_EPOCH = 250
# What a preset does not take over from the one it derives from.
_OWN = ("title", "published")


@dataclass(frozen=True)
class Preset:
    """A published configuration.

    Attributes:
        name: that of its file.
        title: what it is, in a line.
        source: where `network` and `training` are published.
        notes: what the source leaves open.
        dimension: 2 or 3.
        input_channels: of the published network; a dataset has its own.
        num_classes: likewise, output channels.
        regions: whether each has a sigmoid of its own, rather than all one softmax.
        patch_size: voxels; None where it is planned for the memory target.
        batch_size: likewise.
        architecture: entry as in a plans file; None where the stages are planned for the dataset.
        planned: then, arguments of `planners.make_planner`.
        training: trainer and recipe, and the length as printed: `epochs` over `images` (`images_are` says which), or
            `iterations`; None where the source prints none of it.
        folds: their number, whether they are stratified, and which are trained; None where none are printed.
        evaluation: what measures as the source does (`evaluate --like`), and on which images.
        published: the row as printed, in strings (`table`, `parameters_M`, `kflops_per_voxel` or `gflops`, `scores`),
            and the `reasons` why what is counted here differs.
    """

    name: str
    title: str
    source: dict[str, str]
    dimension: int
    input_channels: int
    num_classes: int
    regions: bool
    patch_size: list[int] | None
    batch_size: int | None
    notes: Sequence[str] = ()
    architecture: dict | None = None
    planned: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    folds: dict[str, Any] | None = None
    evaluation: dict[str, str] | None = None
    published: dict[str, Any] | None = None

    @property
    def configuration(self) -> str:
        """nnU-Net's name of the configuration it plans."""
        return "3d_fullres" if self.dimension == 3 else "2d"

    @property
    def iterations(self) -> float | None:
        """Length of the published training; None where it is not printed."""
        if self.training is None:
            return None
        if "iterations" in self.training:
            return self.training["iterations"]
        assert self.batch_size is not None  # loading has checked it
        return self.training["epochs"] * self.training["images"] / self.batch_size

    @property
    def nnunet_epochs(self) -> int | None:
        """Likewise, in epochs of nnU-Net."""
        return None if self.iterations is None else max(1, round(self.iterations / ITERATIONS_PER_EPOCH))

    @property
    def trainer_name(self) -> str | None:
        """The trainer of that length; None where the source prints none."""
        if self.training is None:
            return None
        epochs = self.nnunet_epochs
        return f"{self.training['trainer']}_{epochs}epoch{'s' if epochs != 1 else ''}"

    @property
    def recipe(self) -> Recipe:
        """What the network is trained with: what is printed, or what such networks usually are."""
        if self.training is not None:
            return RECIPES[self.training["recipe"]]
        if self.architecture is not None:
            return usual_recipe(self.architecture)
        assert self.planned is not None  # the schema wants one of the two
        return RECIPES[BACKBONES[self.planned["backbone"]].recipe]

    def planner(self, memory_target: float = MEMORY_TARGETS[""], recompute: str = "auto") -> type[MemoryPlanner]:
        """The planner of this preset.

        Args:
            memory_target: GiB, for what the preset leaves open.
            recompute: see `MemoryPlanner`.
        """
        plans_name = "nnUNetPreset" + "".join(part.capitalize() for part in self.name.split("-")) + "Plans"
        namespace = {
            "preset": self,
            "plans_name": plans_name,
            "memory_target": memory_target,
            "recipe": self.recipe,
            "recompute": recompute,
            "__doc__": self.title,
        }
        if self.architecture is None:
            assert self.planned is not None  # the schema wants one of the two
            return type("PresetPlanner", (_ForPreset, make_planner(**self.planned)), namespace)
        return type("PresetPlanner", (PresetPlanner,), namespace)


def load_preset(name_or_path: str) -> Preset:
    """Reads a preset.

    Args:
        name_or_path: name of one of this package, or path of a JSON file of the same form. A file with a `base` derives
            from the preset of this package that it names: what it says replaces what that says, key by key, and title
            and published numbers are its own.

    Raises:
        ValueError: if there is none, or it is not valid.
    """
    path = _FOLDER / "presets" / f"{name_or_path}.json"
    if "/" in name_or_path or name_or_path.endswith(".json") or not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"preset {name_or_path!r} is neither one of {', '.join(preset_names())}, nor the path of a JSON file"
        )
    entries = _entries(path)
    errors = sorted(_VALIDATOR.iter_errors(entries), key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        where = ".".join(map(str, errors[0].absolute_path)) or "the file"
        problem = errors[0].message
        if len(problem) > 1000:  # it may quote the whole file
            problem = f"{problem[:500]} ... {problem[-200:]}"
        raise ValueError(f"preset {path} is not valid: {where}: {problem}")
    preset = Preset(name=path.stem, **entries)
    try:
        _check(preset)
    except ValueError as error:
        raise ValueError(f"preset {path} is not valid: {error}") from error
    return preset


def _entries(path: Path) -> dict:
    """What a file says, with what the presets say that it derives from."""
    entries = read_json(path, "a preset is a JSON file")
    if "base" not in entries:
        return entries
    base = entries.pop("base")
    if base not in preset_names():
        raise ValueError(f"preset {path} is not valid: base {base!r} must be one of {', '.join(preset_names())}")
    inherited = _entries(_FOLDER / "presets" / f"{base}.json")
    return _merged({key: value for key, value in inherited.items() if key not in _OWN}, entries)


def _merged(base: dict, changes: dict) -> dict:
    """A dict with another's values in place of its own, dicts within merged alike."""
    return base | {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }


def preset_names() -> list[str]:
    """Names of the presets of this package."""
    return sorted(path.stem for path in (_FOLDER / "presets").glob("*.json"))


_VALIDATOR = Draft202012Validator(json.loads((_FOLDER / "preset.schema.json").read_text()))


def _check(preset: Preset) -> None:
    """What a schema cannot say."""
    arch_kwargs = preset.architecture["arch_kwargs"] if preset.architecture else preset.planned
    assert arch_kwargs is not None  # the schema wants one of the two
    UPSAMPLINGS.check(arch_kwargs.get("upsampling"))
    SEGMENTATION_HEADS.check(arch_kwargs.get("segmentation_head"))
    if preset.training is not None:
        if preset.training["recipe"] not in RECIPES:
            raise ValueError(f"recipe {preset.training['recipe']!r} is unknown; known are {', '.join(RECIPES)}")
        if "epochs" in preset.training and preset.batch_size is None:
            raise ValueError("a training of so many epochs needs a batch_size; give its iterations instead")
    if preset.architecture is None:
        return
    check_trusted(preset.architecture, "architecture")
    for key in ("features_per_stage", "kernel_sizes", "strides"):
        if len(arch_kwargs[key]) != arch_kwargs["n_stages"]:
            raise ValueError(f"{key} must have {arch_kwargs['n_stages']} entries, as n_stages says")
    per_axis = [*arch_kwargs["kernel_sizes"], *arch_kwargs["strides"]]
    per_axis += [preset.patch_size] if preset.patch_size else []
    if any(len(entry) != preset.dimension for entry in per_axis):
        raise ValueError(f"kernel_sizes, strides and patch_size must have {preset.dimension} axes, as dimension says")
    if preset.patch_size and any(size % t for size, t in zip(preset.patch_size, total_strides(preset), strict=True)):
        raise ValueError(f"patch_size must be divisible by the total strides {total_strides(preset)}")


def total_strides(preset: Preset) -> list[int]:
    """By how much the lowest resolution is lower than the highest, per axis, where the preset has an architecture."""
    assert preset.architecture is not None
    return [math.prod(axis) for axis in zip(*preset.architecture["arch_kwargs"]["strides"], strict=True)]


def misfits(preset: Preset, dataset_json: dict, num_heads: int, configuration: dict) -> list[str]:
    """Where a dataset differs from the one a preset was made for, a sentence each.

    Args:
        preset: the preset.
        dataset_json: nnU-Net's description of the dataset.
        num_heads: output channels for the dataset.
        configuration: the planned one.
    """
    found = []
    channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    if channels != preset.input_channels:
        found.append(f"the dataset has {channels} input channels, the preset's {preset.input_channels}")
    if preset.regions and (preset.num_classes, num_heads) == (1, 2):
        found.append(
            "the dataset has one class, for which nnU-Net has two outputs and a softmax: the same function as the "
            "preset's one output with a sigmoid"
        )
    elif num_heads != preset.num_classes:
        found.append(f"the dataset needs {num_heads} output channels, the preset's {preset.num_classes}")
    shape = [round(size) for size in configuration["median_image_size_in_voxels"]]
    if any(patch > size for patch, size in zip(configuration["patch_size"], shape, strict=True)):
        found.append(
            f"the patch {configuration['patch_size']} is larger than the median image {shape}, which will be padded"
        )
    spacing = configuration["spacing"]
    if preset.architecture and max(spacing) > _ANISOTROPIC * min(spacing):
        found.append(
            f"the spacing {[round(float(s), 3) for s in spacing]} is anisotropic, the preset's kernels and strides are "
            "the same along all axes"
        )
    return found


class _ForPreset(PluginPlanner):
    """Refuses datasets without the configuration of a preset; mixed into a planner."""

    preset: Preset

    def save_plans(self, plans: dict) -> None:
        """See `PluginPlanner`.

        Raises:
            ValueError: if the preset is 3D and the dataset is not.
        """
        if self.preset.configuration not in plans["configurations"]:
            raise ValueError(
                f"preset {self.preset.name} is 3D, {self.dataset_name} is 2D; take a 2D preset (`nnunet-deconver list` "
                "shows them), or plan without one"
            )
        super().save_plans(plans)


class PresetPlanner(_ForPreset, MemoryPlanner, ExperimentPlanner):
    """Plans the network of a preset, whatever the dataset; patch and batch too, where the preset has them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lowres_creation_threshold = 0  # a preset is one configuration

    @property
    def network_class_name(self) -> str:
        """The preset's."""
        return self.architecture({})["network_class_name"]

    def architecture(self, architecture: dict) -> dict:
        """The preset's."""
        assert self.preset.architecture is not None
        return self.preset.architecture

    def network_patch_size(self, patch_size: Sequence[int]) -> list[int]:
        """The preset's patch, or the next larger one that the preset's strides divide."""
        if self.preset.patch_size:
            return self.preset.patch_size
        return [math.ceil(size / t) * t for size, t in zip(patch_size, total_strides(self.preset), strict=True)]

    def static_estimate_VRAM_usage(self, patch_size: Sequence[int], *args: Any, **kwargs: Any) -> float:
        """See `MemoryPlanner`; nothing, where there is nothing to search for."""
        if self.preset.patch_size or len(patch_size) != self.preset.dimension:
            return 1
        return super().static_estimate_VRAM_usage(patch_size, *args, **kwargs)

    def get_plans_for_configuration(
        self, spacing: np.ndarray | tuple[float, ...] | list[float], *args: Any, **kwargs: Any
    ) -> dict:
        """See `MemoryPlanner`; the batch is the preset's, where it has one."""
        if len(spacing) != self.preset.dimension:
            # nnU-Net insists; `save_plans` drops it.
            return ExperimentPlanner.get_plans_for_configuration(self, spacing, *args, **kwargs)
        plan = super().get_plans_for_configuration(spacing, *args, **kwargs)
        return plan | ({"batch_size": self.preset.batch_size} if self.preset.batch_size else {})

    def save_plans(self, plans: dict) -> None:
        """See `PluginPlanner`; of the configurations only the preset's stays."""
        plans["configurations"] = {
            name: entry for name, entry in plans["configurations"].items() if name == self.preset.configuration
        }
        super().save_plans(plans)
