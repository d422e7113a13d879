"""What changed between two runs is told from what merely was measured again."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare_runs.py"
spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
compare_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare_runs)

HEADER = "network,ms,times_faster,quartiles,parameters,step / the same"


def write(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_ratios_change_where_their_quartiles_lie_apart(tmp_path):
    old = write(tmp_path / "old.csv", "a,10,1.2,1.10 to 1.25,5,1.0", "b,10,1.2,1.10 to 1.25,5,1.0")
    new = write(tmp_path / "new.csv", "a,90,1.4,1.30 to 1.50,5,1.3", "b,90,1.3,1.20 to 1.50,6,1.3")
    assert compare_runs.report(old, new) == [
        "a: times_faster: 1.2 (1.1 to 1.25) -> 1.4 (1.3 to 1.5)",
        "b: parameters: 5 -> 6",
        "1 ratios are not told apart: their quartiles overlap",
    ]


def test_quartiles_in_two_columns(tmp_path):
    header = "variant,step_time_ratio,quartile_low,quartile_high"
    old = write(tmp_path / "old.csv", "dtc,1.2,1.1,1.3", "linear,1.0,0.9,1.1", header=header)
    new = write(tmp_path / "new.csv", "dtc,1.05,1.0,1.08", "linear,1.1,1.0,1.2", header=header)
    assert compare_runs.report(old, new) == [
        "dtc: step_time_ratio: 1.2 (1.1 to 1.3) -> 1.05 (1 to 1.08)",
        "1 ratios are not told apart: their quartiles overlap",
    ]


def test_rows_that_come_and_go_and_what_they_were_measured_on(tmp_path):
    old, new = (write(tmp_path / f"{name}.csv", f"{name},1,1,1 to 1,5,1") for name in ("old", "new"))
    for path, commit in ((old, "abc"), (new, "def")):
        path.with_suffix(".json").write_text(json.dumps({"commit": commit, "torch": "2.15.0"}))
    assert compare_runs.report(old, new) == ["commit: abc -> def", "old: gone", "new: new"]


def test_the_same_and_what_numbers_name(tmp_path):
    old = write(tmp_path / "old.csv", "a,3,32,7", "a,5,32,8", header="kernel,size,threads,registers")
    assert compare_runs.report(old, old) == ["nothing changed"]
    new = write(tmp_path / "new.csv", "a,3,32,7", "a,5,32,9", header="kernel,size,threads,registers")
    assert compare_runs.report(old, new) == ["a, 5: registers: 8 -> 9"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1\n", b"a\nx\nx\n"])
def test_what_is_no_result(tmp_path, monkeypatch, capsys, content):
    (tmp_path / "bad.csv").write_bytes(content)
    for path in (tmp_path / "bad.csv", tmp_path / "missing.csv"):
        monkeypatch.setattr("sys.argv", ["compare_runs.py", str(path), str(path)])
        assert compare_runs.main() == 2
        assert f"error: {path}" in capsys.readouterr().err
