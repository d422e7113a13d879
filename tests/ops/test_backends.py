"""What computes the update is chosen in one place; a name, or the user's variable, chooses otherwise."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nnunet_deconver.layers import NonnegativeDeconvolution
from nnunet_deconver.networks import Deconver
from nnunet_deconver.ops import assume_device, cpu_kernels, explain_backend, nonnegative_deconvolution, policy
from nnunet_deconver.ops.nonnegative_deconvolution import backends, cpu_update

compiled = pytest.mark.skipif(not cpu_kernels.compiled_kernels(), reason="no C compiler when the package was installed")


def problem(channels=16):
    return torch.rand(1, channels, 6, 6), torch.rand(1, 2 * channels, 6, 6), torch.rand(channels, 2, 3, 3)


def test_every_device_has_a_policy_whose_backend_exists():
    tensor = torch.empty(0)
    for device in ("cpu", "cuda", "mps", "meta"):
        with assume_device(device):
            assert policy(tensor).backend in backends.BACKENDS
    assert policy(tensor).backend == "cpu"


@compiled
@pytest.mark.parametrize("named, expected", [(None, "cpu"), ("cpu", "cpu"), ("plain", "plain"), ("triton", "cpu")])
def test_the_variable_chooses_for_its_kind_of_device(monkeypatch, taken, named, expected):
    monkeypatch.setattr(backends, "_named", named)
    nonnegative_deconvolution(*problem(), groups=16)
    assert taken == [expected]


@compiled
def test_a_name_outdoes_the_variable(monkeypatch, taken):
    monkeypatch.setattr(backends, "_named", "plain")
    nonnegative_deconvolution(*problem(), groups=16, backend="cpu")
    assert taken == ["cpu"]


@compiled
def test_what_the_named_cannot_compute_takes_the_plain_path(monkeypatch, taken, caplog):
    monkeypatch.setattr(backends, "_named", "cpu")
    monkeypatch.setattr(backends, "_said", set())
    nonnegative_deconvolution(*problem(3), groups=3)
    assert taken == ["plain"]
    assert "3 is not a multiple" in caplog.text


def test_the_plain_path_that_was_asked_for_is_no_news(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_named", "plain")
    nonnegative_deconvolution(*problem(), groups=16)
    assert not caplog.records
    assert explain_backend("cpu") == ("plain", "NNUNET_DECONVER_BACKEND is plain")


def test_the_variable_is_read_from_the_environment():
    command = [sys.executable, "-c", "from nnunet_deconver.ops import explain_backend; print(explain_backend('cpu'))"]
    environment = os.environ | {"NNUNET_DECONVER_BACKEND": "plain"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "('plain', 'NNUNET_DECONVER_BACKEND is plain')\n"


def test_an_unknown_name_is_refused_everywhere(monkeypatch):
    message = "must be one of plain, cpu, triton or None, got 'cuda'"
    with pytest.raises(ValueError, match=f"backend {message}"):
        nonnegative_deconvolution(*problem(), groups=16, backend="cuda")
    with pytest.raises(ValueError, match=f"backend {message}"):
        NonnegativeDeconvolution(4, (3, 3), backend="cuda")
    with pytest.raises(ValueError, match=f"backend {message}"):
        Deconver(1, 2, (4, 8), nn.Conv2d, 3, (1, 2), 2, backend="cuda")
    monkeypatch.setattr(backends, "_named", "cuda")
    with pytest.raises(ValueError, match=f"the variable NNUNET_DECONVER_BACKEND {message}"):
        nonnegative_deconvolution(*problem(), groups=16)


@compiled
def test_the_cpu_is_explained(monkeypatch):
    assert explain_backend("cpu") == ("cpu", None)
    monkeypatch.setattr(cpu_kernels, "libraries", dict)
    path, why = explain_backend("cpu")
    assert path == "plain"
    assert "install a C compiler" in why


@pytest.mark.parametrize("backend", ["plain", "cpu"])
def test_a_layer_and_a_network_take_what_they_are_told(monkeypatch, taken, backend):
    if not cpu_kernels.compiled_kernels():
        pytest.skip("no C compiler when the package was installed")
    fused = []
    run = cpu_update.projected_deconvolution
    monkeypatch.setattr(
        "nnunet_deconver.layers.nonnegative_deconvolution.projected_deconvolution",
        lambda *a, **k: fused.append(1) or run(*a, **k),
    )
    x = torch.rand(1, 16, 6, 6)
    layer = NonnegativeDeconvolution(16, (3, 3), backend=backend)
    network = Deconver(16, 2, (16, 16), nn.Conv2d, 3, (1, 2), 2, backend=backend)
    layer(x), network(x)
    # the layer, and a block of each of two stages down and one up
    assert (len(fused), taken) == ((4, []) if backend == "cpu" else (0, ["plain"] * 4))


def test_the_network_is_the_same_by_every_backend():
    torch.manual_seed(0)
    by_default = Deconver(1, 2, (16, 16), nn.Conv2d, 3, (1, 2), 2)
    plain = Deconver(1, 2, (16, 16), nn.Conv2d, 3, (1, 2), 2, backend="plain")
    plain.load_state_dict(by_default.state_dict())
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(by_default(x), plain(x), rtol=1e-4, atol=1e-5)
