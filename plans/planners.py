"""Experiment planners that size patch and batch for the network that will be trained.

They are nnU-Net's planners with two things changed: a configuration's architecture is one of this package, and its size
is decided by the memory that training it takes (`plans.memory`), not by nnU-Net's count of feature maps, which was
fitted to nnU-Net's networks. The memory target is the most that PyTorch may allocate, in GiB. As with nnU-Net's own
presets, a target of 8 is for a GPU of 10 to 12.
"""

import json
import math
import pydoc
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_deconver.files import read_json, written_whole
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.networks.architecture import DECONVER, build_network
from nnunet_deconver.networks.backbones import BACKBONES, Backbone, usual_recipe, with_components
from nnunet_deconver.networks.deconver import recomputed_stages
from nnunet_deconver.plans.cost import stage_level, stage_modules, training_flops
from nnunet_deconver.plans.memory import GIB, TrainingMemory, training_memory
from nnunet_deconver.recipes import RECIPES, Recipe

# Names of nnU-Net's default plans, whose preprocessed data is shared, and of our record in a plans file.
DEFAULT_PLANS = "nnUNetPlans"
ESTIMATE = "estimated_training_memory_GiB"

# What a planner can be asked for, see `MemoryPlanner`; "auto" does not stand in plans.
RECOMPUTE = ("auto", "always", "never")

# Memory targets in GiB by what they add to a name: those of nnU-Net's residual presets M, L and XL.
MEMORY_TARGETS: dict[str, float] = {"": 8, "L": 24, "XL": 40}

# What decides on a configuration's memory.
_DECIDE_ON_MEMORY = ("architecture", "patch_size", "batch_size")

_CUT_SHORT = "plans that a killed command left cut short: remove them and plan again"

# Files that nnU-Net keeps beside the plans.
_OTHER_FILES = ("dataset", "dataset_fingerprint", "splits_final")

# What decides how a case is preprocessed, in a configuration and in the plans as a whole.
_PREPROCESSING = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)
_PREPROCESSING_OF_PLANS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")


if TYPE_CHECKING:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner as _Planner,
    )
else:
    _Planner = object


