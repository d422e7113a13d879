"""Segmentation heads of "NeRD: Neural Representation of Distribution for Medical Image Segmentation", section 2.

Zero padding and strided sampling make the distribution of features depend on where in the patch a voxel lies. Both
heads learn that dependence as a multilayer perceptron of the voxel's distances to the borders of the patch.

Deviations from the paper:

- three spatial axes (or one) beside its two; distances are to the borders of the patch, which in the paper is the whole
  cropped slice, and normalised by its extent;
- NeRDc has a bias per class by default, the weight of a constant feature, which depends on the position like the
  others: without it a voxel without features has no class, wherever it lies. `bias=False` is section 2.2 as printed;
- NeRDm can be given a bias per class, to take over a trained classifier that has one. It has none by default, as in
  eq. (5): the classified shift does the same, but reaches every combination of class biases only where the classes'
  weights are linearly independent;
- the logits are returned, without the paper's sigmoid;
- both start as the plain classifier: the last layer of the perceptron, apart from its bias, starts at zero. That bias
  is the plain classifier in NeRDc. In NeRDm the perceptron gives 1/sigma - 1, so that weight decay leads to a scale of
  1. Neither sign nor size of 1/sigma is constrained, as in the paper;
- the perceptron's width and depth are not known to us: two hidden layers of 32 with nnU-Net's leaky ReLU.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_deconver.layers.common import CONVOLUTIONS, Convolution, voxels
from nnunet_deconver.ops.common import check_not_empty
from nnunet_deconver.ops.nerd import SLOPE
from nnunet_deconver.ops.nerd_chunked import nerd_classification, nerd_normalisation, position_code

if TYPE_CHECKING:
    from typing_extensions import Self


class _PositionHead(nn.Module):
    """A 1x1 classifier and a perceptron of the position, whose last layer starts at zero.

    The hidden layers' output, the position's code, is kept between forward passes in evaluation, for one patch size:
    it is what the whole map follows from by one matrix product (at 128^3, with 32 channels and 4 classes, 128 MiB in
    half precision instead of NeRDc's 0.5 GiB; with 105 classes instead of 13 GiB).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        map_channels: int,
        *,
        bias: bool,
        map_bias: bool,
        hidden_channels: int,
        hidden_layers: int,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.spatial_dims = spatial_dims
        # A convolution, so that every network draws it as it draws its plain heads.
        self.classifier = CONVOLUTIONS[spatial_dims](in_channels, num_classes, 1, bias=bias)
        hidden: list[nn.Module] = []
        for layer in range(hidden_layers):
            width = hidden_channels if layer else 2 * spatial_dims
            hidden += [nn.Linear(width, hidden_channels), nn.LeakyReLU(SLOPE)]
        self.mlp = nn.Sequential(*hidden, nn.Linear(hidden_channels, map_channels, bias=map_bias))
        self._kept: tuple[tuple[torch.Size, torch.dtype, torch.device], Tensor, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Makes the head the plain classifier; that and the hidden layers keep what was drawn for them."""
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def start_as(self, plain: Convolution) -> None:
        """Makes the head a 1x1 convolution, exactly; see `load_plain_head`."""
        self.load_plain_head(plain.weight, plain.bias)

    def load_plain_head(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Makes the head the 1x1 convolution with this weight and bias, exactly.

        Args:
            weight: (K, C, 1, ...), the kernel's axes as many as the head's.
            bias: (K,), or None for none.

        Raises:
            ValueError: if shapes do not fit, or there is a bias and the head was built without; nothing is changed.
        """
        expected = tuple(self.classifier.weight.shape)
        if tuple(weight.shape) != expected:
            raise ValueError(f"weight must have shape {expected}, got {tuple(weight.shape)}")
        if bias is not None and tuple(bias.shape) != expected[:1]:
            raise ValueError(f"bias must have shape {expected[:1]}, got {tuple(bias.shape)}")
        if self.classifier.bias is None and bias is not None and bias.any():
            raise ValueError(f"this {type(self).__name__} has no class bias to take over; build it with bias=True")
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            if self.classifier.bias is not None:
                self.classifier.bias.copy_(torch.zeros(expected[0]) if bias is None else bias)
        _PositionHead.reset_parameters(self)

    def _prepared(self, x: Tensor) -> Tensor:
        """The input, checked, in the dtype that autocast would give a convolution."""
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} was built for (B, {self.in_channels}, *S) with {self.spatial_dims} spatial "
                f"axes, got {tuple(x.shape)}"
            )
        check_not_empty(x)
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        return x

    def _hidden_layers(self) -> list[Tensor]:
        return [parameter for layer in list(self.mlp)[:-1] for parameter in layer.parameters()]

    def _code(self, x: Tensor) -> Tensor | None:
        """The code of the positions of x where it is kept; None where it is made chunk by chunk.

        It is good as long as the numbers it was made from are the same. PyTorch's count of writes to a parameter does
        not tell: fused optimizers and writes through `.data` escape it. So the numbers are compared, some thousand.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        layers = self._hidden_layers()
        numbers = torch.cat([parameter.flatten() for parameter in layers])
        if type(numbers) is not Tensor or numbers.is_meta:
            return None  # fake tensors and the like: there is nothing to compare, and they must not outlive their mode
        case = (x.shape[2:], x.dtype, x.device)
        if self._kept is not None:
            kept_case, kept_numbers, code = self._kept
            if kept_case == case and torch.equal(kept_numbers, numbers):
                return code
        code = position_code(x.shape[2:], layers, dtype=x.dtype, device=x.device)
        self._kept = (case, numbers, code)
        return code

    def train(self, mode: bool = True) -> "Self":
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "Self":
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.num_classes}, spatial_dims={self.spatial_dims}"


class NeRDm(_PositionHead):
    """Normalises the features of a voxel by mean and deviation at its position, then classifies them.

    `s = w . (x * 1/sigma - mu/sigma)`, eq. (5), where a perceptron of the distances to the patch's borders
    gives `1/sigma` and `-mu/sigma` of every channel. Starts with scale 1 and shift 0 everywhere.

    Args:
        in_channels: channels of the features, C.
        num_classes: channels of the logits, K.
        spatial_dims: spatial axes, 1 to 3; the perceptron sees twice as many distances.
        bias: add a constant bias per class.
        hidden_channels: width of the perceptron's hidden layers.
        hidden_layers: number of them.

    Raises:
        ValueError: for numbers that are not positive, or another number of axes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        *,
        bias: bool = False,
        hidden_channels: int = 32,
        hidden_layers: int = 2,
    ) -> None:
        _check_arguments(in_channels, num_classes, spatial_dims, hidden_channels, hidden_layers)
        super().__init__(
            in_channels,
            num_classes,
            spatial_dims,
            2 * in_channels,
            bias=bias,
            map_bias=True,
            hidden_channels=hidden_channels,
            hidden_layers=hidden_layers,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, *S) to logits (B, K, *S).

        Raises:
            ValueError: if x has other channels or spatial axes than the head, or no voxels.
        """
        x = self._prepared(x)
        weight, bias = self.mlp[-1].parameters()
        scale, shift = bias.chunk(2)
        constant = torch.cat((scale + 1, shift))
        return self.classifier(nerd_normalisation(x, self._hidden_layers(), weight, constant, code=self._code(x)))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of the normalised features and the logits for one image of `input_size` voxels.

        What belongs to positions is made in chunks, for all images at once, and not kept; it is not counted.

        Raises:
            ValueError: if `input_size` has not one entry per spatial axis.
        """
        return np.int64(self.in_channels + self.num_classes) * voxels(input_size, self.spatial_dims)


