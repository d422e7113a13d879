"""Runs a command as a container does: without network, rights, or writing but to /tmp and what is said.

Not imported but started, by `unshare --mount --net --pid --fork`, with JSON in its only argument: "root", an empty
folder; "binds", [source, target, whether it is writable] of what is there besides the system without its compilers;
"environment"; "folder" to start in; "command". The command becomes the first process of its namespace, of a user that
has no name, and loopback is its network.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

USER = 54321
SYSTEM = ("bin", "sbin", "lib", "lib64", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc")
COMPILER = re.compile(r"(.*-)?(cc|gcc|clang|tcc|c\+\+|g\+\+|clang\+\+)(-[\d.]+)?")
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main():
    asked = json.loads(sys.argv[1])
    root = Path(asked["root"])
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    for name, mode in (("tmp", 0o1777), ("dev", 0o755), ("dev/shm", 0o1777)):
        (root / name).mkdir()
        mount("-t", "tmpfs", "-o", f"mode={mode:o}", "tmpfs", root / name)
    (root / "proc").mkdir()
    mount("-t", "proc", "proc", root / "proc")
    for name in ("null", "zero", "random", "urandom"):
        bind(f"/dev/{name}", root / "dev" / name, True)
    for name in SYSTEM:
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", root / name, False)
    for source, target, writable in asked["binds"]:
        bind(source, root / target[1:], writable)
    folders = asked["environment"]["PATH"].split(os.pathsep)
    programs = {path.resolve() for folder in folders for path in (root / folder[1:]).glob("*") if path.is_file()}
    for path in programs:
        if COMPILER.fullmatch(path.name):
            mount("--bind", "/dev/null", path)
    mount("-o", "remount,ro", root)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    os.chroot(root)
    os.chdir(asked["folder"])
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)  # which drops all capabilities
    os.execve(asked["command"][0], asked["command"], asked["environment"])


def bind(source, target: Path, writable: bool):
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(source):
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    mount("--bind", source, target)
    if not writable:
        mount("-o", "remount,bind,ro", target)


def mount(*arguments):
    subprocess.run([shutil.which("mount"), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