class PluginPlanner(_Planner):
    """What the planners of this package share; mixed into a planner of nnU-Net.

    Class attributes set the name of the plans and the memory target unless the caller does, the recipe whose optimizer
    is counted (see `recipes`; None for what the network is usually trained with), and whether plans of the same name
    that are there already are replaced, as nnU-Net replaces them.
    """

    plans_name: str
    recipe: Recipe | None = None
    memory_target: float = MEMORY_TARGETS[""]
    overwrite: bool = True

    # nnU-Net passes these by name, and only those it was given.
    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        plans_name = self.plans_name if plans_name is None else plans_name
        if "__" in plans_name or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", plans_name):
            raise ValueError(
                "a plans name is made of letters, digits, '_', '.' and '-', without '__', on which nnU-Net splits "
                f"names; got {plans_name!r}"
            )
        if plans_name in _OTHER_FILES:
            raise ValueError(f"{plans_name}.json is another file of nnU-Net; name the plans otherwise")
        target = self.memory_target if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb
        if not (math.isfinite(target) and target > 0):
            raise ValueError(f"the GPU memory target must be a positive number of GiB, got {target}")
        super().__init__(
            dataset_name_or_id,
            target,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,  # pyright: ignore[reportArgumentType] None is nnU-Net's own default
            suppress_transpose,
        )
        self._memory: dict[str, TrainingMemory] = {}
        self.labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))

    def generate_data_identifier(self, configuration_name: str) -> str:
        """The plans' own preprocessed data, as long as it is not known to be that of the default plans."""
        return f"{self.plans_identifier}_{configuration_name}"

    def architecture(self, architecture: dict) -> dict:
        """The architecture entry of this planner's network, given the one nnU-Net's planner makes."""
        raise NotImplementedError

    def memory(self, architecture: dict, patch_size: Sequence[int], batch_size: int) -> TrainingMemory:
        """The memory of training the network an architecture entry names."""
        key = json.dumps([architecture, list(map(int, patch_size)), int(batch_size)])
        if key not in self._memory:
            self._memory[key] = self._count_memory(architecture, patch_size, batch_size)
        return self._memory[key]

    def on_count(self) -> None:
        """Called for each training step counted; for showing progress."""

    def _count_memory(self, architecture: dict, patch_size: Sequence[int], batch_size: int) -> TrainingMemory:
        self.on_count()
        return training_memory(
            **self._step(architecture, patch_size, batch_size),
            groups=stage_modules,
            build_optimizer=(self.recipe or usual_recipe(architecture)).build_optimizer,
        )

    def flops(self, architecture: dict, patch_size: Sequence[int], batch_size: int) -> int:
        """The FLOPs of a training step of the network an architecture entry names."""
        self.on_count()
        return training_flops(**self._step(architecture, patch_size, batch_size))

    def _step(self, architecture: dict, patch_size: Sequence[int], batch_size: int) -> dict[str, Any]:
        channels, classes = self._input_channels, self.labels.num_segmentation_heads
        return {
            "build_network": partial(build_network, architecture, channels, classes, deep_supervision=True),
            "input_channels": channels,
            "num_classes": classes,
            "regions": self.labels.has_regions,
            "patch_size": [int(size) for size in patch_size],
            "batch_size": int(batch_size),
        }

    @property
    def _input_channels(self) -> int:
        return len(self.dataset_json.get("channel_names") or self.dataset_json["modality"])

    def save_plans(self, plans: dict) -> None:
        """Writes the plans file; configurations of it that a person added stay, as in nnU-Net.

        Raises:
            FileExistsError: if other plans of this name are there and `overwrite` is off.
            InputError: if plans that are there already are not JSON.
        """
        recursive_fix_for_json_export(plans)
        plans[ESTIMATE] = {
            name: round(self.memory(entry["architecture"], entry["patch_size"], entry["batch_size"]).peak / GIB, 2)
            for name, entry in plans["configurations"].items()
            if "architecture" in entry
        }
        folder = Path(nnUNet_preprocessed) / self.dataset_name
        self._share_preprocessed_data(plans, folder)
        # As it will be read: tuples are lists.
        plans = json.loads(json.dumps(plans))
        path = folder / f"{self.plans_identifier}.json"
        if path.is_file():
            found = read_json(path, _CUT_SHORT)
            plans["configurations"] = found["configurations"] | plans["configurations"]
            if found == plans:
                return
            if not self.overwrite:
                raise FileExistsError(f"{path} exists and has other settings")
        with written_whole(path) as file:
            file.write(json.dumps(plans, indent=4))

    def _share_preprocessed_data(self, plans: dict, folder: Path) -> None:
        # A configuration that is preprocessed as that of the default plans uses the same data. Where those were never
        # made, they would come out as planned here, the low resolution aside, whose spacing depends on the patch.
        path = folder / f"{DEFAULT_PLANS}.json"
        default = read_json(path, _CUT_SHORT) if path.is_file() else None
        as_default = (
            self.overwrite_target_spacing is None
            and not self.suppress_transpose
            and self.preprocessor_name == "DefaultPreprocessor"
        )
        for name, entry in plans["configurations"].items():
            if "data_identifier" not in entry:
                continue
            if default is None:
                if as_default and name != "3d_lowres":
                    entry["data_identifier"] = f"{DEFAULT_PLANS}_{name}"
            elif _preprocessing(plans, name) == _preprocessing(default, name):
                entry["data_identifier"] = default["configurations"][name]["data_identifier"]


def _preprocessing(plans: dict, configuration: str) -> str | None:
    entry = plans["configurations"].get(configuration)
    if entry is None:
        return None
    chosen = [entry.get(key) for key in _PREPROCESSING] + [plans.get(key) for key in _PREPROCESSING_OF_PLANS]
    return json.dumps(chosen, sort_keys=True)


