"""The installed packages as something that can be installed elsewhere: exact versions, and wheels."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from email import message_from_string
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from nnunet_deconver.errors import InputError

LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
# Built for one CUDA; what they alone need comes with them, in the versions that their releases ask for.
OF_TORCH = ("torch", "torchvision")
# What an installer adds to the files of a wheel.
OF_THE_INSTALLER = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")


def installed_distribution(name: str) -> metadata.Distribution | None:
    """An installed distribution, or None."""
    found = list(metadata.distributions(name=name))
    # In a clone, Python also finds what setuptools left there; that says neither what is installed nor how.
    return next((each for each in found if each.read_text("WHEEL")), found[0] if found else None)


def required_distributions(name: str, without: tuple[str, ...] = ()) -> list[metadata.Distribution]:
    """A distribution and all it needs on x86-64 Linux, by name; what is not installed here is left out.

    Args:
        name: of the distribution.
        without: names of others that are left out, with what they alone need.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, seen, pending = {}, set(), [Requirement(name)]
    while pending:
        requirement = pending.pop()
        key = canonicalize_name(requirement.name)
        distribution = installed_distribution(requirement.name)
        if distribution is None or key in without:
            continue
        found[key] = distribution
        for extra in {"", *requirement.extras}:
            if (key, extra) in seen:
                continue
            seen.add((key, extra))
            for needed in map(Requirement, distribution.requires or ()):
                if needed.marker is None or needed.marker.evaluate({**LINUX, "extra": extra}):
                    pending.append(needed)
    return [found[key] for key in sorted(found)]


def write_requirements(folder: Path, torch: str, cuda: str, further: Iterable[str] = ()) -> dict[str, str]:
    """Writes requirements for this package and all it needs, and wheels of what no index has.

    Args:
        folder: to write to; gets requirements-torch.txt, requirements.txt and a folder wheels.
        torch: version of torch.
        cuda: CUDA that its wheel is for, such as "12.6".
        further: names of distributions that the model needs besides.

    Returns:
        Versions by name.

    Raises:
        InputError: if a wheel cannot be made.
    """
    from nnunet_deconver.submission.torch_builds import build_tag, torch_index

    lines, versions = [], {"torch": f"{torch}+{build_tag(cuda)}"}
    (folder / "wheels").mkdir()
    required = [each for name in ("nnunet-deconver", *further) for each in required_distributions(name, OF_TORCH)]
    for name, distribution in sorted({each.name: each for each in required}.items(), key=lambda item: item[0].lower()):
        versions[name] = distribution.version
        # pip writes this file when it installs from elsewhere than an index.
        if name == "nnunet-deconver" or distribution.read_text("direct_url.json"):
            lines.append(f"./wheels/{make_wheel(distribution, folder / 'wheels').name}")
        else:
            lines.append(f"{name}=={versions[name]}")
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    # A file of its own, to be installed first: other indices have builds of torchvision for another CUDA.
    torchvision = ["torchvision"] if installed_distribution("torchvision") else []
    lines = [f"--index-url {torch_index(cuda)}", f"torch=={versions['torch']}", *torchvision]
    (folder / "requirements-torch.txt").write_text("\n".join(lines) + "\n")
    return versions


def make_wheel(distribution: metadata.Distribution, folder: Path) -> Path:
    """Makes a wheel of an installed distribution: of its source if that is installed editable, else of its files.

    Raises:
        InputError: if the source cannot be built.
    """
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return _build(distribution.name, Path(url2pathname(urlparse(origin["url"]).path)), folder)
    return _repack(distribution, folder)


def _build(name: str, source: Path, folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        # A build writes into its source, and what it leaves there comes into the next wheel.
        copy = Path(scratch) / "source"
        _copy_source(source, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", scratch, str(copy)]
        # Kernels compiled for another system would be of no use where the wheel is for.
        kernels = {} if sys.platform == "linux" else {"NNUNET_DECONVER_KERNELS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | kernels)
        built = list(Path(scratch).glob("*.whl"))
        if done.returncode or not built:
            said = " ".join((done.stderr or done.stdout).split())[-500:]
            raise InputError(
                f"{name} is installed editable, and its source {source} could not be built: {said}; "
                f"run: {sys.executable} -m pip install {source}"
            )
        return Path(shutil.move(built[0], folder / built[0].name))


def _copy_source(source: Path, copy: Path) -> None:
    """Copies a source without what was built in it: what git knows or would add, or else what is not hidden."""
    listing = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        built = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "*.so")
        shutil.copytree(source, copy, ignore=built)
        return
    for name in filter(None, listed.split("\0")):
        # Git also lists what was deleted since, and submodules, which are folders.
        if (source / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, copy / name)


def _repack(distribution: metadata.Distribution, folder: Path) -> Path:
    tags = message_from_string(distribution.read_text("WHEEL") or "").get_all("Tag")
    if tags is None:
        raise InputError(f"{distribution.name} was not installed by pip and cannot be exported; install it with pip")
    tags = [tag.split("-") for tag in tags]
    tag = "-".join(".".join(sorted(set(part))) for part in zip(*tags, strict=True))
    name = distribution.name.replace("-", "_").replace(".", "_")
    # See `_build`.
    without_kernels = name == "nnunet_deconver" and sys.platform != "linux"
    if without_kernels:
        tag = "py3-none-any"
    path = folder / f"{name}-{distribution.version}-{tag}.whl"
    files = distribution.files or []
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in files:
            # Compiled files and commands, which lie outside, are made anew wherever the wheel is installed.
            if file.suffix == ".pyc" or ".." in file.parts:
                continue
            if file.parent.suffix == ".dist-info" and file.name in OF_THE_INSTALLER:
                continue
            if without_kernels and file.suffix == ".so":
                continue
            content = Path(file.locate()).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            wheel.writestr(file.as_posix(), content)
            record.append(f"{file.as_posix()},sha256={digest},{len(content)}")
        place = next(file.parent for file in files if file.name == "WHEEL") / "RECORD"
        wheel.writestr(place.as_posix(), "\n".join([*record, f"{place.as_posix()},,"]) + "\n")
    return path
