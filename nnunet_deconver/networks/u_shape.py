"""What the U-shaped networks of this package share: the way through their stages, and how nnU-Net counts them."""

from collections.abc import Sequence

import numpy as np
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from torch import Tensor, nn

from nnunet_deconver.layers.common import Convolution, ResetsParameters, voxels
from nnunet_deconver.networks.components import components_feature_map_size, replace_components, sizes_per_stage
from nnunet_deconver.networks.topology import check_input_size


class StagedEncoder(nn.Module):
    """Stem and encoder stages; returns the features of every stage, highest resolution first.

    Args:
        stem: what the first stage gets the image through.
        downsamplings: from each stage to the next.
        stages: blocks, or several in a row.
        strides: downsampling on entry of each stage.
        features: channels of each stage.
    """

    def __init__(
        self,
        stem: Convolution,
        downsamplings: nn.ModuleList,
        stages: nn.ModuleList,
        strides: Sequence[Sequence[int]],
        features: Sequence[int],
    ) -> None:
        super().__init__()
        self.strides = strides
        self.output_channels = features
        self.stem = stem
        self.downsamplings = downsamplings
        self.stages = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, input_channels, *S) to one (B, C, *s) per stage."""
        x = self.stages[0](self.begin(x))
        skips = [x]
        for downsample, stage in zip(self.downsamplings, self.stages[1:], strict=True):
            x = stage(downsample(x))
            skips.append(x)
        return skips

    def begin(self, x: Tensor) -> Tensor:
        """What the first stage gets of an image."""
        return self.stem(x)

    def compute_conv_feature_map_size(self, sizes: Sequence[Sequence[int]]) -> np.int64:
        """See `UShaped.compute_conv_feature_map_size`; `sizes` are those of the stages."""
        leading = [self.stem, *self.downsamplings]
        channels = [
            feature_channels(first) + feature_channels(stage) for first, stage in zip(leading, self.stages, strict=True)
        ]
        return _feature_map_size(channels, sizes)


class StagedDecoder(nn.Module):
    """Decoder stages, lowest resolution first, each with a segmentation head.

    Subclasses register their modules, as `transpconvs`, `stages` and `seg_layers` with an entry for each stage, and
    say how features join a skip.

    Args:
        features: channels of each stage of the encoder.
        num_classes: output channels.
        deep_supervision: whether all heads run, or the last alone.
    """

    transpconvs: nn.ModuleList
    stages: nn.ModuleList
    seg_layers: nn.ModuleList

    def __init__(self, features: Sequence[int], num_classes: int, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.features = features[:-1]
        self.num_classes = num_classes

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        """Maps the encoder's features to logits, see `UShaped.forward`."""
        x = skips[-1]
        outputs = []
        for i, skip in enumerate(reversed(skips[:-1])):
            x = self.stages[i](self.joined(i, self.transpconvs[i](x), skip))
            if self.deep_supervision or i == len(self.stages) - 1:
                outputs.append(self.seg_layers[i](x))
        return outputs[::-1] if self.deep_supervision else outputs[0]

    def joined(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """What stage i gets of upsampled features and the skip, (B, C, *S) each."""
        raise NotImplementedError

    def joining_channels(self, features: int) -> int:
        """Channels of the outputs of convolutions that join features with a skip of as many channels."""
        return 0

    def compute_conv_feature_map_size(self, sizes: Sequence[Sequence[int]]) -> np.int64:
        """See `UShaped.compute_conv_feature_map_size`; `sizes` are those of the stages."""
        # A plain upsampling and a plain head: what they are beyond that, the components say.
        channels = [
            features
            + self.joining_channels(features)
            + feature_channels(stage)
            + (self.num_classes if self.deep_supervision or level == 0 else 0)
            for level, (features, stage) in enumerate(zip(self.features, reversed(self.stages), strict=True))
        ]
        return _feature_map_size(channels, sizes[:-1]) + components_feature_map_size(
            self, sizes, self.features, self.num_classes
        )


class UShaped(AbstractDynamicNetworkArchitectures):
    """An encoder and a decoder, with what nnU-Net asks of a network.

    Args:
        encoder: see there.
        decoder: with its own upsamplings and heads.
        upsampling: entry of the axis, see `layers.components`; None for the decoder's own.
        segmentation_head: entry of the axis; None likewise.
    """

    def __init__(
        self, encoder: StagedEncoder, decoder: StagedDecoder, upsampling: dict | None, segmentation_head: dict | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        replace_components(self.decoder, upsampling, segmentation_head)
        # Where tools that transfer weights between networks of this family find their parts.
        self.key_to_encoder = "encoder.stages"
        self.key_to_stem = "encoder.stem"
        self.keys_to_in_proj = ("encoder.stem",)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Maps (B, input_channels, *S) to logits (B, num_classes, *S), or to a list of them, highest first.

        Raises:
            ValueError: if the strides do not divide S.
        """
        check_input_size(x.shape[2:], self.encoder.strides)
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image of `input_size` voxels, as nnU-Net counts them.

        What nnU-Net's planners size patches with. The convolutions inside an NDC update count like any other.

        Raises:
            ValueError: if `input_size` has not one entry per spatial axis, or the strides do not divide it.
        """
        check_input_size(input_size, self.encoder.strides)
        sizes = sizes_per_stage(input_size, self.encoder.strides)
        return self.encoder.compute_conv_feature_map_size(sizes) + self.decoder.compute_conv_feature_map_size(sizes)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Draws the parameters of `module` as the network is designed: each layer knows its own start.

        nnU-Net applies this to every module, children before parents; its usual He initialisation belongs to
        leaky ReLUs and would also overwrite what means something else.
        """
        if isinstance(module, ResetsParameters):
            module.reset_parameters()


def feature_channels(part: nn.Module) -> int:
    """Channels of all convolution outputs in a convolution, or in the blocks of a part, which say theirs."""
    if isinstance(part, Convolution):
        return part.out_channels
    counts = (getattr(block, "feature_channels", None) for block in part.modules())
    return sum(count() for count in counts if count is not None)


def _feature_map_size(channels: Sequence[int], sizes: Sequence[Sequence[int]]) -> np.int64:
    total = np.int64(0)
    for features, size in zip(channels, sizes, strict=True):
        total += features * voxels(size, len(size))
    return total
