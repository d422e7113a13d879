"""Architecture entries as nnU-Net plans them, small."""

import pytest

from nnunet_deconver.networks.backbones import BACKBONES, with_components

NNUNET = "dynamic_network_architectures.architectures.unet."


def _architecture(backbone: str, rank: int, *, features=(16, 32, 64), anisotropic=False, **axes) -> dict:
    blocks = "n_blocks_per_stage" if backbone == "residual" else "n_conv_per_stage"
    arch_kwargs = {
        "n_stages": len(features),
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
        "kernel_sizes": [[3] * rank for _ in features],
        "strides": [[1] * rank] + [[2] * rank for _ in features[1:]],
        blocks: [2] * len(features),
        "n_conv_per_stage_decoder": [1] * (len(features) - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    if anisotropic:
        arch_kwargs["kernel_sizes"][0] = [1] + [3] * (rank - 1)
        arch_kwargs["strides"][1] = [1] + [2] * (rank - 1)
    entry = {
        "network_class_name": NNUNET + ("ResidualEncoderUNet" if backbone == "residual" else "PlainConvUNet"),
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    own = BACKBONES[backbone].architecture(entry) if backbone in ("deconver", "mednext") else entry
    return with_components(own, **axes)


@pytest.fixture(scope="session")
def architecture():
    """Makes the architecture entry of a backbone ("plain", "residual", "deconver", "mednext") with axes."""
    return _architecture
