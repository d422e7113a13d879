"""Registers, stack and shared memory of the Triton kernels on each architecture, as compiled: no GPU is needed.

    python benchmarks/kernel_resources.py --out benchmarks/results/kernel_resources

The kernels are those of both passes in the first stage of a 3D network: a patch of 128^3, 32 channels with a group
each, 4 sources for a channel. Image and source have the dtype given, the filter is float32 as parameters are.

Stack is what a thread keeps in memory instead of registers, of which it may have 255. Below that number it is the
assembler's choice, which prefers more threads at a time.
"""

import argparse
import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

# Kernels that are interpreted are not compiled.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from recording import record
from tqdm import tqdm
from triton.backends.compiler import GPUTarget

from nnunet_deconver.ops.nonnegative_deconvolution import triton_kernels

# A100; A10, RTX 30; L4, RTX 40; H100, H200; B200; RTX 50.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
KERNEL_SIZES = (3, 5)
DTYPES = ("float32", "float16", "bfloat16")
SIZE, CHANNELS, RATIO = (128, 128, 128), 32, 4
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Driver:
    """What Triton asks a GPU's driver, answered without one."""

    def __init__(self, architecture: int):
        self.get_current_target = lambda: GPUTarget("cuda", architecture, 32)
        self.get_current_device = lambda: architecture  # Triton keeps what it has compiled by device
        self.get_current_stream = lambda device: 0


class Compiling:
    """A kernel that is compiled instead of launched.

    Args:
        kernel: of Triton.
        compiled: gets what comes of it, and the arguments, by name.
    """

    def __init__(self, kernel, compiled: dict):
        self.kernel = kernel
        self.compiled = compiled

    def __getitem__(self, grid):
        def launch(**arguments):
            name = arguments["finish"].__name__ if "finish" in arguments else self.kernel.__name__
            self.compiled[name] = self.kernel.run(grid=grid, warmup=True, **arguments), arguments

        return launch


def compile_kernels(architecture: int, kernel_size: int, dtype: torch.dtype) -> dict:
    """Calls both passes with tensors that hold no numbers; returns compiled kernels and their arguments by name."""
    compiled = {}
    triton.runtime.driver.set_active(Driver(architecture))
    x, source = (torch.empty(1, n, *SIZE, dtype=dtype, device="meta") for n in (CHANNELS, CHANNELS * RATIO))
    filter = torch.empty(CHANNELS, RATIO, *[kernel_size] * len(SIZE), device="meta")
    kernels = {name: Compiling(getattr(triton_kernels, name), compiled) for name in ("_correlate", "_correlate_pairs")}
    with mock.patch.multiple(triton_kernels, **kernels):
        triton_kernels.update(x, source, filter, CHANNELS, 1e-8)
        triton_kernels.differentiate(source, x, source, filter, CHANNELS, 1e-8)
    return compiled


def resources(cubin: bytes) -> dict[str, int]:
    """What a thread and a program take."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, shared = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage).groups()
    return {"registers": int(registers), "stack_bytes": int(stack), "shared_bytes": int(shared)}


def main():
    """Reads the command line, compiles, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--architectures", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--kernel-sizes", type=int, nargs="+", choices=KERNEL_SIZES, default=KERNEL_SIZES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    args = parser.parse_args()
    rows = []
    for case in tqdm(list(itertools.product(args.architectures, args.kernel_sizes, args.dtypes)), unit="case"):
        architecture, kernel_size, dtype = case
        compiled = compile_kernels(architecture, kernel_size, getattr(torch, dtype))
        rows += [
            {
                "architecture": f"sm_{architecture}",
                "kernel_size": kernel_size,
                "dtype": dtype,
                "kernel": name,
                "threads": 32 * arguments["num_warps"],
                "positions": arguments["BLOCK"],
                **resources(kernel.asm["cubin"]),
            }
            for name, (kernel, arguments) in compiled.items()
        ]
    record(args.out, rows, size=SIZE, channels=CHANNELS, source_ratio=RATIO)


if __name__ == "__main__":
    main()
