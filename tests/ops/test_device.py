import pytest
import torch

from nnunet_deconver.ops import assume_device, device_type


def test_the_device_of_a_tensor():
    assert device_type(torch.empty(0)) == "cpu"
    assert device_type(torch.empty(0, device="meta")) == "meta"


def test_an_assumed_device_ends_with_its_context():
    tensor = torch.empty(0)
    with assume_device("cuda"):
        assert device_type(tensor) == "cuda"
        with pytest.raises(KeyError), assume_device("xpu"):
            assert device_type(tensor) == "xpu"
            raise KeyError
        assert device_type(tensor) == "cuda"
    assert device_type(tensor) == "cpu"
