"""What the papers print of their networks is what is counted here, within the printed digits, or has its reason."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    """A script as a module; scripts find each other in their own folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


published = load("published")


def rounded(number: float, printed: str) -> str:
    return f"{number:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize("configuration", published.CONFIGURATIONS, ids=lambda each: each.preset)
def test_the_papers_flops_are_counted_as_the_paper_does(configuration):
    printed = configuration.published["kflops_per_voxel"]
    assert rounded(published.papers_kflops(configuration), printed) == printed


def test_every_printed_row_of_the_papers_tables_is_there():
    """Tables I to V, in kernels, ratios and groups."""
    printed = {each.preset: (each.published["parameters_M"], each.published["kflops_per_voxel"]) for each in (
        published.CONFIGURATIONS
    )}  # fmt: skip
    assert printed == {
        "isles22": ("10.5", "607.0"),
        "isles22-k5": ("11.0", "607.0"),
        "brats23": ("10.6", "167.5"),
        "brats23-k5": ("11.0", "167.5"),
        "glas": ("20.6", "422.8"),
        "glas-k5": ("20.8", "422.8"),
        "isles22-r1": ("7.8", "425.8"),
        "isles22-r2": ("8.7", "486.2"),
        "isles22-g1": ("57.21", "607.4"),
        "isles22-g8": ("16.18", "607.1"),
    }


def test_a_network_with_a_few_fewer_parameters_would_round_to_all_of_table_v():
    """The reason that the presets name: 858 to 1,544 fewer, such as the biases of the strided convolutions."""
    counted = {each.preset: published.count(each).parameters for each in published.CONFIGURATIONS}
    printed = {"isles22-g1": "57.21", "isles22-g8": "16.18", "isles22": "10.48"}

    def fit(fewer):
        return all(f"{(counted[name] - fewer) / 1e6:.2f}" == text for name, text in printed.items())

    assert [fit(fewer) for fewer in (856, 858, 896, 1544, 1546)] == [False, True, True, True, False]
    assert sum((128, 256, 512)) == 896
