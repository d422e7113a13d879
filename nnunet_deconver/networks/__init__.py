"""Networks that nnU-Net builds from a plans file."""

from nnunet_deconver.networks.deconver import Deconver
from nnunet_deconver.networks.unet import PlainConvUNet, ResidualEncoderUNet

__all__ = ["Deconver", "PlainConvUNet", "ResidualEncoderUNet"]
