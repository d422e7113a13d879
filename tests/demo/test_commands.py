import os
import signal
import sys
import time
from pathlib import Path

import pytest

from nnunet_deconver.demo.commands import run_command
from nnunet_deconver.errors import InputError


def run_python(code, log, on_line=None):
    run_command([Path(sys.executable).name, "-u", "-c", code], dict(os.environ), log, on_line)


def test_command_is_shown_and_its_output_logged(tmp_path, capsys):
    lines = []
    run_python("import sys; print('out'); print('err', file=sys.stderr)", tmp_path / "log", lines.append)
    assert f"$ {Path(sys.executable).name} -u -c " in capsys.readouterr().out
    assert lines == ["out", "err"]
    run_python("print('second')", tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert log.index("out\nerr") < log.index("second")


def test_failing_command_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(InputError, match="exit code 3") as error:
        run_python("for i in range(99): print('line', i)\nexit(3)", tmp_path / "log")
    assert "line 98" in str(error.value)
    assert "line 50" not in str(error.value)
    assert str(tmp_path / "log") in str(error.value)
    assert "line 0\n" in (tmp_path / "log").read_text()


def test_missing_command(tmp_path):
    with pytest.raises(InputError, match="nnUNetv2_fly is not installed"):
        run_command(["nnUNetv2_fly"], {}, tmp_path / "log")


# Starts a worker that shares its output, and prints both process ids.
WITH_WORKER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(os.getpid(), worker.pid)
"""


def assert_ended(pids, seconds=20):
    def running(pid):
        try:
            return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(map(running, pids))


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where these tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


needs_proc = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit], ids=["Ctrl-C", "kill"])
def test_interrupt_ends_the_command_and_its_workers(end, tmp_path, interruptible):
    pids = []

    def interrupt(line):
        pids.extend(map(int, line.split()))
        os.kill(os.getpid(), signal.SIGINT if end is KeyboardInterrupt else signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(end):
        run_python(WITH_WORKER + "time.sleep(99)", tmp_path / "log", interrupt)
    assert_ended(pids)
    assert signal.getsignal(signal.SIGTERM) == handler


@needs_proc
def test_workers_of_a_killed_command_do_not_keep_the_demo_waiting(tmp_path):
    pids = []
    start = time.monotonic()
    with pytest.raises(InputError, match="exit code -9"):
        run_python(
            WITH_WORKER + "os.kill(os.getpid(), 9)", tmp_path / "log", lambda line: pids.extend(map(int, line.split()))
        )
    assert time.monotonic() - start < 60
    assert_ended(pids)
