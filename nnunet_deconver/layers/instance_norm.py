"""Instance normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_deconver.ops.device import policy


class InstanceNorm(nn.Module):
    """PyTorch's instance normalisation for any number of spatial axes, fast on CPUs too.

    Args:
        channels: that get a scale and a shift each; None for no parameters.
        eps: added to the variance.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, channels: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        for name in ("weight", "bias"):
            self.register_parameter(name, None if channels is None else nn.Parameter(torch.empty(channels)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restores scale 1 and shift 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S): over S zero mean and unit variance, then scale and shift."""
        weight, bias = self.weight, self.bias
        if not len(x) and weight is not None and bias is not None:
            # PyTorch's own fails; as here, gradients of scale and shift are zero.
            return x * weight.sum() + bias.sum()
        if not policy(x).channels_last or not len(x):
            return F.instance_norm(x, None, None, weight, bias, eps=self.eps)
        # PyTorch's own brings channels that lie side by side into another order; batches of one image stay as they are.
        images = [F.batch_norm(image, None, None, weight, bias, training=True, eps=self.eps) for image in x.split(1)]
        return torch.cat(images)

    def extra_repr(self) -> str:  # noqa: D102
        return "" if self.channels is None else str(self.channels)
