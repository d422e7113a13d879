"""Image files that are cut short or corrupt, and segmentations that hold no labels: what nnU-Net's readers let pass.

SimpleITK fills up with zeros what a truncated NIfTI file or a corrupt MetaImage lacks, and nnU-Net's reader turns a
label that is not a number into 0.
"""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# Read at once while a file is gone through.
_PIECE = 1 << 20


def check_image_file(path: Path) -> None:
    """Raises ValueError if a file is cut short or corrupt, or has no spacing, as far as its format lets one tell.

    Args:
        path: of an image. Of NIfTI, gzip and MetaImage files the length is checked, and the checksum where there is
            one; others are left to their readers, which notice.
    """
    if not path.exists():  # its reader says so
        return
    if not path.is_file():
        raise ValueError("is not a file")
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        _check_nifti(path, name.endswith(".gz"))
    elif name.endswith(".gz"):
        _gunzip(path)
    elif name.endswith(".mha"):
        _check_compressed_metaimage(path)


def _gunzip(path: Path, first: int = 0) -> tuple[bytes, int]:
    """The first bytes of what is in a gzip file, and the length of all of it, whose checksum is compared."""
    start, length = b"", 0
    try:
        with gzip.open(path) as file:
            while piece := file.read(_PIECE):
                start += piece[: first - len(start)]
                length += len(piece)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"is cut short or corrupt ({' '.join(str(error).split())}); copy or make it again") from error
    return start, length


def _check_nifti(path: Path, compressed: bool) -> None:
    """Compares a NIfTI file's length with what its header says, and looks at its spacing (nifti1.h, nifti2.h)."""
    if compressed:
        header, length = _gunzip(path, 540)
    else:
        with path.open("rb") as file:
            header = file.read(540)
        length = path.stat().st_size
    for order in "<>":
        if header[:4] == struct.pack(f"{order}i", 348) and len(header) >= 348:
            dim = struct.unpack_from(f"{order}8h", header, 40)
            (bits,) = struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
            spacing = struct.unpack_from(f"{order}8f", header, 76)
        elif header[:4] == struct.pack(f"{order}i", 540) and len(header) >= 540:
            dim = struct.unpack_from(f"{order}8q", header, 16)
            (bits,) = struct.unpack_from(f"{order}h", header, 14)
            (offset,) = struct.unpack_from(f"{order}q", header, 168)
            spacing = struct.unpack_from(f"{order}8d", header, 104)
        else:
            continue
        rank = dim[0] if 0 <= dim[0] <= 7 else 0
        expected = math.prod(max(size, 1) for size in dim[1 : rank + 1]) * bits // 8
        if math.isfinite(offset) and length < int(offset) + expected:
            raise ValueError(
                f"is cut short: has {length} of the {int(offset) + expected} bytes that its header says; copy or make "
                "it again"
            )
        spacing = spacing[1 : min(rank, 3) + 1]
        if not all(0 < size < math.inf for size in spacing):
            raise ValueError(
                f"has the spacing {', '.join(f'{size:g}' for size in spacing)}, for which readers put what they like; "
                "write it with the right one"
            )
        return
    # Neither: its reader says what it thinks of it.


def _check_compressed_metaimage(path: Path) -> None:
    with path.open("rb") as file:
        content = file.read()
    header = re.match(rb"(?:[^\n]*\n){1,100}?ElementDataFile = LOCAL\r?\n", content)
    if header is None or not re.search(rb"CompressedData = True", header[0]):
        return
    try:
        zlib.decompress(content[header.end() :])
    except zlib.error as error:
        raise ValueError(f"is corrupt ({error}); copy or make it again") from error


def check_whole_numbers(path: Path) -> None:
    """Raises ValueError if a file of numbers that need not be whole holds some that are not, NaN or infinite.

    Args:
        path: of a segmentation. Only files that SimpleITK knows are looked at.
    """
    voxels = _fractions(path)
    if voxels is not None and not (np.isfinite(voxels).all() and np.array_equal(np.rint(voxels), voxels)):
        raise ValueError("has values that are not whole numbers; a segmentation holds labels")


def _fractions(path: Path) -> np.ndarray | None:
    """The voxels of an image, if they need not be whole numbers."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        # SimpleITK makes 0 of what is not a number in a NIfTI file.
        import nibabel

        try:
            image: Any = nibabel.load(path)  # of the class its content says
            scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
            return np.asanyarray(image.dataobj) if scaled or image.get_data_dtype().kind == "f" else None
        except Exception:  # its reader says more
            return None
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetPixelIDValue() not in (sitk.sitkFloat32, sitk.sitkFloat64):
            return None
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:  # not one of SimpleITK's formats: its own reader says more
        return None
