"""Instance normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_deconver.layers.common import at_least_float32
from nnunet_deconver.ops.cpu_kernels import is_real
from nnunet_deconver.ops.device import policy
from nnunet_deconver.ops.recompute import checkpointed


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
        if is_real(x) and x.dtype == at_least_float32(x[:0]).dtype and x.shape[2:].numel() > 1:
            return _ImageByImage.apply(x, weight, bias, self.eps)
        return _image_by_image(x, weight, bias, self.eps)

    def statistics(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What `of_part` needs to know of images that are there in parts, along any spatial axis.

        Nothing but the parts is kept for the backward pass.

        Args:
            parts: (B, C, *S) each, of which the spatial sizes may differ.

        Returns:
            Mean and variance over all voxels, (B, C, 1, ...), in float32 at least.
        """
        voxels = [part.shape[2:].numel() for part in parts]
        shares = [count / sum(voxels) for count in voxels]
        variances, means = zip(*(checkpointed(_variance_and_mean, part) for part in parts), strict=True)
        mean = torch.stack([share * mean for share, mean in zip(shares, means, strict=True)]).sum(0)
        variance = torch.stack(
            [
                share * (variance + (of_part - mean).square())
                for share, variance, of_part in zip(shares, variances, means, strict=True)
            ]
        ).sum(0)
        return mean, variance

    def of_part(self, part: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """What `forward` makes of a part of images.

        Args:
            part: (B, C, *S).
            mean: of the whole images, see `statistics`.
            variance: likewise.
        """
        out = (part - mean) * (variance + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            axes = [1] * (part.ndim - 2)
            out = out * self.weight.view(-1, *axes) + self.bias.view(-1, *axes)
        return out.to(part.dtype)

    def extra_repr(self) -> str:  # noqa: D102
        return "" if self.channels is None else str(self.channels)


def _image_by_image(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.cat([F.batch_norm(image, None, None, weight, bias, training=True, eps=eps) for image in x.split(1)])


class _ImageByImage(torch.autograd.Function):
    """`_image_by_image` without a copy of the results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        out, statistics = torch.empty_like(x), []
        for image, result in zip(x.split(1), out.split(1), strict=True):
            mean, scale = (image.new_empty(x.shape[1]) for _ in range(2))
            torch.ops.aten.native_batch_norm.out(
                image, weight, bias, None, None, True, 0, eps, out=result, save_mean=mean, save_invstd=scale
            )
            statistics += [mean, scale]
        ctx.save_for_backward(x, weight, bias, *statistics)
        ctx.eps = eps
        return out

    @staticmethod
    # PyTorch's takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, *statistics = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # second derivatives are asked for
            tensors = [tensor for tensor, needed in zip((x, weight, bias), wanted, strict=True) if needed]
            found = iter(
                torch.autograd.grad(_image_by_image(x, weight, bias, ctx.eps), tensors, gradient, create_graph=True)
            )
            return *(next(found) if needed else None for needed in wanted), None
        sums = [None if parameter is None else torch.zeros_like(parameter) for parameter in (weight, bias)]
        x_gradient = torch.empty_like(x)
        for i, (image, arrived) in enumerate(zip(x.split(1), gradient.split(1), strict=True)):
            of_image, *of_parameters = torch.ops.aten.native_batch_norm_backward(
                arrived, image, weight, None, None, *statistics[2 * i : 2 * i + 2], True, ctx.eps, list(wanted)
            )
            x_gradient[i : i + 1] = of_image
            for total, part in zip(sums, of_parameters, strict=True):
                if total is not None and part is not None:
                    total += part
        return x_gradient, *sums, None


def _variance_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.var_mean(at_least_float32(x), dim=tuple(range(2, x.ndim)), correction=0, keepdim=True)
