import pytest
import torch

from nnunet_deconver.ops import cpu_kernels
from nnunet_deconver.ops.nonnegative_deconvolution import backends


@pytest.fixture
def taken(monkeypatch):
    """The backends that were run."""
    names = []

    def recorded(name, entry):
        return entry._replace(run=lambda *a, **k: names.append(name) or entry.run(*a, **k))

    recording = {name: recorded(name, entry) for name, entry in backends.BACKENDS.items()}
    monkeypatch.setattr(backends, "BACKENDS", recording)
    return names


def _leave(monkeypatch, lanes):
    libraries = {each: library for each, library in cpu_kernels.libraries().items() if each == lanes}
    monkeypatch.setattr(cpu_kernels, "libraries", lambda: libraries)
    return lanes


@pytest.fixture(params=sorted(cpu_kernels.libraries()))
def lanes(request, monkeypatch):
    """Each library of kernels that runs here, in turn."""
    return _leave(monkeypatch, request.param)


@pytest.fixture(params=[0, *sorted(cpu_kernels.libraries())])
def lanes_or_none(request, monkeypatch):
    """No kernels, then each library that runs here, in turn."""
    return _leave(monkeypatch, request.param)


@pytest.fixture
def use_threads():
    """Sets the number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
