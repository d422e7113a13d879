import pytest
import torch

from nnunet_deconver.ops.pointwise import pointwise, pointwise_weight_gradient


@pytest.mark.parametrize("rows", [0, 1, 2, 17])
def test_is_a_matrix_product(rows):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((rows, 5), (3, 5), (3,)))
    torch.testing.assert_close(pointwise(x, weight, bias), x @ weight.t() + bias)
    torch.testing.assert_close(pointwise(x, weight), x @ weight.t())
    weight.requires_grad_()
    out = pointwise(x, weight, bias)
    gradient = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, weight, gradient)
    torch.testing.assert_close(pointwise_weight_gradient(x, gradient), expected)
    torch.testing.assert_close(expected, gradient.t() @ x)
