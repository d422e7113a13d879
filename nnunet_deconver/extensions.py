"""What other installed packages add: backbones, upsamplings, heads, recipes, metrics.

A package names a module in its pyproject.toml,

    [project.entry-points.nnunet_deconver]
    mine = "my_package.my_module"

and the module adds its choices to `networks.backbones.BACKBONES`, `recipes.RECIPES`,
`metrics.measurements.MEASUREMENTS`, or to the `choices` of `layers.components.UPSAMPLINGS` and `SEGMENTATION_HEADS`.
It is imported with the networks, so that nnU-Net's own commands build from plans what it adds, and with the metrics.
"""

import warnings
from importlib.metadata import entry_points

GROUP = "nnunet_deconver"


def load_extensions() -> None:
    """Imports the modules that installed packages name; one that cannot be imported is told and left out."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # somebody else's code: any
            warnings.warn(f"{entry.name} ({entry.value}) cannot be imported, and adds nothing: {error}", stacklevel=2)
