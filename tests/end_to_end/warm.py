"""Runs commands in forks of a process that has imported nnU-Net, which takes longer than they do.

Not imported but started. Reads a line of JSON for each command: "command", its path and arguments; "environment";
"log", the file for what it prints; "timeout" in seconds; "kill_after", the seconds after which it and its workers are
killed, or null. Answers with its exit code, negative for a signal. The processes that nnU-Net has spawned are forks
too. Nothing of this package is imported before a command does so.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import runpy
import signal
import sys

import nnunetv2.experiment_planning.plan_and_preprocess_entrypoints
import nnunetv2.inference.predict_from_raw_data
import nnunetv2.run.run_training  # noqa: F401


def main():
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    gc.freeze()  # a fork that collects would copy all there is
    for line in sys.stdin:
        asked = json.loads(line)
        kill_after = asked.pop("kill_after")
        process = fork.Process(target=run, kwargs=asked)
        process.start()
        process.join(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # where it has made no group of its own yet
        process.join()
        print(process.exitcode, flush=True)


def run(command: list[str], environment: dict[str, str], log: str, timeout: int):
    os.setsid()
    signal.alarm(timeout)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # what it prints is there also when it is killed
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
