"""Networks that nnU-Net builds from a plans file."""

from nnunet_deconver.extensions import load_extensions
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS, Component
from nnunet_deconver.networks.adapted import Adapted
from nnunet_deconver.networks.backbones import BACKBONES, Backbone
from nnunet_deconver.networks.deconver import Deconver
from nnunet_deconver.networks.mednext import MedNeXt
from nnunet_deconver.networks.unet import PlainConvUNet, ResidualEncoderUNet
from nnunet_deconver.recipes import RECIPES, Recipe

__all__ = [
    "BACKBONES",
    "RECIPES",
    "SEGMENTATION_HEADS",
    "UPSAMPLINGS",
    "Adapted",
    "Backbone",
    "Component",
    "Deconver",
    "MedNeXt",
    "PlainConvUNet",
    "Recipe",
    "ResidualEncoderUNet",
]

load_extensions()
