"""The kernels in C, built in other ways than at installation, pass the tests of the CPU path."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

# By setup.py, with flags taken away and added.
BUILD = """
import sys
import setuptools
from distutils.core import run_setup

folder, without, *added = sys.argv[1:]
distribution = run_setup("setup.py", ["build_ext", "--build-lib", folder, "--build-temp", folder], "commandline")
for extension in distribution.ext_modules:
    extension.optional = False
    for flags in (extension.extra_compile_args, extension.extra_link_args):
        flags[:] = [flag for flag in flags if flag != without] + added
distribution.run_commands()
"""
TEST = """
import sys
from pathlib import Path
from unittest import mock
import pytest
from nnunet_deconver.ops import cpu_kernels

with mock.patch.object(cpu_kernels, "_FOLDER", Path(sys.argv[1])):
    tests = [f"tests/ops/test_{name}.py" for name in ("cpu_update", "displaced_sampling", "pointwise")]
    sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", *tests]))
"""


def run(script, *arguments, **environment):
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_and_test(folder, *, without="", added=(), **environment):
    run(BUILD, str(folder), without, *added)
    libraries = list(folder.rglob("kernels_*.so"))
    assert libraries
    # Tests are skipped where there are no kernels, or none that can be loaded.
    assert "skipped" not in run(TEST, str(libraries[0].parent), **environment)


def library_of_the_compiler(name):
    path = subprocess.check_output(["cc", f"-print-file-name={name}"], text=True).strip()
    if not Path(path).is_absolute():
        pytest.skip(f"the C compiler has no {name}")
    return path


def test_kernels_built_without_openmp(tmp_path):
    """As on a Mac."""
    build_and_test(tmp_path, without="-fopenmp")


def test_kernels_under_sanitizers(tmp_path):
    """They touch no memory but their own, and do nothing that C leaves undefined."""
    # The second, as the first looks for what handles C++'s exceptions when it is loaded, and Python itself has none.
    preloaded = [library_of_the_compiler(name) for name in ("libasan.so", "libstdc++.so.6")]
    build_and_test(
        tmp_path,
        added=["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        LD_PRELOAD=" ".join(preloaded),
        ASAN_OPTIONS="detect_leaks=0",  # Python keeps what it has until it ends
    )
