import pytest

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
