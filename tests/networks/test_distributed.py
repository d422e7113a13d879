"""Two processes of DistributedDataParallel, as nnU-Net wraps networks: without find_unused_parameters."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_deconver.networks import Adapted, Deconver, PlainConvUNet, ResidualEncoderUNet

FAMILIES = {
    "deconver": (Deconver, None, None),
    "dtc": (PlainConvUNet, {"name": "dtc"}, None),
    "nerdm": (PlainConvUNet, None, {"name": "nerdm"}),
    "nerdc": (ResidualEncoderUNet, None, {"name": "nerdc"}),
    "deconver-dtc-nerdc": (Deconver, {"name": "dtc"}, {"name": "nerdc"}),
    # Its class has parameters that get no gradient.
    "adapted-dtc-nerdc": (Adapted, {"name": "dtc"}, {"name": "nerdc"}),
}
UNETR = {"img_size": 16, "feature_size": 4, "hidden_size": 24, "mlp_dim": 8, "num_heads": 2, "spatial_dims": 2}


def build(family: str) -> nn.Module:
    backbone, upsampling, head = FAMILIES[family]
    blocks = "n_blocks_per_stage" if backbone is not PlainConvUNet else "n_conv_per_stage"
    options = {} if backbone is Deconver else {"n_conv_per_stage_decoder": 1, "conv_bias": True, "nonlin": nn.ReLU}
    torch.manual_seed(0)
    if backbone is Adapted:
        strides = [[1, 1], [1, 1], [16, 16]]
        arguments = {"network_kwargs": UNETR, "upsampling": upsampling, "segmentation_head": head, "strides": strides}
        return Adapted(1, 2, True, network="monai.networks.nets.UNETR", **arguments).double()
    network = backbone(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 8, 16],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[[1, 1], [2, 2], [2, 2]],
        num_classes=2,
        deep_supervision=True,
        upsampling=upsampling,
        segmentation_head=head,
        **{blocks: 1},
        **options,
    )
    return network.double()


def step(network: nn.Module, batch: torch.Tensor):
    sum(output.square().mean() for output in network(batch)).backward()


def data() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def worker(rank: int, folder: str):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    for family in FAMILIES:
        network = DistributedDataParallel(build(family))
        for _ in range(2):  # an unused parameter is noticed in the second
            network.zero_grad()
            step(network, data()[rank : rank + 1])
        if rank == 0:
            gradients = {name: p.grad for name, p in network.module.named_parameters()}
            torch.save(gradients, os.path.join(folder, f"{family}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path):
    # In a process of its own: autograd's threads, which other tests may have started, do not survive a fork.
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True)
    for family in FAMILIES:
        network = build(family)
        step(network, data())
        found = torch.load(tmp_path / f"{family}.pt")
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            torch.testing.assert_close(found[name], parameter.grad, msg=lambda m, n=name, f=family: f"{f} {n}: {m}")


if __name__ == "__main__":
    torch.multiprocessing.start_processes(worker, (sys.argv[1],), nprocs=2, start_method="fork")
