import numpy as np
import pytest
import torch
from torch import nn

from nnunet_deconver.layers import NormHead


@pytest.mark.parametrize(("rank", "norm"), [(2, nn.InstanceNorm2d), (3, nn.InstanceNorm3d)])
def test_is_an_affine_instance_norm_and_a_classifier(rank, norm):
    torch.manual_seed(0)
    head = NormHead(6, 3, rank).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    expected = norm(6, affine=True).double()
    expected.load_state_dict(head.norm.state_dict())
    x = 5 + 3 * torch.randn(2, 6, *(4, 5, 6)[:rank], dtype=torch.float64)
    torch.testing.assert_close(head(x), head.classifier(expected(x)))


def test_scale_and_shift_of_the_features_do_not_matter():
    """What it is for: a stream of features that has grown, or drifted, is classified as before."""
    torch.manual_seed(0)
    head, x = NormHead(4, 2, 3).double(), torch.randn(1, 4, 6, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(head(100 * x - 7), head(x), atol=1e-4, rtol=1e-4)


def test_planners_count_the_normalised_features_too():
    head = NormHead(6, 3, 2)
    assert head.compute_conv_feature_map_size([4, 5]) == np.int64(9 * 20)
    with pytest.raises(ValueError, match="must have 2 spatial axes, got 3"):
        head.compute_conv_feature_map_size([4, 5, 6])


def test_bad_rank():
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3, got 4"):
        NormHead(6, 3, 4)
