"""The mathematics of the papers as functions of tensors."""

from nnunet_deconver.ops.device import assume_device, device_type, fast_layout, policy
from nnunet_deconver.ops.nonnegative_deconvolution import (
    adjoint_filter,
    explain_backend,
    nonnegative_deconvolution,
    nonnegative_deconvolution_reference,
    same_convolution,
)

__all__ = [
    "adjoint_filter",
    "assume_device",
    "device_type",
    "explain_backend",
    "fast_layout",
    "nonnegative_deconvolution",
    "nonnegative_deconvolution_reference",
    "policy",
    "same_convolution",
]
