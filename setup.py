"""Builds the CPU kernels: a library in plain C for each set of instructions, which links neither Python nor PyTorch.

Everything else about the package is in pyproject.toml. Without a compiler, or with one that cannot build them, the
package installs without them and takes a slower path. NNUNET_DECONVER_KERNELS=0 leaves them out, for a wheel that fits
every machine.
"""

import os
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "nnunet_deconver/ops/cpu_kernels"
SOURCES = [f"{FOLDER}/{name}.c" for name in ("deconvolution", "pointwise", "sampling")]
# Set of instructions to floats in a vector, and what a compiler calls it.
INSTRUCTIONS = {
    "avx512": (16, ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]),
    "avx2": (8, ["-mavx2", "-mfma"]),
}
if platform.machine() not in ("x86_64", "AMD64"):
    INSTRUCTIONS = {"default": (4, [])}
if os.environ.get("NNUNET_DECONVER_KERNELS") == "0":
    INSTRUCTIONS = {}
# Apple's compiler has no OpenMP.
THREADS = [] if sys.platform == "darwin" else ["-fopenmp"]


class BuildLibraries(build_ext):
    """Names them alike for every Python."""

    def get_ext_filename(self, fullname: str) -> str:  # noqa: D102
        return f"{fullname.replace('.', '/')}.so"


class PlatformWheel(bdist_wheel):
    """Fits every Python, but not every machine."""

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        return "py3", "none", super().get_tag()[2]  # "any" if there are no kernels


setup(
    ext_modules=[
        Extension(
            f"{FOLDER.replace('/', '.')}.kernels_{name}",
            SOURCES,
            depends=[f"{FOLDER}/{name}.h" for name in ("products", "vectors")],
            define_macros=[("LANES", str(lanes))],
            extra_compile_args=["-O3", *flags, *THREADS],
            extra_link_args=THREADS,
            optional=True,
        )
        for name, (lanes, flags) in INSTRUCTIONS.items()
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
)
