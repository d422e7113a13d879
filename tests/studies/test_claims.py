"""One process works on a task at a time, and what a killed one left is taken over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_deconver.studies import claims
from nnunet_deconver.studies.claims import Claim, end_leftovers, is_valid, process_started, read_claim


@pytest.fixture
def path(tmp_path):
    return tmp_path / "task" / "running.json"


def of(path, **changes):
    """A claim of another process, of this machine unless it says otherwise."""
    claim = Claim(path)
    claim.content |= {"token": "another", "processes": {"999999999": "1"}} | changes
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(claim.content))
    return claim


def test_one_takes_it_and_gives_it_back(path):
    first, second = Claim(path), Claim(path)
    assert first.take()
    assert not second.take()
    second.release()  # which is not its own
    assert path.exists() and not second.touch() and first.touch()
    first.release()
    assert second.take()
    assert [each.name for each in path.parent.iterdir()] == ["running.json"]


def test_a_dead_process_loses_it(path):
    of(path)
    assert Claim(path).take()


def test_a_number_given_to_another_process_is_told_apart(path):
    assert process_started(os.getpid())
    of(path, processes={str(os.getpid()): "12345"})
    assert Claim(path).take()


def test_the_training_may_outlive_the_study(path):
    process = subprocess.Popen(["sleep", "100"], start_new_session=True)
    of(path, processes={"999999999": "1", str(process.pid): process_started(process.pid)})
    assert not Claim(path).take()
    process.kill()
    process.wait()
    assert Claim(path).take()


def test_a_zombie_does_not_count(path):
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # which leaves it a zombie
    assert process_started(process.pid) is None
    process.wait()


def test_another_machine_keeps_it_as_long_as_it_answers(path):
    of(path, machine="elsewhere")
    assert not Claim(path).take()
    past = time.time() - claims.VOID_AFTER - 1
    os.utime(path, (past, past))
    assert Claim(path).take()


def test_the_clock_is_the_file_systems(path, monkeypatch):
    of(path, machine="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 4e9)  # a machine whose clock is wrong
    assert is_valid(path, read_claim(path))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": 3, "processes": 4}', "\udcff"])
def test_a_damaged_claim_is_void(path, content):
    path.parent.mkdir()
    path.write_bytes(content.encode(errors="surrogateescape"))
    past = time.time() - claims.VOID_AFTER - 1
    os.utime(path, (past, past))
    assert Claim(path).take()


def test_who_takes_a_void_claim_does_not_remove_a_new_one(path, monkeypatch):
    """Both read the void claim; the other is faster."""
    of(path)
    other, valid = Claim(path), claims.is_valid

    def slow(path, claim):
        monkeypatch.setattr(claims, "is_valid", valid)
        assert other.take()
        return False

    monkeypatch.setattr(claims, "is_valid", slow)
    assert not Claim(path).take()
    assert read_claim(path)["token"] == other.content["token"]


def test_many_at_once(path):
    """Of 20 processes that want what a dead one had, one gets it."""
    of(path)
    code = (
        "import sys, time; from pathlib import Path; from nnunet_deconver.studies.claims import Claim\n"
        "claim = Claim(Path(sys.argv[1])); sys.stdin.readline(); print(claim.take(), flush=True); sys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) for _ in range(20)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert sorted(taken) == ["False"] * 19 + ["True"]


def test_what_a_killed_training_left_is_ended(path):
    """Its loaders, which are of its group, and nothing else."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '100']).pid, flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)
    loader = int(leader.stdout.readline())
    claim = of(path, group=leader.pid)
    end_leftovers(claim.content)
    assert process_started(loader)  # its leader lives
    leader.kill()
    leader.wait()
    end_leftovers(claim.content | {"machine": "elsewhere"})
    assert process_started(loader)
    assert Claim(path).take()
    for _ in range(100):
        if process_started(loader) is None:
            break
        time.sleep(0.05)
    else:
        os.kill(loader, signal.SIGKILL)
        raise AssertionError("the loader runs on")
