"""What is compared at every scale, and where curves cross."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """`scale` and `tables`; scripts find each other in their own folder."""
    found = {}
    sys.path.insert(0, str(BENCHMARKS))
    try:
        for name in ("tables", "scale"):
            spec = importlib.util.spec_from_file_location(f"{name}_script", BENCHMARKS / f"{name}.py")
            found[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found[name])
    finally:
        sys.path.remove(str(BENCHMARKS))
    return found


def test_one_thing_is_varied_at_a_time(scripts):
    scale = scripts["scale"]
    for around, values in ((scale.Case(), scale.COUNTED), (scale.MEASURED_AROUND, scale.MEASURED)):
        for varied, case in scale.cases(around, values):
            assert case._replace(**{varied: getattr(around, varied)}) == around
            assert getattr(case, varied) in values[varied]
            assert case.edge % 2 ** (scale.STAGES - 1) == 0


def test_nnunets_networks_keep_their_kernels_on_the_same_stages(scripts):
    scale = scripts["scale"]
    kwargs = {name: scale.entry(name, scale.Case(kernel=7, channels=48))["arch_kwargs"] for name in scale.NETWORKS}
    assert [of["kernel_sizes"][0][0] for of in kwargs.values()] == [7, 7, 3, 3]
    for key in ("n_stages", "features_per_stage", "strides"):
        assert len({str(of[key]) for of in kwargs.values()}) == 1
    assert [of.get("recompute") for of in kwargs.values()] == ["always", "never", None, None]


def test_a_crossing_is_where_the_ratio_passes_one(scripts):
    crossing = scripts["tables"].crossing
    assert crossing({3: 0.5, 5: 0.9, 7: 1.1}) == "between 5 and 7"
    assert crossing({3: 1.5, 5: 0.9, 7: 1.1}) == "between 3 and 5, 5 and 7"
    assert crossing({3: 0.5, 5: 0.9}) == "never: below"
    assert crossing({3: 1.5, 5: 1.9}) == "never: above"
