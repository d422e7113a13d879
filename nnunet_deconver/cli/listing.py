"""`nnunet-deconver list`: trainers, planners, presets, and what they are made of, by name."""

import argparse
from itertools import groupby
from typing import TYPE_CHECKING

from nnunet_deconver.integration.installation import require_nnunetv2

if TYPE_CHECKING:
    from nnunet_deconver.layers.components import Components

SECTIONS = ("trainers", "planners", "presets", "backbones", "upsamplings", "heads", "recipes", "metrics")


def source(name: str) -> str:
    """Where what the name of a trainer or planner stands for is published."""
    from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
    from nnunet_deconver.networks.backbones import BACKBONES
    from nnunet_deconver.recipes import RECIPES

    name = name.removeprefix("nnUNetTrainer").removeprefix("nnUNetPlanner")
    sources = {backbone.label: backbone.source for backbone in BACKBONES.values() if backbone.source != "nnU-Net"}
    sources |= {
        component.label: component.source
        for components in (UPSAMPLINGS, SEGMENTATION_HEADS)
        for component in components.choices.values()
    }
    labels = [label for label in sources if label in name]
    # A longer label may hold a shorter one, as SwinUNETR does.
    found = [sources[label] for label in labels if not any(label in other and label != other for other in labels)]
    found += [recipe.source for recipe in RECIPES.values() if f"{name}_".startswith(f"_{recipe.label}_")]
    return ", ".join(dict.fromkeys(found)) or "nnU-Net"


def summary_of(documented: object) -> str:
    """The first line of a docstring, such as a class's."""
    return (documented.__doc__ or "").strip().partition("\n")[0]


def trainer_lines(trainers: list[type]) -> list[str]:
    """Describes trainers, a line each, in paragraphs of those that have the same epoch variants.

    Args:
        trainers: trainer classes; variants carry `is_epoch_variant` and derive from their trainer first.
    """
    suffixes = {}
    for trainer in trainers:
        if getattr(trainer, "is_epoch_variant", False):
            base = trainer.__bases__[0]
            suffixes.setdefault(base, []).append(trainer.__name__.removeprefix(base.__name__))
        else:
            suffixes.setdefault(trainer, [])
    width = max((len(trainer.__name__) for trainer in suffixes), default=0)
    lines = []
    # "each" in the last line of a paragraph would be wrong for a neighbour without variants: hence paragraphs.
    for variants, family in groupby(suffixes, key=suffixes.get):
        if lines:
            lines.append("")
        for trainer in family:
            lines.append(f"{trainer.__name__:<{width}}  {summary_of(trainer)} [{source(trainer.__name__)}]")
        if variants:
            lines.append(f"    each also with {' '.join(variants)}")
    return lines


def planner_lines(planners: list[type]) -> list[str]:
    """Describes planners, a line each; the memory targets of one combination share it."""
    from nnunet_deconver.plans.planners import MEMORY_TARGETS

    names = {planner.__name__ for planner in planners}
    further = [label for label in MEMORY_TARGETS if label]
    bases = [
        planner
        for planner in planners
        if not any(
            planner.__name__.endswith(label) and planner.__name__.removesuffix(label) in names for label in further
        )
    ]
    targets = ", ".join(f"{label} for {MEMORY_TARGETS[label]} GiB" for label in further)
    lines = choice_lines({each.__name__: (summary_of(each), source(each.__name__)) for each in bases})
    return [*lines, f"    each also with {targets}"]


def choice_lines(choices: dict[str, tuple[str, str]]) -> list[str]:
    """A line for each name: name, summary, source."""
    width = max(map(len, choices))
    return [f"{name:<{width}}  {summary} [{source}]" for name, (summary, source) in choices.items()]


def component_lines(components: "Components") -> list[str]:
    """Describes upsamplings or heads, the backbone's own first."""
    own = {components.default: ("The backbone's own.", "nnU-Net")}
    return choice_lines(
        own | {name: (summary_of(choice.module), choice.source) for name, choice in components.choices.items()}
    )


def backbone_lines() -> list[str]:
    """Describes the backbones."""
    from pydoc import locate

    from nnunet_deconver.networks.backbones import BACKBONES

    return choice_lines(
        {
            # Adapted ones are named, not imported: their packages need not be installed, and take seconds.
            name: (
                summary_of(locate(each.network)) if each.adaptation is None else each.adaptation.network,
                each.source,
            )
            for name, each in BACKBONES.items()
        }
    )


def recipe_lines() -> list[str]:
    """Describes the recipes."""
    from nnunet_deconver.networks import RECIPES

    return choice_lines({name: (each.description, each.source) for name, each in RECIPES.items()})


def metric_lines() -> list[str]:
    """Names what is measured together, a line each."""
    from nnunet_deconver.metrics.definitions import Settings
    from nnunet_deconver.metrics.measurements import MEASUREMENTS

    everything = Settings(far=(5.0,), lesions=True, panoptic=0.5, probabilities=True, brats="GLI")
    return choice_lines(
        {name: (", ".join(each.define(everything, 3)), each.source) for name, each in MEASUREMENTS.items()}
    )


def preset_lines() -> list[str]:
    """Describes the presets, a line each."""
    from nnunet_deconver.plans.presets import load_preset, preset_names

    presets = [load_preset(name) for name in preset_names()]
    width = max(len(preset.name) for preset in presets)
    # What the network is, `plan --preset` says.
    return [f"{p.name:<{width}}  {p.dimension}D  {p.title} [{p.source['network'].partition(':')[0]}]" for p in presets]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `list`."""
    parser = subparsers.add_parser(
        "list",
        help="list trainers, planners, presets, backbones, upsamplings, heads, recipes and metrics",
        description="Lists what this package adds, a line each with where it is published: trainers "
        "(nnUNetv2_train -tr), planners (nnUNetv2_plan_experiment -pl, once registered), presets, backbones, "
        "upsamplings, heads and recipes (nnunet-deconver plan), metrics (nnunet-deconver evaluate).",
    )
    parser.add_argument("what", nargs="?", choices=SECTIONS, help="one of these alone")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the lists."""
    require_nnunetv2()
    for i, section in enumerate([args.what] if args.what else SECTIONS):
        if args.what is None:
            print(f"{chr(10) if i else ''}{section.upper()}\n")
        print("\n".join(section_lines(section)))


def section_lines(section: str) -> list[str]:
    """The lines of one of `SECTIONS`."""
    from nnunet_deconver import plans, trainers
    from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
    from nnunet_deconver.trainers.options import GRAMMAR

    if section == "trainers":
        lines = trainer_lines([getattr(trainers, name) for name in trainers.__all__])
        return [*lines, "", f"any length, a seed, for any trainer that nnU-Net finds: {GRAMMAR}"]
    if section == "planners":
        return planner_lines([getattr(plans, name) for name in plans.__all__])
    if section == "presets":
        return preset_lines()
    if section == "backbones":
        return backbone_lines()
    if section == "recipes":
        return recipe_lines()
    if section == "metrics":
        return metric_lines()
    return component_lines(UPSAMPLINGS if section == "upsamplings" else SEGMENTATION_HEADS)
