"""The layers of the papers."""

from nnunet_deconver.layers.deconver_block import DeconverBlock, DeconvMixer
from nnunet_deconver.layers.deformable_transposed_convolution import DeformableTransposedConvolution
from nnunet_deconver.layers.dysample import DySample, DySampleUpsampling
from nnunet_deconver.layers.larger_kernels import enlarge_kernels
from nnunet_deconver.layers.linear_upsampling import LinearUpsampling
from nnunet_deconver.layers.nerd import NeRDc, NeRDm
from nnunet_deconver.layers.nonnegative_deconvolution import NonnegativeDeconvolution
from nnunet_deconver.layers.norm_head import NormHead
from nnunet_deconver.layers.replacement import replace_segmentation_head, replace_transposed_convolutions

__all__ = [
    "DeconvMixer",
    "DeconverBlock",
    "DeformableTransposedConvolution",
    "DySample",
    "DySampleUpsampling",
    "LinearUpsampling",
    "NeRDc",
    "NeRDm",
    "NonnegativeDeconvolution",
    "NormHead",
    "enlarge_kernels",
    "replace_segmentation_head",
    "replace_transposed_convolutions",
]
