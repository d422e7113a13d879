"""The comparison of two installations finds what differs, with commands that only pretend."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKE = """#!/bin/bash
[ "$1" = trainer-path ] && {{ echo {folder}/package/shim; exit; }}
{body}
"""
BODY = 'echo "$PWD $1"; mkdir -p out; echo "{}" > out/a.json; echo "took 1:02<0:03]" >&2; exit 2'


@pytest.fixture
def compare(tmp_path):
    """A function of two commands' bodies and wanted differences: the exit code, and what was printed."""

    def run(old: str, new: str, wanted: str = "") -> tuple[int, str]:
        for name, body in (("old", old), ("new", new)):
            command = tmp_path / name / "bin" / "nnunet-deconver"
            command.parent.mkdir(parents=True)
            command.write_text(FAKE.format(folder=tmp_path / name, body=body))
            command.chmod(0o755)
        cases = "A=word\n[plan]\n# none\nnnunet-deconver $A\n[list]\nnnunet-deconver list\n"
        (tmp_path / "cases.txt").write_text(cases)
        (tmp_path / "wanted.txt").write_text(wanted)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "given.txt").touch()
        done = subprocess.run(
            [
                *(sys.executable, ROOT / "tools" / "compare_commands.py", tmp_path / "old" / "bin"),
                *(tmp_path / "new" / "bin", "--cases", tmp_path / "cases.txt", "--wanted", tmp_path / "wanted.txt"),
                *("--data", tmp_path / "data", "--work", tmp_path / "work"),
            ],
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    return run


def test_commands_that_do_the_same_are_the_same(compare):
    """Each has its own folder and time, another number of progress bars, and a picture that is none."""
    old, new = (
        f"printf '{bars}100%%\\n' >&2; echo $0; date '+%F %T.%N log_%Y_%m_%d_%H_%M_%S'; "
        f"mkdir out; echo no > out/a.png; {BODY}"
        for bars in ("10%%\\r", "20%%\\r90%%\\r")
    )
    code, output = compare(old, new)
    assert code == 0, output
    assert "2 cases, 0 differ, 0 of them not as wanted" in output


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("exit 2", "exit 1", ["--- exit code", "-2", "+1"]),
        ('echo "$PWD $1"', 'echo "$PWD: $1"', ["--- stdout", "-<data> word", "+<data>: word"]),
        ('echo "took', 'echo "it took', ["--- stderr", "-took <progress>", "+it took <progress>"]),
        ('"{}"', '"[]"', ["--- file out/a.json", "-{}", "+[]"]),
        ("a.json", "b.json", ["--- files", "-wrote out/a.json", "+wrote out/b.json"]),
        ("exit 2", "rm given.txt; exit 2", ["--- files", "+removed given.txt"]),
        ("exit 2", "echo more > given.txt; exit 2", ["--- files", "+changed given.txt"]),
    ],
    ids=["exit code", "stdout", "stderr", "content", "name", "removed", "changed"],
)
def test_a_difference_is_found_and_printed(before, after, lines, compare):
    code, output = compare(BODY, BODY.replace(before, after))
    assert code == 1
    assert set(lines) <= set(output.splitlines()), output
    assert "$ nnunet-deconver $A" in output.splitlines()
    assert "2 cases, 2 differ, 2 of them not as wanted" in output


def test_what_is_wanted_is_no_error_and_has_a_reason(compare):
    wanted = "# as in other commands\n^plan: exit code: [-+]\n"
    code, output = compare(BODY, BODY.replace("exit 2", "exit 1"), wanted)
    assert code == 1
    assert "2 lines wanted: as in other commands (^plan: exit code: [-+])" in output
    assert "2 cases, 2 differ, 1 of them not as wanted" in output
    assert "= list" in output
    assert "= plan" not in output


def test_every_command_is_compared():
    cases = (ROOT / "tools" / "compare_commands_cases.txt").read_text()
    done = subprocess.run([sys.executable, "-m", "nnunet_deconver", "--help"], capture_output=True, text=True)
    commands = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line[4] != " "]
    assert "status" in commands
    assert [command for command in commands if f"nd {command} --help" not in cases] == []
