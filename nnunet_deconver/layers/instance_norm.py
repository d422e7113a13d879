"""Instance normalisation without parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_deconver.ops.device import policy


class InstanceNorm(nn.Module):
    """PyTorch's instance normalisation for any number of spatial axes, fast on CPUs too.

    Args:
        eps: added to the variance.
    """

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S), zero mean and unit variance over S."""
        if not policy(x).channels_last or not len(x):
            return F.instance_norm(x, eps=self.eps)
        # PyTorch's own brings channels that lie side by side into another order; batches of one image stay as they are.
        return torch.cat([F.batch_norm(image, None, None, training=True, eps=self.eps) for image in x.split(1)])
