"""Who works on a task: one process at a time, known to all others by a file alone.

A study runs on several machines, which share nothing but the file system. A claim is a file that is made in one step
or not at all, also on NFS. It is void once its process is gone: on the same machine that can be seen; elsewhere the
file, which its owner touches, grows old.
"""

import json
import os
import signal
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

HEARTBEAT = 20.0  # seconds between two touches
# Seconds after which a claim of another machine is void. Caches of network file systems show a touch late, by a minute
# at most as they are set up by default.
VOID_AFTER = 180.0


def machine() -> str:
    """The running system that process numbers belong to: host, its boot, and the container, if any."""
    boot, namespace = "", ""
    with suppress(OSError):  # Linux has them
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return " ".join(filter(None, (socket.gethostname(), boot, namespace)))


def process_started(pid: int) -> str | None:
    """When a process of this machine began, so that a number given again is told apart; None if it is gone.

    Where there is no /proc, all that is known is that there is such a process: "".
    """
    try:
        # The name, in parentheses, may hold anything. State and start are fields 3 and 22 of the whole.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class Claim:
    """The right to work on a task.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": machine(),
            "processes": {str(os.getpid()): process_started(os.getpid())},
            "job": os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID"),
            "since": time.time(),
        }

    def take(self) -> bool:
        """Takes the task, unless another process works on it; of a void claim, the processes left over are ended."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = self._written()
        try:
            for _ in range(2):
                with suppress(FileExistsError):
                    os.link(own, self.path)
                    return True
                found = read_claim(self.path)
                if found is not None:
                    if is_valid(self.path, found):
                        return False
                    if not self._removed(found):
                        return False
                    end_leftovers(found)
            return False
        finally:
            own.unlink(missing_ok=True)

    def _written(self) -> Path:
        path = self.path.with_name(f".{self.path.name}.{self.content['token']}")
        path.write_text(json.dumps(self.content))
        return path

    def _removed(self, void: dict) -> bool:
        # Between reading and renaming, another may have taken the task: then its claim is put back.
        aside = self.path.with_name(f".{self.path.name}.{self.content['token']}.void")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        try:
            found = read_claim(aside)
            if found is not None and found.get("token") != void.get("token"):
                with suppress(FileExistsError):
                    os.link(aside, self.path)
                return False
            return True
        finally:
            aside.unlink(missing_ok=True)

    def add_process(self, pid: int) -> None:
        """Notes a process that works on the task too, and may outlive this one: it leads a process group."""
        self.content["processes"][str(pid)] = process_started(pid)
        self.content["group"] = pid
        os.replace(self._written(), self.path)

    def touch(self) -> bool:
        """Says that the owner lives; False if another has taken the task, as after this machine was suspended."""
        found = read_claim(self.path)
        if found is None or found.get("token") != self.content["token"]:
            return False
        with suppress(OSError):
            os.utime(self.path)
        return True

    def release(self) -> None:
        """Gives the task back."""
        found = read_claim(self.path)
        if found is not None and found.get("token") == self.content["token"]:
            self.path.unlink(missing_ok=True)


def read_claim(path: Path) -> dict | None:
    """The content of a claim; None if there is none. One that cannot be read is empty, and void."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_valid(path: Path, claim: dict) -> bool:
    """Whether somebody works on the task of a claim."""
    if claim.get("machine") == machine():
        processes = claim.get("processes")
        return isinstance(processes, dict) and any(
            number.isdigit() and started is not None and process_started(int(number)) == started
            for number, started in processes.items()
        )
    try:
        return _file_system_time(path.parent) - path.stat().st_mtime < VOID_AFTER
    except OSError:
        return False


def _file_system_time(folder: Path) -> float:
    # Clocks of machines differ; the file server's is one.
    path = folder / f".{uuid.uuid4().hex}.time"
    try:
        path.touch()
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def end_leftovers(claim: dict) -> None:
    """Ends what a killed training left: nnU-Net's loaders do not notice that it is gone, and run on."""
    group = claim.get("group")
    if not isinstance(group, int) or group <= 1 or claim.get("machine") != machine():
        return
    # As long as a group has members, no new process gets its number: without a leader, the members are the old ones.
    if process_started(group) is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
