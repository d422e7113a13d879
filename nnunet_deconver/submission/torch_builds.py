"""For which CUDA PyTorch's own index has wheels."""

INDEX = "https://download.pytorch.org/whl"

# CUDA of the Linux wheels, by the last patch of a release: the "Release Compatibility Matrix" in PyTorch's RELEASE.md
# and the notice that wheels for CUDA 12.6 end with 2.14 (dev-discuss.pytorch.org/t/3432), as of November 2026. Without
# 2.9, which nnU-Net refuses.
RELEASES = {
    "2.4.1": ("11.8", "12.1", "12.4"),
    "2.5.1": ("11.8", "12.1", "12.4"),
    "2.6.0": ("11.8", "12.4", "12.6"),
    "2.7.1": ("11.8", "12.6", "12.8"),
    "2.8.0": ("12.6", "12.8", "12.9"),
    "2.10.0": ("12.6", "12.8", "13.0"),
    "2.11.0": ("12.6", "12.8", "13.0"),
    "2.12.1": ("12.6", "13.0", "13.2"),
    "2.13.0": ("12.6", "13.0", "13.2"),
    "2.14.1": ("12.6", "13.0", "13.2"),
    "2.15.0": ("13.0", "13.2"),
}


def torch_build(installed: str, installed_cuda: str | None, cuda: str | None) -> tuple[str, str]:
    """The release of torch to install for a CUDA: the installed one, or the nearest that has wheels for it.

    Args:
        installed: version of torch here, without what follows a plus.
        installed_cuda: CUDA it was built with; None if it was built without.
        cuda: such as "12.6"; None for the installed one's, or the newest that its release has wheels for.

    Returns:
        Version of torch, and CUDA.

    Raises:
        ValueError: if no release is known to have wheels for this CUDA.
    """
    builds = next((builds for release, builds in RELEASES.items() if _minor(release) == _minor(installed)), ())
    cuda = cuda or installed_cuda or (builds or list(RELEASES.values())[-1])[-1]
    if cuda == installed_cuda or cuda in builds:
        return installed, cuda
    releases = [release for release, known in RELEASES.items() if cuda in known]
    if not releases:
        known = sorted({each for known in RELEASES.values() for each in known}, key=_minor)
        raise ValueError(f"cuda must be one of {', '.join(known)}, for which PyTorch has wheels; got {cuda!r}")
    older = [release for release in releases if _minor(release) < _minor(installed)]
    return (older[-1] if older else releases[0]), cuda


def torch_index(cuda: str) -> str:
    """Address of PyTorch's index of wheels for a CUDA such as "12.6"."""
    return f"{INDEX}/{build_tag(cuda)}"


def build_tag(cuda: str) -> str:
    """What PyTorch calls a CUDA such as "12.6" in versions and addresses: "cu126"."""
    return f"cu{cuda.replace('.', '')}"


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
