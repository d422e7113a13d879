"""Run by test_triton_check: two processes train together, and the kernels of the second are broken."""

import datetime
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_deconver.networks import Deconver
from nnunet_deconver.ops import device
from nnunet_deconver.ops.nonnegative_deconvolution import triton_check, triton_kernels


def build(**options) -> nn.Module:
    torch.manual_seed(0)
    return Deconver(1, 2, (2, 4), nn.Conv1d, 3, (1, 2), 2, **options)


def gradients(network: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    network(batch).square().mean().backward()
    return {name.removeprefix("module."): parameter.grad for name, parameter in network.named_parameters()}


def fail(*arguments, **keywords):
    raise RuntimeError("broken")


def worker(rank: int, folder: str):
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    device._POLICIES["cpu"] = device._POLICIES["cuda"]
    torch.cuda.get_device_capability = lambda device: (9, 0)
    if rank == 1:
        triton_kernels._launch = fail
    batch = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    found = gradients(DistributedDataParallel(build()), batch[rank : rank + 1])
    failures = len(triton_check._failures)
    alone = gradients(build(backend="plain"), batch)
    torch.save({"gradients": found, "alone": alone, "failures": failures}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(worker, (sys.argv[1],), nprocs=2, start_method="fork")
