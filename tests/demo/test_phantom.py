import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver.demo import phantom, run
from nnunet_deconver.demo.dataset import RawData
from nnunet_deconver.demo.dice import best_threshold_dice, mean_dice


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "Dataset990_Phantom"
    phantom.write_dataset(folder, training=4, held_out=8)
    return folder


def test_the_same_seed_gives_the_same_case():
    (image, labels), (again, labels_again) = phantom.make_case(5), phantom.make_case(5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)


def test_other_seeds_give_other_cases():
    cases = [phantom.make_case(seed)[1] for seed in range(6)]
    assert len({labels.shape for labels in cases}) > 1
    assert len({labels.tobytes() for labels in cases}) == len(cases)


def test_a_case_does_not_depend_on_the_number_of_cases(tmp_path, folder):
    phantom.write_dataset(tmp_path, training=2, held_out=1)
    for path in ("imagesTr/phantom_001_0000.nii.gz", "labelsTr/phantom_001.nii.gz"):
        assert np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(str(f / path))) for f in (tmp_path, folder)))


@pytest.mark.parametrize("split", ["Tr", "Ts"])
def test_image_and_label_share_their_geometry(folder, split):
    labels = sorted((folder / f"labels{split}").iterdir())
    assert len(labels) == len(list((folder / f"images{split}").iterdir())) == {"Tr": 4, "Ts": 8}[split]
    for label in labels:
        image = folder / f"images{split}" / label.name.replace(".nii.gz", "_0000.nii.gz")
        geometries = [
            (file.GetSize(), file.GetSpacing(), file.GetOrigin(), file.GetDirection())
            for file in (sitk.ReadImage(str(image)), sitk.ReadImage(str(label)))
        ]
        assert geometries[0] == geometries[1]
        size, spacing, *_ = geometries[0]
        assert all(phantom.FEWEST_VOXELS <= n <= phantom.MOST_VOXELS for n in size)
        assert spacing == (phantom.SPACING_MM,) * 3


def test_nnunet_accepts_it(folder):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 4
    verify_dataset_integrity(str(folder), num_processes=1)


@pytest.mark.parametrize("seed", range(run.PHANTOM_TRAINING + run.PHANTOM_HELD_OUT))
def test_every_case_has_every_class(seed):
    image, labels = phantom.make_case(seed)
    assert np.isfinite(image).all()
    assert labels.shape == image.shape
    voxels = np.bincount(labels.ravel(), minlength=4)
    assert len(voxels) == 4
    assert voxels[0] > voxels[1] > voxels[2] > voxels[3] > 50


def test_lesions_lie_within_the_large_organ():
    from scipy.ndimage import binary_dilation

    for seed in range(run.PHANTOM_TRAINING + run.PHANTOM_HELD_OUT):
        _, labels = phantom.make_case(seed)
        around = labels[binary_dilation(labels == 3)]
        assert set(np.unique(around)) <= {1, 3}


def test_the_organs_overlap_in_intensity():
    overlaps = []
    for seed in range(10):
        image, labels = phantom.make_case(seed)
        low, high = np.percentile(image[labels == 1], (10, 90))
        overlaps.append(((image[labels == 2] > low) & (image[labels == 2] < high)).mean())
    assert np.mean(overlaps) > 0.5


def test_thresholds_cannot_solve_it(folder):
    dice = best_threshold_dice(RawData(folder))
    means = {name: mean_dice(cases.values()) for name, cases in dice.items()}
    assert list(means) == ["large organ", "small organs", "lesion"]
    assert max(means.values()) < 0.6
    assert mean_dice(means.values()) < 0.3
