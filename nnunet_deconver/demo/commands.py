"""Runs nnU-Net's commands: shown, logged, and ended with the demo."""

import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.commands import end_group, find_program


def run_command(
    command: list[str], environment: dict[str, str], log: Path, on_line: Callable[[str], None] | None = None
) -> None:
    """Runs a command of nnU-Net's, with its output in a log.

    Args:
        command: its name, as installed beside this Python, and arguments.
        environment: its variables.
        log: file to append to.
        on_line: called with each line of output.

    Raises:
        InputError: if it is not installed or fails.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    program = find_program(command[0])
    start, last_lines = time.monotonic(), deque(maxlen=15)
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"$ {shlex.join(command)}\n")
        sink.flush()
        beginning = log.stat().st_size
        # A file, not a pipe: workers that outlive their parent would hold a pipe open, and the wait would never end.
        process = subprocess.Popen(
            [program, *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with _ending_with_this_block(process), log.open(encoding="utf-8", errors="replace") as output:
        output.seek(beginning)
        unfinished, running = "", True
        while running:
            running = process.poll() is None
            *lines, unfinished = (unfinished + output.read()).split("\n")
            for line in lines:
                if line.strip():
                    last_lines.append(line)
                if on_line:
                    on_line(line)
            if running:
                time.sleep(0.1)
    if process.returncode:
        ending = "\n  ".join((*last_lines, unfinished))
        raise InputError(
            f"{command[0]} failed with exit code {process.returncode}. The end of its log:\n  {ending}\n"
            f"The whole log: {log}"
        )
    print(f"  {minutes(time.monotonic() - start)}", flush=True)


@contextmanager
def _ending_with_this_block(process: subprocess.Popen) -> Iterator[None]:
    """Ends the process group that the process leads, whichever way the block is left: Ctrl-C and kill included."""

    def terminated(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    handler = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        end_group(process)
        signal.signal(signal.SIGTERM, handler)


def minutes(seconds: float) -> str:
    """A duration, to print."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
