import pytest

from nnunet_deconver.demo.output_folder import LOG, MARKER, prepare_output


def test_output_folder_of_somebody_else(tmp_path, refuses):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    words = ["--out", "thesis", "another folder", "--overwrite"]
    refuses(["--out", tmp_path / "thesis"], words)
    refuses(["--out", tmp_path / "thesis" / "chapter.tex"], ["--out", "is a file"])


@pytest.mark.parametrize("out", ["Dataset123_Organ", "Dataset123_Organ/out", "."])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_output_folder_may_not_touch_the_dataset(nifti_dataset, out, overwrite, tmp_path, refuses):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    (tmp_path / MARKER).touch()
    arguments = ["--dataset", folder, "--out", tmp_path / out, *overwrite]
    refuses(arguments, ["--out", "--dataset", "elsewhere"])


def test_prepare_output_removes_only_what_a_demo_writes(tmp_path):
    (tmp_path / "raw" / "Dataset990_Phantom").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "results").symlink_to(elsewhere)
    for name in (LOG, "thesis.tex"):
        (tmp_path / name).touch()
    prepare_output(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARKER, "elsewhere", "thesis.tex"]
    assert (elsewhere / "kept").exists()
