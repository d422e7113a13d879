import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_deconver.layers import DeconverBlock, DeconvMixer
from nnunet_deconver.ops import assume_device, recompute


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_block_is_its_equations(rank):
    """Eq. (4) to (6), with the pieces called by hand."""
    torch.manual_seed(0)
    block = DeconverBlock(4, (3,) * rank).double()
    x = torch.randn(2, 4, *[5] * rank, dtype=torch.float64)
    mixer = block.mixer
    z = mixer.projection_out(mixer.ndc(mixer.projection_in(F.instance_norm(x)).relu())) + x
    hidden = F.gelu(block.mlp[0](F.instance_norm(z)))
    torch.testing.assert_close(block(x), block.mlp[2](hidden) + z)


def test_biases_and_norms_are_the_papers():
    block = DeconverBlock(8, (3, 3, 3))
    assert block.mixer.projection_in.bias is None
    assert block.mixer.projection_out.bias is not None
    assert block.mixer.ndc.source.bias is not None
    assert not list(block.norm_mixer.parameters()) and not list(block.norm_mlp.parameters())
    assert block.mlp[0].out_channels == 32


def test_the_mixer_rectifies_before_the_update():
    mixer = DeconvMixer(4, (3, 3))
    seen = []
    mixer.ndc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    mixer(torch.randn(1, 4, 6, 6))
    assert (seen[0] >= 0).all()


def test_bad_input():
    with pytest.raises(ValueError, match="mlp_ratio"):
        DeconverBlock(4, (3, 3), mlp_ratio=0)
    with pytest.raises(ValueError, match="odd"):
        DeconverBlock(4, (2, 2))


def in_parts(monkeypatch, elements):
    """From now on blocks work off so many elements at a time."""
    monkeypatch.setattr(recompute, "GROUP_ELEMENTS", elements)
    monkeypatch.setattr(recompute, "GROUP_SHARE", 10**9)


def results(block, x):
    x = x.detach().requires_grad_()
    out = block(x)
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *block.parameters()])]


@pytest.mark.parametrize("groups", [None, 3, 1])
@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_block_in_parts_is_the_whole_block(monkeypatch, rank, images, groups):
    torch.manual_seed(0)
    block = DeconverBlock(6, (3,) * rank, source_ratio=2, groups=groups).double()
    shape = (6, *(7, 5, 4)[:rank])
    x = torch.randn(images, *shape, dtype=torch.float64)
    with assume_device("elsewhere"):  # where no kernels of ours are, and memory is short
        in_parts(monkeypatch, 10**9)
        expected = results(block, x)
        # An image has 6 channels and 7 planes: parts of 1, 2 or 3 of them, of which the last may be smaller.
        for parts in (2, 3, 6):
            in_parts(monkeypatch, -(-math.prod(shape) // parts))
            for found, wanted in zip(results(block, x), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_a_block_in_parts_never_makes_the_whole_source(monkeypatch):
    block = DeconverBlock(8, (3, 3))
    sources, hidden = [], []
    block.mixer.ndc.register_forward_hook(lambda module, inputs, out: sources.append(out.shape))
    block.mlp[0].register_forward_hook(lambda module, inputs, out: hidden.append(out.shape))
    x = torch.randn(1, 8, 10, 6)
    in_parts(monkeypatch, x.numel() // 4)
    with assume_device("elsewhere"):
        block(x).sum().backward()
    # Forward, and once more backward.
    assert sources == [(1, 8, 10, 6)] * 8
    assert hidden == [(1, 32, planes, 6) for planes in (3, 3, 3, 1, 1, 3, 3, 3)]


def test_a_block_that_keeps_all_makes_all_at_once_and_once(monkeypatch):
    torch.manual_seed(0)
    block = DeconverBlock(8, (3, 3), recompute=False).double()
    whole = DeconverBlock(8, (3, 3)).double()
    whole.load_state_dict(block.state_dict())
    x = torch.randn(3, 8, 10, 6, dtype=torch.float64)
    in_parts(monkeypatch, x[0].numel() // 4)
    sources, hidden = [], []
    block.mixer.ndc.register_forward_hook(lambda module, inputs, out: sources.append(out.shape))
    block.mlp[0].register_forward_hook(lambda module, inputs, out: hidden.append(out.shape))
    with assume_device("elsewhere"):
        for found, expected in zip(results(block, x), results(whole, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert sources == hidden == [(3, 32, 10, 6)]


def test_a_block_in_parts_keeps_what_all_parts_need(monkeypatch):
    block = DeconverBlock(8, (3, 3))
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    in_parts(monkeypatch, x.numel() // 4)
    with assume_device("elsewhere"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    # Input, what is explained, sum between mixer and MLP; and means and variances.
    large = [storage for storage in kept.values() if storage.nbytes() == x.nbytes]
    assert len(large) == 3
    assert sum(storage.nbytes() for storage in kept.values()) < 3.1 * x.nbytes


def test_a_block_in_parts_under_autocast(monkeypatch):
    """It is as near to full precision as the whole block, twice as far at most."""
    torch.manual_seed(0)
    block = DeconverBlock(8, (3, 3))
    x = torch.randn(1, 8, 12, 12)
    exact = results(block, x)

    def distances(elements):
        in_parts(monkeypatch, elements)
        with assume_device("elsewhere"), torch.autocast("cpu", torch.bfloat16):
            return [(a - b).norm() for a, b in zip(results(block, x), exact, strict=True)]

    for found, allowed in zip(distances(x.numel() // 3), distances(x.numel()), strict=True):
        assert found < 2 * allowed


@pytest.mark.parametrize("elements", [10**9, 8 * 4 * 4 * 4, 200])
def test_a_block_compiles_whole_or_in_parts(monkeypatch, elements):
    torch.manual_seed(0)
    block = DeconverBlock(8, (3, 3, 3))
    x = torch.randn(2, 8, 4, 4, 4)
    in_parts(monkeypatch, elements)
    with assume_device("elsewhere"):
        expected = results(block, x)
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        found = results(compiled, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