class MemoryPlanner(PluginPlanner):
    """Plans the largest patch, and then the largest batch, whose training fits the memory target.

    Memory that is left then saves Deconver work: stages keep what they would compute again in the backward pass.

    Class attributes set the network: backbone (see `networks.backbones`), upsampling and head (see
    `layers.components`; None for the backbone's own); and which stages of Deconver compute again: "always", "never",
    or "auto" for those that do not fit the memory target otherwise. Patch and batch are those of "always".
    """

    backbone: Backbone = BACKBONES["plain"]
    upsampling: dict | None = None
    segmentation_head: dict | None = None
    recompute: str = "auto"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        UPSAMPLINGS.check(self.upsampling)
        SEGMENTATION_HEADS.check(self.segmentation_head)
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"recompute {self.recompute!r} is unknown; known are {', '.join(RECOMPUTE)}")
        if self.recompute != "auto" and self.network_class_name != DECONVER:
            raise ValueError(
                f"recompute {self.recompute!r}: only Deconver computes again in the backward pass, this plans "
                f"{self.network_class_name}; leave it out"
            )
        if self.backbone.max_features_3d is not None:
            self.UNet_max_features_3d = self.backbone.max_features_3d
        # nnU-Net compares its estimate for a reference batch with reference * target / reference's GB, which with
        # these is the target in bytes, for the smallest batch.
        self.UNet_reference_val_2d = self.UNet_reference_val_3d = GIB
        self.UNet_reference_val_corresp_GB = 1
        self.UNet_reference_val_corresp_bs_2d = self.UNet_reference_val_corresp_bs_3d = self.UNet_min_batch_size
        self._known: dict[str | int, tuple[int, int, int]] = {}

    @property
    def network_class_name(self) -> str:
        """Dotted name of the network that is planned."""
        return self.backbone.network

    def architecture(self, architecture: dict) -> dict:
        """The backbone with the stages of nnU-Net's network, and this planner's upsampling and head."""
        return with_components(
            self.backbone.architecture(architecture),
            upsampling=self.upsampling,
            segmentation_head=self.segmentation_head,
        )

    # nnU-Net's is static, and called on the planner.
    def static_estimate_VRAM_usage(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Bytes of training with the smallest batch, which nnU-Net's search for a patch compares with the target.

        Raises:
            ValueError: if it exceeds the target where the patch is so small that it leaves 2 resolutions.
        """
        entry = {
            "network_class_name": arch_class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": list(arch_kwargs_req_import),
        }
        patch_size = self.network_patch_size(patch_size)
        peak = self._peak(self.backbone.for_patch(self.architecture(entry), patch_size), patch_size)
        if peak > self._target and arch_kwargs["n_stages"] < 3:
            raise ValueError(
                f"the GPU memory target of {self.UNet_vram_target_GB:g} GiB is too small: training on patches of "
                f"{' x '.join(str(int(size)) for size in patch_size)} with batch size {self.UNet_min_batch_size} takes "
                f"{peak / GIB:.2f} GiB already; raise the target"
            )
        return peak

    def get_plans_for_configuration(
        self,
        spacing: np.ndarray | tuple[float, ...] | list[float],
        median_shape: np.ndarray | tuple[int, ...],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        """nnU-Net's configuration with this planner's network, and the batch size that fits it."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        patch_size = plan["patch_size"] = self.network_patch_size(plan["patch_size"])
        plan["architecture"] = self.backbone.for_patch(self.architecture(plan["architecture"]), patch_size)
        # As nnU-Net: a batch covers 5 % of the dataset at most, but has two patches.
        limit = round(approximate_n_voxels_dataset * self.max_dataset_covered / math.prod(map(float, patch_size)))
        plan["batch_size"] = self._largest_batch_size(plan["architecture"], patch_size, limit)
        return plan

    def _largest_batch_size(self, architecture: dict, patch_size: Sequence[int], limit: int) -> int:
        smallest = self.UNet_min_batch_size
        if limit <= smallest:
            return smallest

        def peak(batch_size: int) -> int:
            return self.memory(architecture, patch_size, batch_size).peak

        # Nearly linear in the batch: a straight line comes close, one through where it ends closer, and so on.
        fits, too_large = smallest, limit + 1
        batch_size = 2 * smallest
        while too_large - fits > 1:
            per_image = (peak(batch_size) - peak(smallest)) / (batch_size - smallest)
            batch_size = smallest + int((self._target - peak(smallest)) / per_image)
            batch_size = max(min(batch_size, too_large - 1), fits + 1)
            if peak(batch_size) <= self._target:
                fits = batch_size
            else:
                too_large = batch_size
        return fits

    def save_plans(self, plans: dict) -> None:
        """See `PluginPlanner`; with patch and batch decided, this planner decides what is computed again."""
        for entry in plans["configurations"].values():
            if "architecture" in entry:
                entry["architecture"] = self._recomputing(**{key: entry[key] for key in _DECIDE_ON_MEMORY})
        super().save_plans(plans)

    def _recomputing(self, architecture: dict, patch_size: Sequence[int], batch_size: int) -> dict:
        if architecture["network_class_name"] != DECONVER:
            return architecture
        arch_kwargs = architecture["arch_kwargs"]
        if "recompute" in arch_kwargs:  # in a preset of one's own
            return architecture

        def of(recompute: str | list[bool]) -> dict:
            return architecture | {"arch_kwargs": arch_kwargs | {"recompute": recompute}}

        if self.recompute != "auto":
            return of(self.recompute)

        def memory(recompute: list[bool]) -> TrainingMemory:
            return self.memory(of(recompute), patch_size, batch_size)

        def flops(recompute: list[bool]) -> int:
            # Of one image: others have as many.
            return self.flops(of(recompute), patch_size, 1)

        stages = range(arch_kwargs["n_stages"])
        never = [False for _ in stages]
        if memory(never).peak <= self._target:
            return of(never)
        # By default everything is computed again, and that is counted already.
        always = self.memory(architecture, patch_size, batch_size)
        more = _kept_by_level(memory(never))
        more.subtract(_kept_by_level(always))
        fewest = flops(never)

        def saved_per_byte(stage: int) -> float:
            return (flops([other == stage for other in stages]) - fewest) / max(more[stage], 1)

        chosen, kept = [True for _ in stages], always.kept
        for stage in sorted(stages, key=saved_per_byte, reverse=True):
            tried = [again and other != stage for other, again in enumerate(chosen)]
            if kept + more[stage] <= self._target and memory(tried).peak <= self._target:
                chosen, kept = tried, kept + more[stage]
        return of(chosen)

    def network_patch_size(self, patch_size: Sequence[int]) -> Sequence[int]:
        """The patch that the network takes in place of the one nnU-Net found."""
        adaptation = self.backbone.adaptation
        return patch_size if adaptation is None else adaptation.patch_size(patch_size)

    @property
    def _target(self) -> float:
        return self.UNet_vram_target_GB * GIB

    def _peak(self, architecture: dict, patch_size: Sequence[int]) -> float:
        # Counting takes half a second, and a search passes hundreds of patches, most of them much too large. All but
        # the parameters grows with the number of voxels, closely where the stages stay the same, roughly where not.
        # What fits is always counted.
        stages, rank = str(architecture["arch_kwargs"]["strides"]), len(patch_size)
        voxels = math.prod(map(int, patch_size))
        for known, margin in ((stages, 1.1), (rank, 2)):
            if known in self._known:
                known_voxels, fixed, peak = self._known[known]
                scaled = fixed + (peak - fixed) * voxels / known_voxels
                if scaled > margin * self._target:
                    return scaled
        memory = self.memory(architecture, patch_size, self.UNet_min_batch_size)
        self._known[stages] = self._known[rank] = voxels, memory.parameters + memory.optimizer, memory.peak
        return memory.peak


def _kept_by_level(memory: TrainingMemory) -> Counter[int]:
    """What each resolution keeps for the backward pass, on the way down and up; heads and loss are left out."""
    by_level = Counter()
    for name, size in memory.kept_by.items():
        if (level := stage_level(name)) is not None:
            by_level[level] += size
    return by_level


def recomputed(architecture: dict) -> list[int]:
    """The stages of an architecture entry that compute again in the backward pass; 0 is the highest resolution."""
    if architecture["network_class_name"] != DECONVER:
        return []
    arch_kwargs = architecture["arch_kwargs"]
    stages = recomputed_stages(arch_kwargs.get("recompute", "always"), arch_kwargs["n_stages"])
    return [stage for stage, again in enumerate(stages) if again]


def make_planner(
    backbone: str,
    upsampling: dict | None = None,
    segmentation_head: dict | None = None,
    memory_target: float = MEMORY_TARGETS[""],
    recipe: str | None = None,
    recompute: str = "auto",
) -> type[MemoryPlanner]:
    """The planner of a combination.

    Args:
        backbone: key of `BACKBONES`.
        upsampling: entry of the axis, see `layers.components`.
        segmentation_head: likewise.
        memory_target: GiB.
        recipe: key of `RECIPES`; None for what the backbone is usually trained with.
        recompute: see `MemoryPlanner`.

    Returns:
        A class named nnUNetPlanner<combination>, whose plans are named nnUNet<combination>Plans.

    Raises:
        ValueError: if there is no such backbone or recipe, or an entry names no choice.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is unknown; known are {', '.join(BACKBONES)}")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; known are {', '.join(RECIPES)}")
    UPSAMPLINGS.check(upsampling)
    SEGMENTATION_HEADS.check(segmentation_head)
    chosen = BACKBONES[backbone]
    entries = ((UPSAMPLINGS, upsampling), (SEGMENTATION_HEADS, segmentation_head))
    labels = [components.label(entry) for components, entry in entries if entry is not None]
    # Plans of nnU-Net's network are named after what is changed in it, as its trainers are.
    combination = "".join(labels if labels and chosen.is_nnunets else [chosen.label, *labels])
    combination += _target_label(memory_target)
    what = " + ".join(["nnU-Net's own network" if chosen.is_nnunets else chosen.label, *labels])
    planner: Any = pydoc.locate(chosen.planner)
    return type(
        f"nnUNetPlanner{combination}",
        (MemoryPlanner, planner),
        {
            "__module__": __name__,
            "__doc__": f"{what}, sized for {memory_target:g} GiB.",
            "backbone": chosen,
            "upsampling": upsampling,
            "segmentation_head": segmentation_head,
            "memory_target": memory_target,
            "recipe": None if recipe is None else RECIPES.get(recipe),
            "recompute": recompute,
            "plans_name": f"nnUNet{combination}Plans",
        },
    )


def _target_label(memory_target: float) -> str:
    labels = {target: label for label, target in MEMORY_TARGETS.items()}
    return labels.get(memory_target, f"{memory_target:g}GB".replace(".", "p"))


_DTC, _NERDM, _NERDC, _NORM = ({"name": name} for name in ("dtc", "nerdm", "nerdc", "norm"))
_COMBINATIONS = (
    ("deconver", None, None),
    ("deconver", _DTC, None),
    ("deconver", None, _NERDC),
    ("deconver", _DTC, _NERDC),
    ("deconver", None, _NORM),
    ("plain", _DTC, None),
    ("plain", None, _NERDM),
    ("plain", None, _NERDC),
    ("residual", _DTC, None),
    ("residual", None, _NERDM),
    ("residual", None, _NERDC),
)
_PLANNERS = [make_planner(*axes, target) for axes in _COMBINATIONS for target in MEMORY_TARGETS.values()]
globals().update({planner.__name__: planner for planner in _PLANNERS})
__all__ = [planner.__name__ for planner in _PLANNERS]
