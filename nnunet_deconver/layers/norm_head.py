"""A segmentation head with a norm of its own, for networks whose features have none at their end.

Deconver's features are a sum over residual blocks that nothing normalises before the classifier, as its paper has it;
every block of nnU-Net's network ends with an instance norm.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from nnunet_deconver.layers.common import CONVOLUTIONS, voxels
from nnunet_deconver.layers.instance_norm import InstanceNorm


class NormHead(nn.Module):
    """Instance norm with a scale and a shift per channel, then the plain classifier.

    Args:
        in_channels: channels of the features, C.
        num_classes: channels of the logits, K.
        spatial_dims: spatial axes, 1 to 3.

    Raises:
        ValueError: for another number of axes.
    """

    def __init__(self, in_channels: int, num_classes: int, spatial_dims: int) -> None:
        super().__init__()
        if spatial_dims not in CONVOLUTIONS:
            raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims!r}")
        self.norm = InstanceNorm(in_channels)
        self.classifier = CONVOLUTIONS[spatial_dims](in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, *S) to logits (B, K, *S)."""
        return self.classifier(self.norm(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of the normalised features and the logits for one image of `input_size` voxels.

        Raises:
            ValueError: if `input_size` has not one entry per spatial axis.
        """
        channels = self.classifier.in_channels + self.classifier.out_channels
        return np.int64(channels) * voxels(input_size, len(self.classifier.kernel_size))
