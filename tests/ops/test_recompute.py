import pytest
import torch
from torch import nn

from nnunet_deconver.ops import recompute
from nnunet_deconver.ops.recompute import checkpointed, in_chunks, in_groups


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


def layers(seed: int = 0) -> nn.Module:
    """Of rows."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("elements", [1, 12, 40, 66, 10**6])
def test_chunks_compute_what_all_rows_do(monkeypatch, elements):
    monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", elements)
    function = layers()
    parameters = tuple(function.parameters())
    x = torch.randn(11, 3, dtype=torch.float64)
    rows = []

    def in_parts(x):
        def counted(chunk):
            rows.append(len(chunk))
            return function(chunk)

        return in_chunks(counted, x, parameters, expansion=2)

    expected = gradients(function, x, parameters)
    for found, wanted in zip(gradients(in_parts, x, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    # As many as fit. Once forward and, of more than one chunk, once more backward.
    most = max(elements // 6, 1)
    assert max(rows) == min(most, 11)
    assert len(rows) == (1 if most >= 11 else 2 * -(-11 // most))


def test_no_rows():
    function = layers()
    out, x_gradient, *_ = gradients(
        lambda x: in_chunks(function, x, tuple(function.parameters())), torch.empty(0, 3).double(), ()
    )
    assert out.shape == (0, 4)
    assert x_gradient.shape == (0, 3)


def test_only_what_is_trained_gets_a_gradient(monkeypatch):
    monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", 12)
    function = layers()
    function[0].requires_grad_(False)
    x = torch.randn(9, 3, dtype=torch.float64)
    in_chunks(function, x, tuple(function.parameters()), expansion=2).sum().backward()
    assert function[0].weight.grad is None
    found = function[2].weight.grad.clone()
    function.zero_grad()
    function(x).sum().backward()
    torch.testing.assert_close(found, function[2].weight.grad)


def test_chunks_keep_autocast_for_backward(monkeypatch):
    monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", 12)
    function = layers().float()
    seen = []

    def watched(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return function(x)

    x = torch.randn(9, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = in_chunks(watched, x, tuple(function.parameters()), expansion=2)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert len(seen) > 2
    assert all(seen)
    assert x.grad.dtype == torch.float32


def test_chunks_have_no_second_derivative(monkeypatch):
    monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", 12)
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(in_chunks(layers(), x, (), expansion=2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_checkpointing_keeps_its_arguments_alone():
    function = network(3, 3)
    x = torch.randn(2, 3, 6, 5, 4, dtype=torch.float64)
    expected = gradients(function, x, tuple(function.parameters()))
    found = gradients(lambda x: checkpointed(function, x), x, tuple(function.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with Kept() as kept:
        checkpointed(lambda x, y: function(x * y), x.requires_grad_(), x.detach().exp())
    assert kept.nbytes == 2 * x.nbytes


def test_no_graph_no_checkpoint(monkeypatch):
    monkeypatch.setattr(recompute, "checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    with torch.no_grad():
        checkpointed(torch.exp, torch.ones(2))


# Images of 8 elements.
@pytest.mark.parametrize(
    ("elements", "share", "images", "groups", "parts"),
    [
        (24, 8, 3, [3], 1),  # one group
        (23, 8, 3, [2, 1], 1),
        (8, 8, 3, [1, 1, 1], 1),
        (7, 8, 3, [1, 1, 1], 2),  # large images
        (2, 8, 1, [1], 4),
        (1, 8, 1, [1], 8),
        (16, 8, 5, [2, 2, 1], 1),
        (1, 3, 11, [3, 3, 3, 2], 1),  # a share of the batch
        (1, 3, 2, [1, 1], 2),
        (1, 8, 0, [0], 1),
    ],
)
def test_no_more_than_a_bound_is_worked_off_at_a_time(monkeypatch, elements, share, images, groups, parts):
    monkeypatch.setattr(recompute, "GROUP_ELEMENTS", elements)
    monkeypatch.setattr(recompute, "GROUP_SHARE", share)
    x = torch.randn(images, 2, 4)
    seen = []

    def watched(x, number):
        seen.append((len(x), number))
        return x.exp()

    torch.testing.assert_close(in_groups(watched, x), x.exp())
    assert seen == [(images, parts) for images in groups]
