import os

import pytest

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.files import made_whole, read_json, remove_unfinished, written_whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.json: no such file; made by planning"),
        (b"{", "a.json: is not JSON .*; made by planning"),
        (b"\xff", "a.json: is not JSON .*; made by planning"),
        (b"[1]", "a.json: must hold a dict, got a list; made by planning"),
    ],
)
def test_what_is_no_json_file_is_told(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "a.json", "made by planning")


def test_a_folder_is_no_json_file(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        read_json(tmp_path)


def test_json_of_the_expected_kind(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", expected=list) == [1]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("earlier")
    with pytest.raises(OSError, match="disk full"), written_whole(path) as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "earlier"
        raise OSError("disk full")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.csv", "earlier")]
    with written_whole(path, newline="") as file:
        file.write("all")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.csv", "all")]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, os.listdir(tmp_path))))
    with written_whole(tmp_path / "a.csv") as file:
        file.write("all")
    ((size, (name,)),) = synced
    assert (size, name[:6], name[-11:]) == (3, ".a.csv", ".unfinished")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    kept = {"a.csv", ".hidden", "b.unfinished", ".folder.unfinished"}
    (tmp_path / ".folder.unfinished").mkdir()
    for name in kept - {".folder.unfinished"} | {".a.csv.7.unfinished"}:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert set(os.listdir(tmp_path)) == kept


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), made_whole(tmp_path / "model") as folder:
        (folder / "plans.json").touch()
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    with made_whole(tmp_path / "above" / "model") as folder:
        (folder / "plans.json").touch()
        assert not (tmp_path / "above" / "model").exists()
    assert os.listdir(tmp_path / "above") == ["model"]
    assert os.listdir(tmp_path / "above" / "model") == ["plans.json"]


def test_an_argument_is_named_with_what_it_got():
    error = ArgumentError("gpu_memory", -1, "must be positive")
    assert (str(error), error.argument) == ("gpu_memory -1: must be positive", "gpu_memory")
    assert isinstance(error, ValueError)
