"""What another installed package adds to this one: a choice of every kind."""

import numpy as np
import torch
from torch import nn

from nnunet_deconver.metrics.definitions import Metric
from nnunet_deconver.metrics.measurements import MEASUREMENTS, Measurement
from nnunet_deconver.networks import (
    BACKBONES,
    RECIPES,
    SEGMENTATION_HEADS,
    UPSAMPLINGS,
    Backbone,
    Component,
    Deconver,
    Recipe,
)
from nnunet_deconver.networks.architecture import deconver_architecture


class Wide(Deconver):
    """Deconver with an MLP twice as wide."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, mlp_ratio=8, **kwargs)


def wide(entry):
    return deconver_architecture(entry) | {"network_class_name": "wide_package.Wide"}


class Nearest(nn.Sequential):
    """Copies voxels."""

    def __init__(self, in_channels, out_channels, stride):
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(stride)]
        super().__init__(nn.Upsample(scale_factor=tuple(stride)), convolution(in_channels, out_channels, 1))


class Twice(nn.Sequential):
    """Two classifiers."""

    def __init__(self, in_channels, num_classes, spatial_dims, *, hidden=8):
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        super().__init__(convolution(in_channels, hidden, 1), convolution(hidden, num_classes, 1))


def adam(parameters, learning_rate, decay):
    return torch.optim.Adam(parameters, learning_rate, weight_decay=decay)


def halved(epoch, num_epochs):
    return 0.5 ** (2 * epoch // num_epochs)


def centres(masks):
    """Distance between the centres of both masks."""
    if not (masks.reference.any() and masks.prediction.any()):
        return {"centre_distance": np.nan}
    centres = [np.argwhere(mask).mean(0) * masks.spacing for mask in (masks.reference, masks.prediction)]
    return {"centre_distance": float(np.linalg.norm(centres[1] - centres[0]))}


def define_centres(settings, rank):
    return {"centre_distance": Metric(settings.unit, 0, "between centres of mass", headline=True)}


BACKBONES["wide"] = Backbone("wide_package.Wide", "Wide", "Journal of Width", wide)
UPSAMPLINGS.choices["nearest"] = Component(Nearest, "Nearest", "Journal of Copies")
SEGMENTATION_HEADS.choices["twice"] = Component(Twice, "Twice", "Journal of Heads")
RECIPES["halving"] = Recipe("Halving", "Adam 1e-3, halved once.", "Journal of Halves", 1e-3, 1e-6, adam, halved)
MEASUREMENTS["centres"] = Measurement("Journal of Centres", centres, define_centres)
