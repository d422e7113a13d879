import pytest

from nnunet_deconver.submission.targets import TARGETS
from nnunet_deconver.submission.torch_builds import RELEASES, torch_build, torch_index

CASES = {
    "it is what is installed": ("2.15.0", "13.2", "13.2", ("2.15.0", "13.2")),
    "the installed release has wheels for it": ("2.15.0", "13.2", "13.0", ("2.15.0", "13.0")),
    "an older release has": ("2.15.0", "13.2", "12.6", ("2.14.1", "12.6")),
    "a release older by several has": ("2.14.0", "13.2", "12.8", ("2.11.0", "12.8")),
    "only newer releases have": ("2.5.1", "12.4", "12.6", ("2.6.0", "12.6")),
    "none is asked for": ("2.13.0", "12.6", None, ("2.13.0", "12.6")),
    "none is asked for, and torch is for CPUs": ("2.14.0", None, None, ("2.14.0", "13.2")),
    "torch is for CPUs": ("2.13.0", None, "12.6", ("2.13.0", "12.6")),
    "torch is newer than known": ("2.17.0", "13.4", "12.6", ("2.14.1", "12.6")),
    "torch and its CUDA are newer than known": ("2.17.0", "13.4", None, ("2.17.0", "13.4")),
    "torch is newer than known and for CPUs": ("2.17.0", None, None, ("2.15.0", "13.2")),
}


@pytest.mark.parametrize("why", CASES)
def test_the_release_is_the_nearest_with_wheels_because(why):
    installed, built_for, cuda, expected = CASES[why]
    assert torch_build(installed, built_for, cuda) == expected


def test_a_cuda_without_wheels_is_refused():
    with pytest.raises(
        ValueError, match=r"cuda must be one of 11\.8, .*13\.2, for which PyTorch has wheels; got '10\.2'"
    ):
        torch_build("2.15.0", "13.2", "10.2")


def test_the_index_is_pytorchs():
    assert torch_index("12.6") == "https://download.pytorch.org/whl/cu126"


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_built_for(target):
    cuda = TARGETS[target].cuda
    assert cuda is None or any(cuda in known for known in RELEASES.values())
