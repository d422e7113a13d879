import json
import math
from types import SimpleNamespace

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_deconver import plans as package
from nnunet_deconver.errors import InputError
from nnunet_deconver.networks.architecture import DECONVER, build_network
from nnunet_deconver.plans import planners
from nnunet_deconver.plans.memory import GIB, TrainingMemory
from nnunet_deconver.plans.planners import ESTIMATE, make_planner
from nnunet_deconver.plans.presets import load_preset

DTC, NERDC = {"name": "dtc"}, {"name": "nerdc"}
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}

# Dataset, planner: isotropic, 2D, anisotropic, with a cascade, and with all that a dataset can have. For little memory:
# a network of fewer stages is counted faster.
CASES = {
    "isotropic": (((48, 64, 64), (1, 1, 1), {}), ("deconver", None, None, 0.5)),
    "2d": (((1, 146, 141), (999, 1, 1), {"cases": 400}), ("deconver", DTC, NERDC, 0.2)),
    "anisotropic": (((12, 128, 128), (5, 0.6, 0.6), {}), ("plain", DTC, None, 0.5)),
    "cascade": (((150, 192, 192), (1, 0.8, 0.8), {"cases": 100}), ("plain", None, NERDC, 1)),
    "regions": (
        ((64, 80, 80), (1, 1, 1), {"channels": 4, "labels": REGIONS, "regions_class_order": [1, 2]}),
        ("residual", DTC, None, 1),
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """nnUNet_raw and nnUNet_preprocessed of this module."""
    root = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(root / "raw"))
        patch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
        yield root


@pytest.fixture(scope="module", params=CASES)
def planned(request, folders, write_dataset):
    """A planned dataset: the plans, the planner, and the patches that its search tried in each dimension."""
    (shape, spacing, options), choice = CASES[request.param]
    number = 800 + list(CASES).index(request.param)
    folder = write_dataset(folders, f"Dataset{number}_{request.param.capitalize()}", shape, spacing, **options)
    tried = {2: [], 3: []}

    class Spy(make_planner(*choice)):
        def static_estimate_VRAM_usage(self, patch_size, channels, classes, name, arch_kwargs, imports):
            entry = {"network_class_name": name, "arch_kwargs": dict(arch_kwargs), "_kw_requires_import": imports}
            tried[len(patch_size)].append((list(map(int, patch_size)), self.architecture(entry)))
            return super().static_estimate_VRAM_usage(patch_size, channels, classes, name, arch_kwargs, imports)

    planner = Spy(number)
    planner.plan_experiment()
    plans = json.loads((folder / f"{planner.plans_name}.json").read_text())
    configurations = {name: entry for name, entry in plans["configurations"].items() if "architecture" in entry}
    return SimpleNamespace(
        case=request.param, folder=folder, planner=planner, plans=plans, configurations=configurations, tried=tried
    )


def peak(planned, entry, batch_size, **arch_kwargs) -> float:
    architecture = entry["architecture"]
    architecture = architecture | {"arch_kwargs": architecture["arch_kwargs"] | arch_kwargs}
    return planned.planner.memory(architecture, entry["patch_size"], batch_size).peak / GIB


def least_peak(planned, entry, batch_size) -> float:
    """What decides on patch and batch."""
    always = {"recompute": "always"} if "recompute" in entry["architecture"]["arch_kwargs"] else {}
    return peak(planned, entry, batch_size, **always)


def test_what_is_planned_fits_the_memory_target(planned):
    target = planned.planner.memory_target
    assert planned.plans[ESTIMATE].keys() == planned.configurations.keys()
    for name, entry in planned.configurations.items():
        assert peak(planned, entry, entry["batch_size"]) <= target, name
        assert planned.plans[ESTIMATE][name] == round(peak(planned, entry, entry["batch_size"]), 2)


def test_the_next_larger_patch_does_not_fit(planned):
    """The search stops at the first patch that fits, although it counts only those near the target."""
    for name in {"2d", "3d_fullres"} & planned.configurations.keys():
        entry = planned.configurations[name]
        tried = planned.tried[len(entry["patch_size"])]
        index = [patch for patch, _ in tried].index(entry["patch_size"])
        if index:
            patch, architecture = tried[index - 1]
            before = planned.planner.memory(architecture, patch, 2).peak / GIB
            assert before > planned.planner.memory_target, name
            assert entry["batch_size"] == 2 or least_peak(planned, entry, 2) < planned.planner.memory_target


def test_the_next_larger_batch_does_not_fit_or_covers_too_much(planned):
    (shape, _, options), _ = CASES[planned.case]
    voxels = math.prod(shape) * options.get("cases", 30)
    for name in {"2d", "3d_fullres"} & planned.configurations.keys():
        entry = planned.configurations[name]
        limit = max(2, round(0.05 * voxels / math.prod(entry["patch_size"])))
        assert 2 <= entry["batch_size"] <= limit, name
        if entry["batch_size"] < limit:
            assert least_peak(planned, entry, entry["batch_size"] + 1) > planned.planner.memory_target, name


def test_no_further_stage_could_keep_what_it_computes_again(planned):
    for name, entry in planned.configurations.items():
        again = entry["architecture"]["arch_kwargs"].get("recompute")
        assert (again is None) == (CASES[planned.case][1][0] != "deconver")
        for stage in planners.recomputed(entry["architecture"]):
            tried = [of_stage and other != stage for other, of_stage in enumerate(again)]
            assert peak(planned, entry, entry["batch_size"], recompute=tried) > planned.planner.memory_target, name


def test_the_plans_build_the_chosen_network(planned):
    manager = PlansManager(planned.plans)
    choice = CASES[planned.case][1]
    for name, entry in planned.configurations.items():
        configuration = manager.get_configuration(name)
        arch_kwargs = entry["architecture"]["arch_kwargs"]
        assert arch_kwargs.get("upsampling") == choice[1]
        assert arch_kwargs.get("segmentation_head") == choice[2]
        assert (configuration.network_arch_class_name == DECONVER) == (choice[0] == "deconver")
        network = build_network(entry["architecture"], 1, 2, deep_supervision=True)
        totals = [math.prod(axis) for axis in zip(*network.encoder.strides, strict=True)]
        assert not any(size % total for size, total in zip(entry["patch_size"], totals, strict=True))


def test_configurations(planned):
    expected = {"2d", "3d_fullres"}
    if planned.case == "2d":
        expected = {"2d"}
    elif planned.case == "cascade":
        expected |= {"3d_lowres"}
        assert planned.plans["configurations"]["3d_cascade_fullres"] == {
            "inherits_from": "3d_fullres",
            "previous_stage": "3d_lowres",
        }
    assert planned.configurations.keys() == expected | ({"3d_lowres"} & planned.configurations.keys())
    if planned.case == "anisotropic":
        kernels = planned.configurations["3d_fullres"]["architecture"]["arch_kwargs"]["kernel_sizes"]
        assert kernels[0] == [1, 3, 3]


def test_preprocessed_data_is_shared_with_default_plans_that_are_not_there_yet(planned):
    for name, entry in planned.configurations.items():
        own = f"{planned.planner.plans_name}_{name}"
        # The spacing of the low resolution depends on the patch.
        assert entry["data_identifier"] == (own if name == "3d_lowres" else f"nnUNetPlans_{name}")


@pytest.mark.parametrize("limit", [2, 5, 1000])
@pytest.mark.parametrize(
    "curve",
    [
        lambda batch: 1 + batch / 10,
        lambda batch: 1 + batch**1.1 / 10,  # a straight line from 2 and 4 goes too far
        lambda batch: 1 + batch**0.9 / 10,  # or not far enough
        lambda batch: 9 + batch,
    ],
    ids=["straight", "convex", "concave", "too-much"],
)
def test_the_largest_batch(curve, limit):
    planner = object.__new__(planners.make_planner("deconver"))
    planner.UNet_min_batch_size, planner.UNet_vram_target_GB = 2, 8
    counted = set()

    def memory(architecture, patch_size, batch):
        counted.add(batch)
        return SimpleNamespace(peak=curve(batch) * GIB)

    planner.memory = memory
    fitting = [batch for batch in range(2, limit + 1) if curve(batch) <= 8]
    assert planner._largest_batch_size({}, [16, 16], limit) == max(fitting, default=2)
    assert len(counted) <= 8  # each takes seconds


# What stages keep, and the FLOPs that saves: per byte most at stage 2, least at stage 0.
KEPT, SAVED = (12, 4, 1, 1), (12, 8, 8, 4)


@pytest.mark.parametrize(
    "target, expected",
    [
        (0, [True, True, True, True]),  # what is planned does not fit, as with a preset's batch
        (3.9, [True, True, True, True]),  # what is kept would fit, the peak does not
        (4, [True, True, False, True]),
        (5, [True, True, False, False]),
        (9, [True, False, False, False]),
        (20.9, [True, False, False, False]),
        (21, [False, False, False, False]),
    ],
)
def test_stages_that_save_most_per_byte_keep_first(target, expected):
    planner = planner_of_recomputation("auto", target)
    assert recompute_of(planner, DECONVER) == expected


def test_a_stage_that_does_not_fit_leaves_room_for_others():
    planner = planner_of_recomputation("auto", 8, kept=(12, 1, 9, 1), saved=(1, 1, 100, 2))
    assert recompute_of(planner, DECONVER) == [True, False, True, False]


def planner_of_recomputation(recompute, target, kept=KEPT, saved=SAVED):
    planner = object.__new__(planners.make_planner("deconver", recompute=recompute))
    planner.UNet_vram_target_GB = target

    def memory(architecture, patch_size, batch_size):
        keeping = [not again for again in architecture["arch_kwargs"].get("recompute", [True] * 4)]
        of_stages = [of_stage * keeps * GIB for of_stage, keeps in zip(kept, keeping, strict=True)]
        # A stage's blocks are on the way down and, but for the lowest, on the way up.
        by = {"": GIB, "heads": GIB, "encoder 3": of_stages[3]}
        for stage in range(3):
            by |= {f"encoder {stage}": of_stages[stage] / 4, f"decoder {stage}": of_stages[stage] * 3 / 4}
        return SimpleNamespace(kept_by=by, kept=sum(by.values()), peak=3 * GIB + sum(of_stages))

    def flops(architecture, patch_size, batch_size):
        return sum(s for s, again in zip(saved, architecture["arch_kwargs"]["recompute"], strict=True) if again)

    planner.memory, planner.flops = memory, flops
    return planner


def recompute_of(planner, network, **arch_kwargs):
    entry = {"network_class_name": network, "arch_kwargs": {"n_stages": 4} | arch_kwargs}
    return planner._recomputing(entry, [16, 16], 2)["arch_kwargs"].get("recompute")


def test_what_is_asked_for_and_what_a_preset_says_is_not_decided_by_memory():
    for recompute in ("always", "never"):
        assert recompute_of(planner_of_recomputation(recompute, 4), DECONVER) == recompute
        assert recompute_of(planner_of_recomputation(recompute, 4), DECONVER, recompute=[False] * 4) == [False] * 4


def test_nnunets_networks_compute_nothing_again():
    plain = "nnunet_deconver.networks.PlainConvUNet"
    assert recompute_of(planner_of_recomputation("auto", 4), plain) is None


def test_the_search_counts_what_fits_and_little_else():
    """Of patches much too large, it takes memory to grow with the voxels."""
    planner = object.__new__(planners.make_planner("deconver"))
    planner.UNet_min_batch_size, planner.UNet_vram_target_GB, planner._known = 2, 8, {}
    counted = []

    def memory(architecture, patch_size, batch_size):
        counted.append(patch_size[0])
        return SimpleNamespace(parameters=0, optimizer=0, peak=GIB * (patch_size[0] / 100) ** 2.9)

    planner.memory = memory
    for size in range(400, 150, -10):
        architecture = {"arch_kwargs": {"strides": [2] * (size // 100)}}
        fits = memory(architecture, [size] * 3, 2).peak <= 8 * GIB
        counted.pop()
        found = planner._peak(architecture, [size] * 3)
        assert (found <= 8 * GIB) == fits
        if fits:
            assert counted[-1] == size
    assert len([size for size in counted if size > 210]) <= 3


class TestSmallDataset:
    """Whose search is short: which preprocessed data plans use, what becomes of plans that are there."""

    @pytest.fixture
    def dataset(self, tmp_path, write_dataset, monkeypatch):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))

        def training_memory(*, patch_size, batch_size, **further):
            peak = GIB // 50 + 1000 * batch_size * math.prod(patch_size)
            return TrainingMemory(parameters=0, gradients=0, optimizer=0, kept=0, kept_by={}, peak=peak)

        # Counting takes a second each time, and no test here is about how much it is.
        monkeypatch.setattr(planners, "training_memory", training_memory)
        return write_dataset(tmp_path, "Dataset850_Small", (32, 32, 32), (1, 1, 1))

    @staticmethod
    def identifiers(backbone="plain", **kwargs) -> dict[str, str]:
        plans = make_planner(backbone, DTC)(850, **kwargs).plan_experiment()
        return {name: entry["data_identifier"] for name, entry in plans["configurations"].items()}

    def test_default_plans_with_the_same_preprocessing(self, dataset):
        default = ExperimentPlanner(850, plans_name="nnUNetPlans")
        default.plan_experiment()
        path = dataset / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["2d"]["data_identifier"] = "elsewhere_2d"
        path.write_text(json.dumps(plans))
        assert self.identifiers() == {"2d": "elsewhere_2d", "3d_fullres": "nnUNetPlans_3d_fullres"}

    @pytest.mark.parametrize("backbone", ["plain", "residual"])
    def test_default_plans_with_another_spacing(self, dataset, backbone):
        ExperimentPlanner(850, plans_name="nnUNetPlans", overwrite_target_spacing=[1.0, 1.0, 2.0]).plan_experiment()
        assert "nnUNetPlans_3d_fullres" not in self.identifiers(backbone).values()

    @pytest.mark.parametrize(
        "options",
        [
            {"overwrite_target_spacing": [2.0, 2.0, 2.0]},
            {"suppress_transpose": True},
            {"preprocessor_name": "MyPreprocessor"},
        ],
        ids=lambda options: next(iter(options)),
    )
    @pytest.mark.parametrize("backbone", ["plain", "residual"])
    def test_a_preprocessing_of_its_own(self, dataset, backbone, options):
        found = self.identifiers(backbone, plans_name="mine", **options)
        assert found == {"2d": "mine_2d", "3d_fullres": "mine_3d_fullres"}

    def test_planning_again_changes_nothing(self, dataset):
        path = dataset / "mine.json"
        self.identifiers(plans_name="mine")
        before = path.read_text(), path.stat().st_mtime_ns
        self.identifiers(plans_name="mine")
        assert (path.read_text(), path.stat().st_mtime_ns) == before
        assert sorted(found.name for found in dataset.iterdir()) == [
            "dataset.json",
            "dataset_fingerprint.json",
            "mine.json",
        ]

    def test_other_plans_of_that_name(self, dataset):
        path = dataset / "mine.json"
        self.identifiers(plans_name="mine")
        content = path.read_text()
        planner = make_planner("plain", segmentation_head=NERDC)
        planner.overwrite = False
        with pytest.raises(FileExistsError, match=r"mine\.json exists and has other settings"):
            planner(850, plans_name="mine").plan_experiment()
        assert path.read_text() == content
        # Overwriting leaves configurations that a person added, as nnU-Net does.
        plans = json.loads(content)
        plans["configurations"]["3d_mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
        path.write_text(json.dumps(plans))
        planner.overwrite = True
        planner(850, plans_name="mine").plan_experiment()
        plans = json.loads(path.read_text())
        assert plans["configurations"]["3d_mine"] == {"inherits_from": "3d_fullres", "batch_size": 3}
        assert "segmentation_head" in plans["configurations"]["2d"]["architecture"]["arch_kwargs"]

    def test_plans_that_cannot_be_written_leave_the_earlier_ones(self, dataset, little_space):
        self.identifiers(plans_name="mine")
        path = dataset / "mine.json"
        before = path.read_text()
        planner = make_planner("plain", None, None, 0.5)(850, plans_name="mine")
        plans = json.loads(before)
        plans["configurations"]["3d_mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
        with little_space(1000), pytest.raises(OSError, match="large"):
            planner.save_plans(plans)
        assert path.read_text() == before
        assert not list(dataset.glob(".*"))

    @pytest.mark.parametrize("name", ["mine", "nnUNetPlans"])
    def test_plans_that_are_cut_short_are_told(self, dataset, name):
        (dataset / f"{name}.json").write_text('{"configurations"')
        planner = make_planner("plain", None, None, 0.5)(850, plans_name="mine")
        with pytest.raises(InputError, match=rf"{name}\.json: is not JSON .* remove them and plan again"):
            planner.plan_experiment()

    def test_a_target_too_small(self, dataset):
        with pytest.raises(ValueError, match=r"target of 0\.01 GiB is too small: .* batch size 2 takes .* raise"):
            make_planner("deconver", memory_target=0.01)(850).plan_experiment()
        assert not list(dataset.glob("*Plans.json"))

    @pytest.mark.parametrize("target", [0, -1, float("nan"), float("inf")])
    def test_a_target_that_is_none(self, dataset, target):
        with pytest.raises(ValueError, match="must be a positive number of GiB"):
            make_planner("deconver")(850, gpu_memory_target_in_gb=target)

    def test_a_recomputation_that_is_none(self, dataset):
        with pytest.raises(
            ValueError, match=r"recompute 'never': only Deconver .* plans .*PlainConvUNet; leave it out"
        ):
            make_planner("plain", recompute="never")(850)
        with pytest.raises(ValueError, match=r"recompute 'always': only Deconver .* this plans .*PlainConvUNet"):
            load_preset("busi-unet-tc").planner(recompute="always")(850)
        with pytest.raises(ValueError, match="recompute 'sometimes' is unknown; known are auto, always, never"):
            make_planner("deconver", recompute="sometimes")(850)

    @pytest.mark.parametrize("name", ["", "my__plans", "a/b"])
    def test_names_nnunet_cannot_split(self, dataset, name):
        with pytest.raises(ValueError, match="plans name"):
            make_planner("deconver")(850, plans_name=name)


def test_names():
    names = package.__all__
    assert len(set(names)) == len(names) >= 30
    plans_names = [getattr(package, name).plans_name for name in names]
    assert len(set(plans_names)) == len(names)
    assert not [name for name in names + plans_names if "__" in name]
    assert {"nnUNetPlannerDeconver", "nnUNetPlannerDeconverL", "nnUNetPlannerDTCXL", "nnUNetPlannerResEncNeRDc"} <= {
        *names
    }
    for name in names:
        assert getattr(package, name).__name__ == name
    assert package.nnUNetPlannerDeconver.plans_name == "nnUNetDeconverPlans"
    assert package.nnUNetPlannerDeconverXL.memory_target == 40


@pytest.mark.parametrize(
    "choice, name",
    [
        (("plain",), "nnUNetPlainPlans"),
        (("plain", {"name": "linear"}), "nnUNetLinearPlans"),
        (("deconver", {"name": "dtc", "receptive_field": 2.5}), "nnUNetDeconverDTCrf2p5Plans"),
        (("deconver", {"name": "dtc", "receptive_field": "inf"}, NERDC), "nnUNetDeconverDTCrfinfNeRDcPlans"),
        (("residual", {"name": "dysample"}, None, 24), "nnUNetResEncDySampleLPlans"),
        (("deconver", None, None, 11.5), "nnUNetDeconver11p5GBPlans"),
    ],
    ids=str,
)
def test_names_say_what_was_chosen(choice, name):
    assert make_planner(*choice).plans_name == name


def test_unknown_choices():
    with pytest.raises(ValueError, match="upsampling 'cubic' is unknown"):
        make_planner("deconver", {"name": "cubic"})
    with pytest.raises(ValueError, match="has no option"):
        make_planner("plain", None, {"name": "nerdc", "receptive_field": 2})


def test_deconver_has_the_papers_features(planned):
    """min(32 * 2^l, 512); nnU-Net's own have 320 at most in 3D."""
    largest = {"3d_fullres": 512 if CASES[planned.case][1][0] == "deconver" else 320, "2d": 512}
    for name in largest.keys() & planned.configurations.keys():
        features = planned.configurations[name]["architecture"]["arch_kwargs"]["features_per_stage"]
        assert features == [min(32 * 2**level, largest[name]) for level in range(len(features))]
