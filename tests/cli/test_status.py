import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nnunet_deconver import cli
from nnunet_deconver.cli import status
from nnunet_deconver.integration import installation, registration, trainers
from nnunet_deconver.ops import cpu_kernels
from nnunet_deconver.ops.nonnegative_deconvolution import backends


def ours():
    return type("nnUNetTrainerDeconver", (), {"__module__": "nnunet_deconver.trainers.deconver"})


def another():
    return type("nnUNetTrainerDeconver", (), {"__module__": "nnunetv2.training.nnUNetTrainer.variants.other"})


def not_found():
    try:
        raise RuntimeError("Could not find requested nnunet trainer")
    except RuntimeError as error:
        return error


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The installed nnunetv2, with the folders that matter here, found by status as the real one is."""
    root = tmp_path / "nnunetv2"
    for folder, *_ in registration.TARGETS:
        (root / folder).mkdir(parents=True)
    (root / "__init__.py").touch()
    module = ModuleType("nnunetv2")
    module.__path__ = [str(root)]
    monkeypatch.setitem(sys.modules, "nnunetv2", module)
    for variable in status.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return root


@pytest.fixture
def show(monkeypatch, capsys):
    """A function that runs status while nnU-Net finds what it is told to."""

    def show(found) -> tuple[int, str, str]:
        monkeypatch.setattr(status, "ask_nnunet", lambda name: found)
        code = cli.main(["status"])
        report, _, verdict = capsys.readouterr().out.rpartition("\n\n")
        return code, report, verdict.strip()

    return show


@pytest.mark.parametrize(
    ("registered", "writable", "foreign", "exported", "found", "advice"),
    [
        (False, True, False, False, not_found, "run: nnunet-deconver register"),
        (False, False, False, False, not_found, "run: export nnUNet_extTrainer=$(nnunet-deconver trainer-path)"),
        (False, True, True, False, not_found, "run: export nnUNet_extTrainer=$(nnunet-deconver trainer-path)"),
        (False, True, False, False, another, "run: nnunet-deconver register"),
        (False, True, False, True, another, "run: nnunet-deconver register"),
        (True, True, False, False, another, "rename or remove the other nnUNetTrainerDeconver, in nnunetv2.training"),
        (False, False, False, True, another, "rename or remove the other nnUNetTrainerDeconver, in nnunetv2.training"),
        (True, True, False, False, not_found, f"mend the error above, which nnU-Net meets in {__file__}"),
        (False, True, False, True, not_found, f"mend the error above, which nnU-Net meets in {__file__}"),
    ],
)
def test_says_what_to_do(registered, writable, foreign, exported, found, advice, root, show, monkeypatch):
    if registered:
        registration.register(root)
    if foreign:
        (root / "training" / "nnUNetTrainer" / "nnunet_deconver_trainers.py").write_text("x = 1\n")
    if exported:
        monkeypatch.setenv("nnUNet_extTrainer", str(trainers.shim_folder()))
    monkeypatch.setattr(status.os, "access", lambda path, mode: writable)
    code, _, verdict = show(found())
    assert code == 1
    assert advice in verdict


def test_exit_code_is_0_when_nnunet_finds_ours(root, show):
    code, report, verdict = show(ours())
    assert code == 0
    assert "nnUNetTrainerDeconver in nnunet_deconver.trainers.deconver" in report
    assert "run:" not in verdict


def test_a_package_that_only_begins_like_ours_is_not_ours(root, show):
    assert show(type("nnUNetTrainerDeconver", (), {"__module__": "nnunet_deconver_trainers"}))[0] == 1


def test_outdated_file_is_reported_and_works_on(root, show):
    path = root / "training" / "nnUNetTrainer" / "nnunet_deconver_trainers.py"
    path.write_text(registration.MARKER)
    code, report, _ = show(ours())
    assert code == 0
    assert str(path) in report
    assert "run: nnunet-deconver register" in report
    code, _, verdict = show(not_found())
    assert code == 1
    assert "run: nnunet-deconver register" in verdict


def test_what_an_older_version_did_not_register_is_named(root, show):
    registration.register(root)
    (root / "experiment_planning" / "experiment_planners" / "nnunet_deconver_planners.py").unlink()
    code, report, _ = show(ours())
    assert code == 0
    assert "no, nnunet_deconver_planners.py is missing (to add it, run: nnunet-deconver register)" in report


@pytest.mark.parametrize("version", ["2.7.1", "3.0.0"])
def test_unsupported_version_is_shown_and_not_asked(version, root, show, monkeypatch):
    monkeypatch.setattr(installation, "installed_version", lambda distribution: version)
    monkeypatch.setattr(status, "installed_version", lambda distribution: version)
    code, report, verdict = show(ours())
    assert code == 1
    assert f"{version} at {root}" in report
    assert "not asked" in report
    assert 'pip install "nnunetv2>=2.8,<3"' in verdict


def test_missing_nnunetv2(root, show, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    code, report, verdict = show(ours())
    assert code == 1
    assert "not installed" in report
    assert 'pip install "nnunetv2>=2.8,<3"' in verdict


def test_variables(root, show, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nowhere"))
    monkeypatch.setenv("nnUNet_extTrainer", f"{tmp_path}{status.os.pathsep}{tmp_path / 'gone'}")
    code, report, _ = show(ours())
    lines = dict(line.split(maxsplit=1) for line in report.splitlines())
    assert code == 0
    assert lines["nnUNet_raw"] == str(tmp_path)
    assert lines["nnUNet_preprocessed"] == f"{tmp_path / 'nowhere'} (no such folder: {tmp_path / 'nowhere'})"
    assert lines["nnUNet_results"].startswith("not set (trained models")
    assert lines["nnUNet_extTrainer"].endswith(f"(no such folder: {tmp_path / 'gone'})")


def test_cpu_kernels(root, show, monkeypatch):
    _, report, _ = show(ours())
    assert f"{'CPU kernels':<20} {', '.join(cpu_kernels.compiled_kernels())}" in report
    monkeypatch.setattr(cpu_kernels, "libraries", dict)
    _, report, _ = show(ours())
    assert "CPU kernels          none, " in report
    assert "install a C compiler" in report


def test_says_what_computes_on_each_device_and_why_nothing_faster(root, show, monkeypatch):
    class Properties:
        name, major, minor, total_memory = "Tesla T4", 7, 5, 15 * 2**30

    answers = {
        "cpu": ("cpu", None),
        "cuda:0": ("plain", "the GPU has compute capability 7.5"),
        "cuda:1": RuntimeError("no kernel image"),
    }

    def explain(device):
        logging.getLogger("nnunet_deconver").warning("said twice")
        if isinstance(answers[device], Exception):
            raise answers[device]
        return answers[device]

    monkeypatch.setattr("nnunet_deconver.ops.explain_backend", explain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    code, report, _ = show(ours())
    lines = dict(line.split(maxsplit=1) for line in report.splitlines())
    assert code == 0
    assert lines["cpu"] == "computes Deconver by the path 'cpu'"
    gpu = "Tesla T4, compute capability 7.5, 15 GiB; "
    assert (
        lines["cuda:0"]
        == f"{gpu}computes Deconver by the path 'plain' and no faster one: the GPU has compute capability 7.5"
    )
    assert lines["cuda:1"] == f"{gpu}cannot compute Deconver: no kernel image"
    assert "said twice" not in report


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_there_is_no_gpu(root, show):
    _, report, _ = show(ours())
    assert f"{'CUDA device':<20} none" in report


def test_a_variable_that_names_no_path_is_reported(root, show, monkeypatch):
    monkeypatch.setattr(backends, "_named", "cuda")
    code, report, _ = show(ours())
    assert code == 0
    assert "the variable NNUNET_DECONVER_BACKEND must be one of plain, cpu, triton or None, got 'cuda'" in report


def test_torch_that_cannot_be_imported_is_reported(root, show, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, report, _ = show(not_found())
    assert code == 1
    assert "cannot be imported" in report


def test_find_trainer_is_silent_and_returns_what_goes_wrong(monkeypatch, capsys):
    def search(name):
        print("Searching in external trainer paths")
        raise KeyError(name)

    finder = ModuleType("nnunetv2.utilities.find_objects")
    finder.recursive_find_trainer_class_by_name = search
    for name in ("nnunetv2", "nnunetv2.utilities"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, finder.__name__, finder)
    found = status.ask_nnunet("nnUNetTrainerDeconver")
    assert isinstance(found, KeyError)
    assert capsys.readouterr() == ("", "")


def test_shows_where_the_package_is(root, show):
    _, report, _ = show(ours())
    assert str(Path(cli.__file__).parents[1]) in report
