"""Networks that nnU-Net builds from a plans file."""

from nnunet_deconver.extensions import load_extensions
from nnunet_deconver.networks.backbones import BACKBONES, Backbone
from nnunet_deconver.networks.components import SEGMENTATION_HEADS, UPSAMPLINGS, Component
from nnunet_deconver.networks.deconver import Deconver
from nnunet_deconver.networks.unet import PlainConvUNet, ResidualEncoderUNet

__all__ = [
    "BACKBONES",
    "SEGMENTATION_HEADS",
    "UPSAMPLINGS",
    "Backbone",
    "Component",
    "Deconver",
    "PlainConvUNet",
    "ResidualEncoderUNet",
]

load_extensions()
