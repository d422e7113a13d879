"""Deconver, deformable transposed convolution and NeRD heads for nnU-Net v2."""

from importlib.metadata import version

__version__ = version("nnunet-deconver")
