"""The demo's data: a raw dataset of the user's with cases held out, and a raw dataset as nnU-Net reads it."""

import copy
import io
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.integration.datasets import as_labels

if TYPE_CHECKING:
    import numpy as np
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

FEWEST_CASES = 5


@dataclass
class Dataset:
    """A raw dataset of the user's.

    Attributes:
        name: Dataset<three digits>_<name>.
        description: its dataset.json.
        training: case to the files of its channels and its label.
        held_out: likewise.
    """

    name: str
    description: dict
    training: dict[str, tuple[list[Path], Path]]
    held_out: dict[str, tuple[list[Path], Path]]

    def link(self, folder: Path) -> None:
        """Makes a raw dataset of links, or copies where the system has none, with the held-out cases as test cases."""
        ending = self.description["file_ending"]
        for split, cases in (("Tr", self.training), ("Ts", self.held_out)):
            images_folder, labels_folder = folder / f"images{split}", folder / f"labels{split}"
            images_folder.mkdir(parents=True)
            labels_folder.mkdir()
            for case, (images, label) in cases.items():
                for channel, image in enumerate(images):
                    _link(image, images_folder / f"{case}_{channel:04d}{ending}")
                _link(label, labels_folder / f"{case}{ending}")
                # Where nnU-Net looks for the spacing of formats that have none, such as tif.
                first = images[0].name.removesuffix(ending).removesuffix("_0000")
                for source, target in (
                    (images[0].with_name(f"{first}.json"), images_folder),
                    (label.with_name(f"{label.name.removesuffix(ending)}.json"), labels_folder),
                ):
                    if source.is_file():
                        _link(source, target / f"{case}.json")
        # "dataset" lists files elsewhere; the links have nnU-Net's usual names.
        description = {key: value for key, value in self.description.items() if key != "dataset"}
        description["numTraining"] = len(self.training)
        (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def read_dataset(folder: Path, held_out: int | None = None) -> Dataset:
    """Reads and checks a raw dataset's description and list of files, and draws the cases to hold out.

    Args:
        folder: the dataset's folder.
        held_out: number of cases to hold out; None for a fifth, 20 at most.

    Raises:
        InputError: if it is no dataset that the demo can use.
    """
    what = f"--dataset {folder}"
    if not folder.is_dir():
        raise InputError(f"{what}: no such folder; it must be a raw dataset of nnU-Net, DatasetXXX_NAME")
    folder = folder.resolve()
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name):
        raise InputError(
            f"{what}: the folder must be named Dataset, three digits, an underscore and a name, as Dataset004_Heart; "
            f"rename or link {folder.name}"
        )
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{what}: it has no dataset.json; see nnU-Net's documentation/dataset_format.md for how to write one"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: cannot read {path} ({error}); mend it") from error
    missing = [key for key in ("channel_names", "labels", "file_ending") if key not in description]
    if missing:
        raise InputError(f"{what}: {path} lacks {', '.join(missing)}; add what nnU-Net's dataset format asks for")
    try:
        _label_manager(description)
    except Exception as error:
        raise InputError(f"{what}: nnU-Net refuses the labels of {path} ({error}); mend them") from error

    cases = _cases(folder, description)
    for case, (images, label) in cases.items():
        for file in (*images, label):
            if not file.is_file():
                raise InputError(f"{what}: case {case} lacks the file {file}; add it, or remove the case")
    if len(cases) < FEWEST_CASES:
        raise InputError(
            f"{what}: found {len(cases)} cases in {folder / 'imagesTr'} that end with _0000"
            f"{description['file_ending']}; the demo needs {FEWEST_CASES} at least"
        )
    try:
        _reader(description, next(iter(cases.values()))[0][0])
    except Exception as error:
        raise InputError(f"{what}: nnU-Net cannot read its images ({error}); see file_ending in {path}") from error
    most = len(cases) - FEWEST_CASES + 1
    if held_out is None:
        held_out = max(1, min(20, len(cases) // 5))
    elif not 1 <= held_out <= most:
        raise ArgumentError("held_out", held_out, f"must be from 1 to {most} for the {len(cases)} cases of {folder}")

    import numpy as np

    drawn = set(np.random.default_rng(0).permutation(sorted(cases))[:held_out])
    training, test = ({c: files for c, files in cases.items() if (c in drawn) is chosen} for chosen in (False, True))
    return Dataset(folder.name, description, training, test)


def _cases(folder: Path, description: dict) -> dict[str, tuple[list[Path], Path]]:
    ending = description["file_ending"]
    if "dataset" in description:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        listed = get_filenames_of_train_images_and_targets(str(folder), copy.deepcopy(description))
        return {
            case: ([Path(image) for image in files["images"]], Path(files["label"])) for case, files in listed.items()
        }
    first = f"_0000{ending}"
    names = sorted(path.name.removesuffix(first) for path in (folder / "imagesTr").glob(f"*{first}"))
    # One file may hold all channels, as an RGB png does.
    channels = len(description["channel_names"]) if any((folder / "imagesTr").glob(f"*_0001{ending}")) else 1
    return {
        name: (
            [folder / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(channels)],
            folder / "labelsTr" / f"{name}{ending}",
        )
        for name in names
    }


class RawData:
    """A raw dataset with test labels.

    Args:
        folder: its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.number = str(int(folder.name[7:10]))
        self.description = json.loads((folder / "dataset.json").read_text())
        self.ending = self.description["file_ending"]
        manager = _label_manager(self.description)
        keys = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        names = {as_labels(value): name for name, value in self.description["labels"].items()}
        # Name to the label, or the labels of the region, as nnU-Net's summaries call it.
        self.classes = {names[as_labels(key)]: key for key in keys}
        self.ignore = manager.ignore_label
        example = self.images("Tr", self.cases("Tr")[0])[0]
        self.io = _reader(self.description, example)
        # nnU-Net plans no 3D configuration for it.
        self.is_2d = 1 in self.io.read_images((example,))[0].shape[1:]

    def cases(self, split: str) -> list[str]:
        """The names of the cases of a split, "Tr" or "Ts"."""
        labels = (self.folder / f"labels{split}").glob(f"*{self.ending}")
        return sorted(path.name.removesuffix(self.ending) for path in labels)

    def images(self, split: str, case: str) -> list[str]:
        """The files of a case's channels."""
        channels = range(len(self.description["channel_names"]))
        files = [self.folder / f"images{split}" / f"{case}_{channel:04d}{self.ending}" for channel in channels]
        return [str(file) for file in files if file.exists()]

    def read_held_out(self, case: str) -> "tuple[np.ndarray, np.ndarray, Sequence[float]]":
        """Image (channels, z, y, x), truth (z, y, x) and spacing (z, y, x) of a held-out case."""
        image, properties = self.io.read_images(self.images("Ts", case))
        return image, self.read_labels(self.folder / "labelsTs" / f"{case}{self.ending}"), properties["spacing"]

    def read_labels(self, path: Path) -> "np.ndarray":
        """Labels (z, y, x)."""
        return self.io.read_seg(str(path))[0][0].astype(int)


def _reader(description: dict, example: Path | str) -> "BaseReaderWriter":
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it tells of each one it tries
        return determine_reader_writer_from_dataset_json(description, str(example))()


def _label_manager(description: dict) -> "LabelManager":
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    return LabelManager(description["labels"], description.get("regions_class_order"))
