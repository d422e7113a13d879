"""Networks that nnU-Net builds from a plans file."""

from nnunet_deconver.networks.deconver import Deconver

__all__ = ["Deconver"]
