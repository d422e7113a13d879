import pytest
import torch
from torch import nn

from nnunet_deconver.ops import recompute
from nnunet_deconver.ops.recompute import checkpointed, in_slabs


class Kept:
    """Bytes that autograd keeps while this is entered, each storage once."""

    def __enter__(self):
        self._storages = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)

    def _pack(self, tensor):
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def nbytes(self):
        return sum(self._storages.values())


def network(rank: int, kernel: int, seed: int = 0) -> nn.Module:
    """Two convolutions: what lies kernel // 2 away twice still counts."""
    torch.manual_seed(seed)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    layers = [convolution(3, 6, kernel, padding="same"), nn.Tanh(), convolution(6, 3, kernel, padding="same")]
    return nn.Sequential(*layers).double()


def gradients(function, x, parameters):
    x = x.detach().requires_grad_()
    out = function(x)
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *parameters])]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("elements", [1, 400, 1000, 3000])
@pytest.mark.parametrize("shape", [(3, 3, 23), (3, 3, 11, 6), (2, 3, 13, 4, 5), (5, 3, 1, 2, 3)])
def test_slabs_compute_what_the_whole_image_does(monkeypatch, shape, elements, kernel):
    monkeypatch.setattr(recompute, "SLAB_ELEMENTS", elements)
    function = network(len(shape) - 2, kernel)
    parameters = tuple(function.parameters())
    x = torch.randn(shape, dtype=torch.float64)
    calls = []

    def in_parts(x):
        def counted(slab):
            calls.append(slab.shape)
            return function(slab)

        return in_slabs(counted, x, parameters, halo=2 * (kernel // 2), expansion=2)

    expected = gradients(function, x, parameters)
    for found, wanted in zip(gradients(in_parts, x, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    # Once forward and, of more than one slab, once more backward.
    whole = x.numel() * 2 <= elements
    assert len(calls) == 1 if whole else len(calls) >= 4 and len(calls) % 2 == 0


def test_slabs_are_as_large_as_they_may_be(monkeypatch):
    monkeypatch.setattr(recompute, "SLAB_ELEMENTS", 1000)
    for shape, halo in (((4, 2, 5, 10), 0), ((2, 2, 40, 5), 3), ((1, 1, 50, 10), 1)):
        slabs = list(recompute._slabs(shape, halo, 2))
        assert sum(len(range(*i.indices(shape[0]))) * len(range(*s.indices(shape[2]))[n]) for i, s, n in slabs) == (
            shape[0] * shape[2]
        )
        sizes = [
            len(range(*i.indices(shape[0]))) * len(range(*s.indices(shape[2]))) * shape[1] * shape[3] * 2
            for i, s, _ in slabs
        ]
        assert max(sizes) <= 1000
        assert max(sizes) > 500


def test_only_what_is_trained_gets_a_gradient(monkeypatch):
    monkeypatch.setattr(recompute, "SLAB_ELEMENTS", 100)
    function = network(2, 3)
    function[0].requires_grad_(False)
    parameters = tuple(function.parameters())
    x = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    in_slabs(function, x, parameters, halo=2, expansion=2).sum().backward()
    assert function[0].weight.grad is None
    found = function[2].weight.grad.clone()
    function.zero_grad()
    function(x).sum().backward()
    torch.testing.assert_close(found, function[2].weight.grad)


def test_slabs_keep_autocast_for_backward(monkeypatch):
    monkeypatch.setattr(recompute, "SLAB_ELEMENTS", 200)
    function = network(2, 1).float()
    seen = []

    def watched(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return function(x)

    x = torch.randn(2, 3, 9, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = in_slabs(watched, x, tuple(function.parameters()), expansion=2)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert len(seen) > 2
    assert all(seen)
    assert x.grad.dtype == torch.float32


def test_slabs_have_no_second_derivative(monkeypatch):
    monkeypatch.setattr(recompute, "SLAB_ELEMENTS", 100)
    x = torch.randn(2, 3, 9, 4, dtype=torch.float64, requires_grad=True)
    function = network(2, 1)
    (gradient,) = torch.autograd.grad(in_slabs(function, x, (), expansion=2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("large", [False, True])
def test_checkpointing_keeps_the_input_alone(monkeypatch, large):
    monkeypatch.setattr(recompute, "LARGE_IMAGE", 1 if large else 10**9)
    function = network(3, 3)
    x = torch.randn(2, 3, 6, 5, 4, dtype=torch.float64)
    expected = gradients(function, x, tuple(function.parameters()))
    found = gradients(lambda x: checkpointed(function, x), x, tuple(function.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with Kept() as kept:
        checkpointed(function, x.requires_grad_())
    assert kept.nbytes == x.nbytes


def test_large_images_are_checkpointed_one_by_one(monkeypatch):
    x = torch.randn(3, 2, 4, requires_grad=True)
    shapes = []

    def watched(x):
        shapes.append(tuple(x.shape))
        return x.exp()

    monkeypatch.setattr(recompute, "LARGE_IMAGE", 9)
    checkpointed(watched, x)
    assert shapes == [(3, 2, 4)]
    shapes.clear()
    monkeypatch.setattr(recompute, "LARGE_IMAGE", 8)
    with torch.no_grad():
        torch.testing.assert_close(checkpointed(watched, x), x.exp())
    assert shapes == [(1, 2, 4)] * 3


def test_no_graph_no_checkpoint(monkeypatch):
    monkeypatch.setattr(recompute, "checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    with torch.no_grad():
        checkpointed(torch.exp, torch.ones(2))
