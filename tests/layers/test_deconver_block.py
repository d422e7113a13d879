import pytest
import torch
import torch.nn.functional as F

from nnunet_deconver.layers import DeconverBlock, DeconvMixer


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
