"""A small synthetic dataset in nnU-Net's raw format, for `nnunet-deconver demo`.

Bodies of random smooth shape with two organs of overlapping intensity: a large one, whose dark lesions are a class of
their own, and a pair of small ones. Loops of bowel are as bright as the organs, their lumen and the cysts of the small
organs as dark as the lesions, and blur, noise and a bias field do the rest: what a voxel is depends on its
surroundings.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, gaussian_filter

LABELS = {"background": 0, "large organ": 1, "small organs": 2, "lesion": 3}
SPACING_MM = 2.0
FEWEST_VOXELS, MOST_VOXELS = 40, 48  # along an axis


def write_dataset(folder: Path, *, training: int, held_out: int, seed: int = 0) -> None:
    """Writes the dataset: imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

    Args:
        folder: its folder, named Dataset<three digits>_<name>, which must not have these folders yet.
        training: number of cases to train with.
        held_out: number of test cases.
        seed: of the first case; case i depends on seed + i alone.
    """
    for split, numbers in (("Tr", range(training)), ("Ts", range(training, training + held_out))):
        images, labels = folder / f"images{split}", folder / f"labels{split}"
        images.mkdir(parents=True)
        labels.mkdir()
        for number in numbers:
            image, truth = make_case(seed + number)
            _write(image, images / f"phantom_{number:03d}_0000.nii.gz")
            _write(truth, labels / f"phantom_{number:03d}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": training, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def make_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One phantom.

    Args:
        seed: two calls with the same one return the same phantom.

    Returns:
        Image (z, y, x) in float32 and labels of the same shape in uint8.
    """
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(FEWEST_VOXELS, MOST_VOXELS + 1, size=3))
    # Coordinates from -1 to 1 along every axis, bent by a smooth random field, in which every ellipsoid becomes a
    # shape of its own.
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    grid = [axis + 0.06 * _smooth_noise(rng, shape, sigma=6) for axis in axes]
    tissue, labels = np.zeros(shape), np.zeros(shape, np.uint8)

    def jitter(values: Sequence[float] | np.ndarray, spread: float) -> np.ndarray:
        return np.asarray(values) + rng.uniform(-spread, spread, size=3)

    def ellipsoid(center: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.sum([((x - c) / r) ** 2 for x, c, r in zip(grid, center, radii, strict=True)], axis=0) < 1

    def ring(center: np.ndarray, radius: float, thickness: float) -> np.ndarray:
        z, y, x = (axis - c for axis, c in zip(grid, center, strict=True))
        return (np.hypot(y, x) - radius) ** 2 + z**2 < thickness**2

    def paint(mask: np.ndarray, intensity: float, label: int) -> None:
        tissue[mask] = intensity + rng.normal(0, 0.02)
        labels[mask] = label

    inside = ellipsoid((0, 0, 0), (1.7, 0.78, 0.84))
    paint(ellipsoid((0, 0, 0), (1.8, 0.90, 0.95)), 0.85, 0)  # skin and fat
    paint(inside, 0.38, 0)
    # Left and right are drawn: nnU-Net mirrors its training images, so sides mean nothing.
    side = rng.choice((-1, 1))
    for height in (-0.55, 0.0, 0.55):
        center, radius = jitter((height, -0.25, -0.42 * side), 0.08), rng.uniform(0.20, 0.28)
        paint(inside & ring(center, radius, 0.15), 0.62, 0)  # bowel
        paint(inside & ring(center, radius, 0.06), 0.40, 0)  # its lumen
    large = inside & ellipsoid(jitter((0, -0.15, 0.40 * side), 0.08), jitter((0.70, 0.50, 0.40), 0.06))
    paint(large, 0.62, 1)
    for kidney in (-1, 1):
        center, radii = jitter((0, 0.40, 0.46 * kidney), 0.05), jitter((0.45, 0.22, 0.22), 0.03)
        paint(inside & ellipsoid(center, 1.25 * radii), 0.80, 0)  # fat around it
        paint(inside & ellipsoid(center, radii), 0.60, 2)
        paint(inside & ellipsoid(jitter(center, 0.05), 0.45 * radii), 0.40, 2)  # cyst
    paint(ellipsoid(jitter((0, 0.50, 0), 0.03), (2.0, 0.17, 0.15)), 1.0, 0)  # spine
    for radius in rng.uniform(2.5, 4.0, size=rng.integers(2, 5)):
        # Inside the organ with a margin: a dark spot at its border could as well be the tissue around it.
        depth = np.asarray(distance_transform_edt(labels == 1))
        radius = min(radius, (depth.max() - 2) / 1.2)
        middle = rng.choice(np.argwhere(depth > 1.2 * radius + 1.5)) + rng.uniform(-0.5, 0.5, size=3)
        radii = radius * rng.uniform(0.8, 1.2, size=3)
        offsets = [(i - m) / r for i, m, r in zip(np.indices(shape), middle, radii, strict=True)]
        paint(np.sum(np.square(offsets), axis=0) < 1, 0.42, 3)

    image = gaussian_filter(tissue, 0.7)  # partial volume
    image *= np.exp(0.12 * _smooth_noise(rng, shape, sigma=12))  # bias field of the coil
    image += rng.normal(0, 0.05, size=shape)
    return (1000 * image).astype(np.float32), labels


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    noise = gaussian_filter(rng.normal(size=shape), sigma)
    return noise / noise.std()


def _write(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((SPACING_MM,) * 3)
    sitk.WriteImage(image, str(path), True)
