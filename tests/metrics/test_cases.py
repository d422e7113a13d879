import json

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunet_deconver.errors import InputError
from nnunet_deconver.metrics.cases import (
    CaseError,
    CaseFiles,
    DatasetLabels,
    EvaluationError,
    find_images,
    load_case,
    load_image,
    pair_folders,
    pair_folds,
    read_dataset,
)

ROTATED = (0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, 1)


def write_dataset(folder, labels=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"labels": labels or {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"} | changes
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def write(path, voxels=None, spacing=(0.5, 0.6, 3.0), origin=(10, -20, 5), direction=ROTATED):
    image = sitk.GetImageFromArray(np.ones((4, 5, 6), np.uint8) if voxels is None else voxels)
    rank = image.GetDimension()
    image.SetSpacing(spacing[:rank])
    image.SetOrigin(origin[:rank])
    image.SetDirection(direction if rank == 3 else (0.6, -0.8, 0.8, 0.6))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def load(tmp_path, *, dataset=None, same_grid=False, reference=None, prediction=None):
    content = read_dataset(write_dataset(tmp_path, **(dataset or {})), None, tmp_path)
    case = CaseFiles(
        "c", write(tmp_path / "r.nii.gz", **(reference or {})), write(tmp_path / "p.nii.gz", **(prediction or {}))
    )
    return load_case(case, content, same_grid)


@pytest.mark.parametrize(
    ("labels", "changes", "classes", "ignore"),
    [
        ({"background": 0, "organ": 1, "lesion": 2}, {}, {"organ": (1,), "lesion": (2,)}, None),
        ({"background": 0, "organ": 1, "ignore": 2}, {}, {"organ": (1,)}, 2),
        (
            {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
            {"regions_class_order": [1, 2, 3]},
            {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},
            None,
        ),
    ],
    ids=["labels", "ignore label", "regions"],
)
def test_classes_are_those_of_nnunet(tmp_path, labels, changes, classes, ignore):
    dataset = read_dataset(write_dataset(tmp_path, labels, **changes), None, tmp_path)
    assert (dataset.classes, dataset.ignore) == (classes, ignore)
    # Softmax has a channel for the background, regions have one each.
    regions = "regions_class_order" in changes
    assert dataset.channels == len(classes) + (not regions)
    assert list(dataset.channel.values()) == [index + (not regions) for index in range(len(classes))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a dict, got a list"),
        ('{"file_ending": ".png"}', "has no labels; it must be"),
        (
            '{"labels": {"organ": 1}, "file_ending": ".png"}',
            "does not accept its labels: Background label not declared",
        ),
        ('{"labels": {"background": 0, "a": [1, 2]}, "file_ending": ".png"}', "regions_class_order"),
        ('{"labels": {"background": 0}, "file_ending": ".png"}', "has no label but the background"),
        ('{"labels": {"background": 0, "a": 1}, "file_ending": ".xyz"}', "nnU-Net has no reader for it"),
    ],
)
def test_a_bad_dataset_json_is_refused(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_dataset(path, None, tmp_path)


def test_spacing_follows_the_axes(tmp_path):
    reference, prediction, spacing = load(tmp_path)
    assert reference.shape == prediction.shape == (4, 5, 6)
    assert spacing == pytest.approx((3.0, 0.6, 0.5))


@pytest.mark.parametrize("voxels", [np.ones((5, 6), np.uint8), np.ones((1, 5, 6), np.uint8)], ids=["2D", "one slice"])
def test_a_slice_has_two_axes(tmp_path, voxels):
    reference, _, spacing = load(tmp_path, reference={"voxels": voxels}, prediction={"voxels": voxels})
    assert reference.shape == (5, 6)
    assert spacing == pytest.approx((0.6, 0.5))


def test_images_without_spacing_are_measured_in_pixels(tmp_path):
    dataset_json = write_dataset(tmp_path, file_ending=".png")
    for name in ("r.png", "p.png"):
        io.imsave(tmp_path / name, np.eye(5, dtype=np.uint8), check_contrast=False)
    dataset = read_dataset(dataset_json, None, tmp_path)
    assert (dataset.reader, dataset.unit) == (NaturalImage2DIO, "px")
    reference, _, spacing = load_case(CaseFiles("c", tmp_path / "r.png", tmp_path / "p.png"), dataset, False)
    assert (reference.shape, spacing) == ((5, 5), (1, 1))


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_every_reader_sees_the_same_places(tmp_path, reader):
    """A shift by half a voxel along each axis is found; one by rounding is not."""
    changes = {"dataset": {"overwrite_image_reader_writer": reader.__name__}}
    assert (
        read_dataset(write_dataset(tmp_path, **changes["dataset"]), None, tmp_path).reader.__name__ == reader.__name__
    )
    origin = np.array((10, -20, 5))
    for axis in range(3):
        shift = np.array(ROTATED).reshape(3, 3)[:, axis] * (0.5, 0.6, 3.0)[axis]
        load(tmp_path, **changes, prediction={"origin": (origin + 0.005 * shift).tolist()})
        with pytest.raises(CaseError, match="geometry differs, by up to"):
            load(tmp_path, **changes, prediction={"origin": (origin + 0.5 * shift).tolist()})


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize(("axis", "displacement"), [(0, "0.5"), (1, "0.4"), (2, "0.3")])
def test_the_farthest_voxel_says_how_much_grids_differ(tmp_path, reader, axis, displacement):
    """Voxels of another size are the further apart the more of them lie along that axis: 6, 5 and 4."""
    spacing = [0.5, 0.6, 3.0]
    spacing[axis] += 0.1
    with pytest.raises(CaseError, match=f"by up to {displacement} mm"):
        load(
            tmp_path,
            dataset={"overwrite_image_reader_writer": reader.__name__},
            prediction={"spacing": spacing},
        )


def test_a_file_stored_in_another_order_lies_on_the_same_grid(tmp_path):
    """With nnU-Net's reader that reorients, a flipped array with a flipped axis is the same image."""
    nibabel = pytest.importorskip("nibabel")
    dataset = read_dataset(
        write_dataset(tmp_path, overwrite_image_reader_writer="NibabelIOWithReorient"), None, tmp_path
    )
    voxels = np.arange(4 * 5 * 6).reshape(4, 5, 6) % 3
    image = nibabel.Nifti1Image(voxels.astype(np.uint8), np.diag([1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "r.nii.gz")
    nibabel.save(image.as_reoriented([[1, -1], [0, 1], [2, 1]]), tmp_path / "p.nii.gz")
    reference, prediction, _ = load_case(CaseFiles("c", tmp_path / "r.nii.gz", tmp_path / "p.nii.gz"), dataset, False)
    np.testing.assert_array_equal(reference, prediction)


def test_tiffs_are_told_apart_by_trying_a_file(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    dataset_json = write_dataset(tmp_path, file_ending=".tif")
    (tmp_path / "a.tif").write_bytes(b"broken")
    tifffile.imwrite(tmp_path / "b.tif", np.ones((7, 5, 6), np.uint8))
    assert read_dataset(dataset_json, None, tmp_path).reader is Tiff3DIO


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"voxels": np.ones((4, 5, 7), np.uint8)}, r"shapes differ: reference \(4, 5, 6\), prediction \(4, 5, 7\)"),
        ({"voxels": np.ones((5, 6), np.uint8)}, "reference is 3D, prediction 2D"),
        ({"spacing": (1, 1, 1)}, r"spacing \(0.5, 0.6, 3\) in the reference, \(1, 1, 1\) in the prediction; if the"),
        ({"origin": (0, 0, 0)}, r"by up to 22.9 mm: origin \(10, -20, 5\) in the reference, \(0, 0, 0\) in the pred"),
        ({"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, r"direction \(0.6, .*\(1, 0, .*--same-grid"),
        ({"voxels": np.full((4, 5, 6), 7, np.uint8)}, "prediction has labels 7; dataset.json allows 0, 1, 2"),
        ({"voxels": np.full((4, 5, 6), 0.5, np.float32)}, "has values that are not whole numbers"),
    ],
    ids=["shape", "rank", "spacing", "origin", "direction", "labels", "no labels"],
)
def test_what_is_wrong_with_a_prediction_is_said(tmp_path, prediction, message):
    with pytest.raises(CaseError, match=message):
        load(tmp_path, prediction=prediction)


def test_the_ignore_label_belongs_into_references_alone(tmp_path):
    dataset = {"labels": {"background": 0, "organ": 1, "ignore": 2}}
    ignored = {"voxels": np.full((4, 5, 6), 2, np.uint8)}
    load(tmp_path, dataset=dataset, reference=ignored)
    with pytest.raises(CaseError, match=r"prediction has labels 2; dataset.json allows 0, 1"):
        load(tmp_path, dataset=dataset, prediction=ignored)


def test_same_grid_takes_the_references_geometry(tmp_path):
    elsewhere = {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
    assert load(tmp_path, prediction=elsewhere, same_grid=True)[2] == pytest.approx((3.0, 0.6, 0.5))


@pytest.mark.parametrize("content", [b"", b"not a file of any format"])
def test_an_unreadable_file_is_named(tmp_path, content, capfd):
    dataset = read_dataset(write_dataset(tmp_path), None, tmp_path)
    write(tmp_path / "r.nii.gz")
    (tmp_path / "p.nii.gz").write_bytes(content)
    with pytest.raises(
        CaseError, match=r"prediction .*p.nii.gz ((cannot be read|is cut short or corrupt)|is cut short or corrupt)"
    ):
        load_case(CaseFiles("c", tmp_path / "r.nii.gz", tmp_path / "p.nii.gz"), dataset, False)


def test_colors_are_no_labels(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path, file_ending=".png"), None, tmp_path)
    io.imsave(tmp_path / "r.png", np.ones((5, 5, 3), np.uint8), check_contrast=False)
    with pytest.raises(CaseError, match="has 3 channels; a segmentation has one"):
        load_case(CaseFiles("c", tmp_path / "r.png", tmp_path / "r.png"), dataset, False)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pairs_by_name(tmp_path):
    references, predictions = tmp_path / "gt", tmp_path / "pred"
    touch(*(references / f"{name}.nii.gz" for name in "abc"), references / "dataset.json")
    touch(*(predictions / f"{name}.nii.gz" for name in "bcd"), predictions / "b.npz", predictions / "summary.json")
    pairs, missing, extra = pair_folders(references, predictions, ".nii.gz")
    assert pairs == [CaseFiles(name, references / f"{name}.nii.gz", predictions / f"{name}.nii.gz") for name in "bc"]
    assert missing == {"a": f"no prediction: {predictions / 'a.nii.gz'}"}
    assert extra == {"d": f"no reference: {references / 'd.nii.gz'}"}


def test_folders_without_segmentations_are_refused(tmp_path):
    touch(tmp_path / "gt" / "a.nii.gz", tmp_path / "pred" / "a.png")
    with pytest.raises(EvaluationError, match="nowhere: no such folder"):
        pair_folders(tmp_path / "gt", tmp_path / "nowhere", ".nii.gz")
    with pytest.raises(EvaluationError, match=r"pred: has no file that ends with .nii.gz, the file_ending of"):
        pair_folders(tmp_path / "gt", tmp_path / "pred", ".nii.gz")


def model_folder(tmp_path, **folds):
    touch(*(tmp_path / "gt" / f"{name}.png" for name in "abcd"))
    for fold, names in folds.items():
        (tmp_path / "model" / fold / "validation").mkdir(parents=True)
        touch(*(tmp_path / "model" / fold / "validation" / f"{name}.png" for name in names))
    (tmp_path / "splits.json").write_text(json.dumps([{"val": ["a", "b"]}, {"val": ["c"]}, {"val": ["d"]}]))
    return tmp_path / "model", tmp_path / "gt", ".png"


def test_pairs_of_folds(tmp_path):
    """Of folds that are there, cases that the split lists and the fold has not are missing; fold_all does not count."""
    arguments = model_folder(tmp_path, fold_0="b", fold_1="c", fold_all="abcd")
    pairs, missing, extra = pair_folds(*arguments, tmp_path / "splits.json")
    assert [(case.name, case.prediction.parts[-3]) for case in pairs] == [("b", "fold_0"), ("c", "fold_1")]
    assert list(missing) == ["a"]
    assert extra == {}
    assert pair_folds(*arguments, None)[1] == {}


def test_a_case_of_two_folds_is_refused(tmp_path):
    pairs, _, extra = pair_folds(*model_folder(tmp_path, fold_0="ab", fold_1="bc", fold_2="bx"), None)
    assert [case.name for case in pairs] == ["a", "c"]
    assert extra["b"] == "predicted by more than one fold, fold_0 and fold_1; delete the stale prediction"
    assert extra["x"].startswith("no reference")


def test_a_model_without_cross_validation_is_refused(tmp_path):
    arguments = model_folder(tmp_path, fold_all="ab")
    with pytest.raises(EvaluationError, match="fold_all does not count, it was trained on all cases"):
        pair_folds(*arguments, None)


# Images beside the segmentations


def test_the_channels_of_a_case_and_of_no_other_are_found(tmp_path):
    for name in ("a_0000", "a_0001", "a_0001_0000", "ab_0000", "a_00000", "a"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_images("a", [tmp_path / "no folder", tmp_path], ".nii.gz")
    assert [path.name for path in found] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    with pytest.raises(CaseError, match=r"no image c_0000.nii.gz: looked in .*; name the folder: --images FOLDER"):
        find_images("c", [tmp_path], ".nii.gz")


# The same head, as files hold it: x, y, z of the array run to the left, back and head in "LPS".
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SRA"])
def test_slices_are_turned_as_radiologists_see_them(tmp_path, axes, reader):
    # z, y, x from head to feet, front to back, right to left
    expected = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    image = sitk.GetImageFromArray(expected)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    sitk.WriteImage(sitk.DICOMOrient(image, axes), str(tmp_path / "a_0000.nii.gz"))
    dataset = DatasetLabels({}, (), None, ".nii.gz", reader, "mm")
    voxels, properties = dataset.reader().read_images([str(tmp_path / "a_0000.nii.gz")])
    loaded, turning = load_image([tmp_path / "a_0000.nii.gz"], dataset, voxels.shape[1:])
    np.testing.assert_array_equal(turning.turn(loaded), expected[None])
    np.testing.assert_allclose(turning.turn_spacing(properties["spacing"]), (3, 2, 1))


def test_images_without_axes_of_a_patient_stay_as_they_are(tmp_path):
    io.imsave(tmp_path / "a_0000.png", np.arange(12, dtype=np.uint8).reshape(3, 4), check_contrast=False)
    dataset = DatasetLabels({}, (), None, ".png", NaturalImage2DIO, "px")
    loaded, turning = load_image([tmp_path / "a_0000.png"], dataset, (3, 4))
    np.testing.assert_array_equal(turning.turn(loaded)[0, 0], np.arange(12).reshape(3, 4))
    with pytest.raises(CaseError, match=r"shapes differ: reference \(1, 4, 3\), image .*a_0000.png \(1, 3, 4\)"):
        load_image([tmp_path / "a_0000.png"], dataset, (4, 3))
    (tmp_path / "b_0000.png").write_bytes(b"no image")
    with pytest.raises(CaseError, match=r"image .*b_0000.png cannot be read"):
        load_image([tmp_path / "b_0000.png"], dataset, (4, 3))
