"""The folder the demo writes: what is in it, and what may be removed from it."""

import shutil
from pathlib import Path

from nnunet_deconver.errors import ArgumentError

# Everything that is ever written into the output folder, and so all that is ever removed from it.
MARKER = ".nnunet-deconver-demo"
LOG, PICTURE, TABLE, MODEL = "nnunet.log", "demo.png", "dice.csv", "model"
INTERMEDIATE = ("raw", "preprocessed", "results", "predictions")
OUTPUTS = (*INTERMEDIATE, LOG, PICTURE, TABLE, MODEL, MARKER)


def check_output(out: Path, overwrite: bool, dataset: Path | None) -> None:
    """Refuses an output folder in which something of the user's could be lost.

    Raises:
        InputError: if it is one.
    """
    if out.exists() and not out.is_dir():
        raise ArgumentError("out", out, "is a file; name a folder")
    if dataset is not None:
        inner, outer = out.resolve(), dataset.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ArgumentError("out", out, "lies in the folder of --dataset or around it; choose one elsewhere")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists() and not overwrite:
        raise ArgumentError(
            "out",
            out,
            "holds files that are not a former demo's; choose another folder, or add --overwrite, which "
            f"replaces {', '.join(OUTPUTS[:-1])} in it and leaves the rest",
        )


def prepare_output(out: Path) -> None:
    """Makes the output folder, without anything of a former demo."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (out / name for name in OUTPUTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (out / MARKER).write_text("Made by `nnunet-deconver demo`, which replaces its files here without asking.\n")
    except OSError as error:
        raise ArgumentError("out", out, f"cannot write there ({error}); choose another folder") from error
