from nnunet_deconver.ops.nonnegative_deconvolution import triton_machine
from nnunet_deconver.submission import targets


def test_a_compiler_is_brought_for_the_gpus_that_the_kernels_run_on():
    """The command must not import PyTorch to show its help, so the number stands in two places."""
    assert targets.TRITON_CAPABILITY == triton_machine.MINIMUM_CAPABILITY
    assert {name: target.can_use_triton for name, target in targets.TARGETS.items()} == {
        "grand-challenge": True,
        "brats": True,
        "folder": True,
    }
