"""A SLURM cluster of two nodes on this machine: one controller, two daemons, a core each."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged", "mungekey")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=8000"


def why_not() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"no {', '.join(missing)} here (on Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "starting SLURM's daemons takes root"
    return None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """SLURM, until `stop`.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        port, *ports = free_ports(1 + len(NODES))
        nodes = "\n".join(NODE.format(name=name, host=host, port=one) for name, one in zip(NODES, ports, strict=True))
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(host=host, folder=folder, port=port, nodes=nodes, names=",".join(NODES))
        )
        self.variables = {"SLURM_CONF": str(self.configuration)}
        self._start_munge()
        self._start("slurmctld")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def _start_munge(self):
        if subprocess.run(["pgrep", "-x", "munged"], stdout=subprocess.DEVNULL).returncode == 0:
            return
        if not Path("/etc/munge/munge.key").exists():
            subprocess.run([_program("mungekey")], check=True)
        os.makedirs("/run/munge", exist_ok=True)
        subprocess.run(["chown", "-R", "munge:", "/run/munge", "/etc/munge"], check=False)
        if subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", _program("munged")]).returncode:
            subprocess.run([_program("munged"), "--force"], check=True)

    def _start(self, name: str, *options: str):
        # What they say goes into files: they outlive whoever starts them, and would hold a pipe open.
        with (self.folder / f"{name}.out").open("a") as sink:
            subprocess.run(
                [_program(name), *options, "-f", str(self.configuration)],
                check=True,
                stdout=sink,
                stderr=sink,
                env=os.environ | self.variables,
            )

    def start_node(self, node: str):
        self._start("slurmd", "-N", node)

    def wait_for_nodes(self):
        for _ in range(100):
            states = self.call("sinfo", "--noheader", "--Node", "--format=%T").split()
            if len(states) == len(NODES) and set(states) <= {"idle", "mixed", "allocated", "completing"}:
                return
            time.sleep(0.2)
        raise AssertionError(f"nodes are {states}")

    def call(self, *command: str) -> str:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | self.variables
        ).stdout

    def kill_node(self, node: str):
        """Kills a node's daemon; the controller is told what it would find out in minutes."""
        os.kill(int((self.folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
        self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def stop(self):
        with suppress(subprocess.CalledProcessError):
            self.call("scancel", "--me")
            time.sleep(1)
        for path in self.folder.glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") or name
