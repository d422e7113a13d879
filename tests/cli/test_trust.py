"""Files of somebody else run no code, whatever they name: the canary lives."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from nnunet_deconver import cli

# Each is what the file `canary` is touched by if it is imported, called or unpickled.
MODULE = """
import os
from torch import nn

open(os.environ["CANARY"], "w").close()


class Net(nn.Module):
    def __init__(self, *arguments, **keywords):
        super().__init__()
        open(os.environ["CANARY"], "w").close()
"""


class Bomb:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that an attack that succeeds leaves; a module of somebody else can be imported."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "somebodys.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    yield tmp_path / "canary"
    sys.modules.pop("somebodys", None)


def network(name):
    def attack(architecture, canary):
        architecture["network_class_name"] = name

    return attack


def operator(name, /, **keywords):
    def attack(architecture, canary):
        architecture["arch_kwargs"] |= {
            "nonlin": name,
            "nonlin_kwargs": {k: f"{v} {canary}" for k, v in keywords.items()},
        }

    return attack


def adapted(name):
    def attack(architecture, canary):
        architecture["network_class_name"] = "nnunet_deconver.networks.Adapted"
        strides = architecture["arch_kwargs"]["strides"]
        architecture |= {"arch_kwargs": {"network": name, "strides": strides}, "_kw_requires_import": []}

    return attack


def imported(name):
    def attack(architecture, canary):
        architecture["arch_kwargs"]["norm_op"] = name

    return attack


ARCHITECTURES = {
    "a network of a module of theirs": network("somebodys.Net"),
    "a function for a network": network("os.system"),
    "a network of theirs that is adapted": adapted("somebodys.Net"),
    "a function that is adapted": adapted("os.system"),
    "a class by way of MONAI that is adapted": adapted("monai.networks.nets.unetr.nn.Module"),
    "a class of the standard library for a network": network("subprocess.Popen"),
    "a function by way of nnU-Net": network("nnunetv2.paths.os.system"),
    "a function for an operator": operator("os.system", command="touch"),
    "a class by way of torch.nn": operator("torch.nn.modules.module.functools.partial", func="touch"),
    "a function by way of a function of torch.nn": operator("torch.nn.functional.importlib.import_module", name="x"),
    "an operator of a module of theirs": imported("somebodys.Net"),
    "a name with a call": network("somebodys.Net()"),
}


def tamper(model: Path, attack, canary: Path):
    """Lets an attack change the plans of a model, in the folder and in the checkpoint."""
    plans = json.loads((model / "plans.json").read_text())
    attack(plans["configurations"]["test"]["architecture"], canary)
    (model / "plans.json").write_text(json.dumps(plans))
    for path in model.glob("fold_*/*.pth"):
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["init_args"]["plans"] = plans
        torch.save(checkpoint, path)


def commands(model: Path, out: Path) -> dict[str, list]:
    return {
        "summary": ["summary", "--plans-file", model / "plans.json", "-c", "test"],
        "upgrade": ["upgrade-checkpoint", model / "fold_0" / "checkpoint_final.pth", "-o", out, "--upsampling", "dtc"],
        "export": ["export-submission", model, "-o", out],
        "figures": ["figures", model, "-o", out],
        "compare": ["compare", model, f"{model}/", "--names", "a", "b", "-o", out],
    }


@pytest.mark.parametrize(
    ("attack", "command"),
    [(attack, "summary") for attack in ARCHITECTURES]
    + [
        (attack, command)
        for attack in ("a network of a module of theirs", "a function for an operator")
        for command in ("upgrade", "export", "figures", "compare")
    ],
)
def test_plans_run_no_code(trained_model, cross_validated, canary, tmp_path, capsys, attack, command):
    model = trained_model()
    cross_validated(model)
    tamper(model, ARCHITECTURES[attack], canary)
    code = cli.main(list(map(str, commands(model, tmp_path / "out")[command])))
    printed = capsys.readouterr()
    assert not canary.exists()
    # What needs no network is drawn all the same.
    assert code == (0 if command in ("figures", "compare") else 2)
    assert "plans.json" in printed.out + printed.err or "init_args" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("command", ["upgrade", "export", "figures", "compare"])
def test_checkpoints_are_not_unpickled(trained_model, cross_validated, canary, tmp_path, capsys, command):
    # A model of ours, for whose picture the weights are read; without logs, curves are looked for in checkpoints.
    model = trained_model(trainer="nnUNetTrainerNeRDc" if command == "figures" else "nnUNetTrainer")
    cross_validated(model)
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"logging": Bomb(canary)}, path)
    code = cli.main(list(map(str, commands(model, tmp_path / "out")[command])))
    printed = capsys.readouterr()
    assert not canary.exists()
    if command == "compare":  # draws no curves
        assert code == 0
        assert not list((tmp_path / "out").glob("training*"))
        return
    assert code == (1 if command == "figures" else 2)
    assert f"{path}: holds " in printed.err and "add --trust" in printed.err


def test_an_evaluation_that_names_a_model_runs_none_of_its_code(
    trained_model, cross_validated, canary, tmp_path, capsys
):
    model = trained_model()
    cross_validated(model)
    assert cli.main(["evaluate", "--model", str(model), "-o", str(tmp_path / "evaluation"), "-np", "1"]) == 0
    tamper(model, ARCHITECTURES["a function for an operator"], canary)
    folders = [str(tmp_path / "evaluation"), str(tmp_path / "evaluation") + "/"]
    assert cli.main(["compare", *folders, "--names", "a", "b", "-o", str(tmp_path / "out")]) == 0
    assert cli.main(["figures", folders[0], "-o", str(tmp_path / "figures")]) == 0
    printed = capsys.readouterr().out
    assert not canary.exists()
    assert printed.count("arch_kwargs.nonlin 'os.system' is not of nnunet_deconver") == 3


def test_a_preset_runs_no_code(canary, tmp_path, capsys):
    preset = json.loads((Path(cli.__file__).parents[2] / "plans" / "presets" / "glas.json").read_text())
    preset["architecture"]["network_class_name"] = "somebodys.Net"
    (tmp_path / "mine.json").write_text(json.dumps(preset))
    assert cli.main(["summary", "--preset", str(tmp_path / "mine.json")]) == 2
    assert not canary.exists()
    assert "network_class_name 'somebodys.Net' is not of" in capsys.readouterr().err


def test_a_model_that_is_trusted_is_built_and_unpickled(trained_model, canary, tmp_path, capsys):
    model = trained_model()
    tamper(model, network("somebodys.Net"), canary)
    cli.main(["summary", "--plans-file", str(model / "plans.json"), "-c", "test", "--trust"])
    assert canary.exists()
    canary.unlink()
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"logging": Bomb(canary)}, path)
    cli.main(["upgrade-checkpoint", str(path), "-o", str(tmp_path / "out"), "--head", "nerdc", "--trust"])
    assert canary.exists()
