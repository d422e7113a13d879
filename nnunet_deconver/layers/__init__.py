"""The layers of the papers."""

from nnunet_deconver.layers.deconver_block import DeconverBlock, DeconvMixer
from nnunet_deconver.layers.nonnegative_deconvolution import NonnegativeDeconvolution

__all__ = ["DeconvMixer", "DeconverBlock", "NonnegativeDeconvolution"]
