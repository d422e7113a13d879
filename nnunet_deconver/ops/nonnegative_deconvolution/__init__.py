"""Nonnegative deconvolution (NDC), arXiv 2504.00302, section 3.2.

`reference` is the equation, `mixed_precision` the same for half precision, `triton_update` the path on GPUs,
`cpu_update` that on CPUs, and `backends` what networks call, which chooses among them. `triton_machine` says whether a
machine can run the path on GPUs, and `triton_check` tries it there before its first use.
"""

from nnunet_deconver.ops.nonnegative_deconvolution.backends import explain_backend, nonnegative_deconvolution
from nnunet_deconver.ops.nonnegative_deconvolution.reference import (
    adjoint_filter,
    nonnegative_deconvolution_reference,
    same_convolution,
)

__all__ = [
    "adjoint_filter",
    "explain_backend",
    "nonnegative_deconvolution",
    "nonnegative_deconvolution_reference",
    "same_convolution",
]
