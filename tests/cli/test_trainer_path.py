import os
from pathlib import Path

from nnunet_deconver import cli
from nnunet_deconver.integration import trainers


def test_prints_the_shim_folder_and_nothing_else(capsys):
    assert cli.main(["trainer-path"]) == 0
    printed = capsys.readouterr().out
    folder = Path(printed.removesuffix("\n"))
    assert printed == f"{folder}\n"
    assert folder.is_absolute()
    # A second module would be imported by every search of nnU-Net, under a name that may be taken.
    assert sorted(path.name for path in folder.glob("*.py")) == ["__init__.py", "nnunet_deconver_trainers.py"]


def test_export_line_keeps_other_folders(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert trainers.export_line() == "export nnUNet_extTrainer=$(nnunet-deconver trainer-path)"
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/lab", " ", "/mine"]))
    assert trainers.external_folders() == [Path("/lab"), Path("/mine")]
    assert (
        trainers.export_line()
        == f"export nnUNet_extTrainer=$nnUNet_extTrainer{os.pathsep}$(nnunet-deconver trainer-path)"
    )
