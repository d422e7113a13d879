"""The installed nnU-Net: where it is, and whether it is one that this package works with."""

from importlib import metadata
from pathlib import Path

from nnunet_deconver.errors import InputError

SUPPORTED_VERSIONS = ">=2.8,<3"
INSTALL_LINE = f'pip install "nnunetv2{SUPPORTED_VERSIONS}"'


def nnunetv2_folders() -> list[Path]:
    """The folders that `import nnunetv2` reads, wheel or editable clone; empty if there is none."""
    try:
        import nnunetv2
    except ModuleNotFoundError:
        return []
    return [Path(folder) for folder in nnunetv2.__path__]


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def nnunetv2_problem() -> str | None:
    """Why this package cannot work with the installed nnunetv2 and what to do; None if it can."""
    # Comes with nnU-Net (through matplotlib), so it may be missing where nnU-Net is.
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        return f"nnunetv2 is not installed, or not completely; run: {INSTALL_LINE}"

    folders = nnunetv2_folders()
    if not folders:
        return f"nnunetv2 is not installed; run: {INSTALL_LINE}"
    if not (folders[0] / "__init__.py").is_file():
        # pip leaves files it did not install. Python takes such a folder for a package of its own and prefers it
        # to an editable clone.
        return (
            f"{folders[0]} has no __init__.py, so it is the remains of an uninstalled nnunetv2; "
            f"run: nnunet-deconver unregister, delete what is then left of that folder, and run: {INSTALL_LINE}"
        )
    version = installed_version("nnunetv2")
    if version is None or not SpecifierSet(SUPPORTED_VERSIONS).contains(version, prereleases=True):
        return f"nnunetv2 {version or 'of unknown version'} at {folders[0]} is not supported; run: {INSTALL_LINE}"
    return None


def require_nnunetv2() -> Path:
    """The folder of a usable nnunetv2.

    Raises:
        InputError: if nnunetv2 is missing or of a version this package does not work with.
    """
    problem = nnunetv2_problem()
    if problem:
        raise InputError(problem)
    return nnunetv2_folders()[0]