class NeRDc(_PositionHead):
    """Classifies the features of a voxel by weights that depend on its position.

    `s = x . w_v`, section 2.2, where a perceptron of the distances to the patch's borders gives `w_v`. Starts with
    the same weights everywhere.

    Args:
        in_channels: channels of the features, C.
        num_classes: channels of the logits, K.
        spatial_dims: spatial axes, 1 to 3; the perceptron sees twice as many distances.
        bias: add a bias per class, which depends on the position too.
        hidden_channels: width of the perceptron's hidden layers.
        hidden_layers: number of them.

    Raises:
        ValueError: for numbers that are not positive, or another number of axes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        *,
        bias: bool = True,
        hidden_channels: int = 32,
        hidden_layers: int = 2,
    ) -> None:
        _check_arguments(in_channels, num_classes, spatial_dims, hidden_channels, hidden_layers)
        super().__init__(
            in_channels,
            num_classes,
            spatial_dims,
            num_classes * (in_channels + bool(bias)),
            bias=bias,
            map_bias=False,  # the classifier is the bias
            hidden_channels=hidden_channels,
            hidden_layers=hidden_layers,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, *S) to logits (B, K, *S).

        Raises:
            ValueError: if x has other channels or spatial axes than the head, or no voxels.
        """
        x = self._prepared(x)
        (weight,) = self.mlp[-1].parameters()
        constant = torch.cat([parameter.flatten() for parameter in self.classifier.parameters()])
        return nerd_classification(x, self._hidden_layers(), weight, constant, self.num_classes, code=self._code(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of the logits for one image of `input_size` voxels.

        What belongs to positions is made in chunks, for all images at once, and not kept; it is not counted.

        Raises:
            ValueError: if `input_size` has not one entry per spatial axis.
        """
        return np.int64(self.num_classes) * voxels(input_size, self.spatial_dims)


def _check_arguments(
    in_channels: int, num_classes: int, spatial_dims: int, hidden_channels: int, hidden_layers: int
) -> None:
    if spatial_dims not in CONVOLUTIONS:
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims!r}")
    for name, value in (
        ("in_channels", in_channels),
        ("num_classes", num_classes),
        ("hidden_channels", hidden_channels),
        ("hidden_layers", hidden_layers),
    ):
        if int(value) != value or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
