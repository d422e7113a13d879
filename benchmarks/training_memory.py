"""What a training step takes beside what `plans.memory` estimates, for networks as they are planned.

    python benchmarks/training_memory.py --out benchmarks/results/training_memory_cpu

On a GPU: nnU-Net's step (float16 autocast, gradient scaler, its loss on every resolution, gradients clipped) on usual
patches, eager and under torch.compile; what counts is `torch.cuda.max_memory_allocated` of a later step, when the
optimizer's state exists. Without a GPU: the same step in float32 on small patches, followed through PyTorch's CPU
allocator; the estimate is then that for a CPU in float32, and nonnegative deconvolution takes its plain path, whose
operations PyTorch knows.
"""

import argparse
import gc
from functools import partial
from pathlib import Path

import torch
from recording import record
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from nnunet_deconver.networks.architecture import build_network, deconver_architecture, plain_architecture
from nnunet_deconver.networks.backbones import usual_recipe, with_components
from nnunet_deconver.plans.memory import nnunet_loss, training_memory

CHANNELS, CLASSES, BATCH = 1, 4, 2
WARM_UP = 3
DTC_NERDC = {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdc"}}
DTC_NERDM = {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdm"}}

# Backbone, geometry, axes.
NETWORKS = {
    "plain 3d": ("plain", "3d", {}),
    "plain dtc nerdm 3d": ("plain", "3d", DTC_NERDM),
    "residual 3d": ("residual", "3d", {}),
    "residual anisotropic": ("residual", "anisotropic", {}),
    "deconver 3d": ("deconver", "3d", {}),
    "deconver dtc nerdc 3d": ("deconver", "3d", DTC_NERDC),
    "deconver anisotropic": ("deconver", "anisotropic", {}),
    "plain dtc nerdc 2d": ("plain", "2d", DTC_NERDC),
    "deconver 2d": ("deconver", "2d", {}),
}
# Patch and stages on a GPU, and on a CPU.
GEOMETRIES = {
    "3d": (((96, 96, 96), 5), ((32, 32, 32), 4)),
    "anisotropic": (((16, 192, 192), 5), ((8, 64, 64), 4)),
    "2d": (((512, 512), 7), ((128, 128), 5)),
}


def architecture(backbone: str, geometry: str, axes: dict, stages: int) -> dict:
    """The entry of a network with nnU-Net's usual stages."""
    rank = 2 if geometry == "2d" else 3
    strides = [[1] * rank] + [[2] * rank] * (stages - 1)
    kernels = [[3] * rank] * stages
    if geometry == "anisotropic":
        strides[1] = strides[2] = [1, 2, 2]
        kernels[0] = kernels[1] = [1, 3, 3]
    widest = 512 if rank == 2 or backbone == "deconver" else 320
    topology = {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**level, widest) for level in range(stages)],
        "conv_op": f"torch.nn.Conv{rank}d",
        "kernel_sizes": kernels,
        "strides": strides,
    }
    entry = plain_architecture({"network_class_name": "", "arch_kwargs": topology})
    if backbone == "residual":
        arch_kwargs = dict(entry["arch_kwargs"])
        del arch_kwargs["n_conv_per_stage"]
        arch_kwargs |= {
            "n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6][:stages],
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        }
        name = entry["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet")
        entry |= {"network_class_name": name, "arch_kwargs": arch_kwargs}
    return with_components(deconver_architecture(entry) if backbone == "deconver" else entry, **axes)


class Step:
    """A training step as nnU-Net takes it.

    Args:
        entry: architecture.
        patch_size: voxels of the patch.
        device: "cuda" (float16 autocast) or "cpu" (float32).
        compiled: whether under torch.compile.
    """

    def __init__(self, entry: dict, patch_size, device: str, compiled: bool):
        self.network = build_network(entry, CHANNELS, CLASSES, deep_supervision=True).to(device)
        self.optimizer = usual_recipe(entry).build_optimizer(self.network)
        self.image = torch.randn(BATCH, CHANNELS, *patch_size, device=device)
        self._compiled = torch.compile(self.network) if compiled else self.network
        self._loss = nnunet_loss(regions=False)
        self._scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
        self._device = device

    def __call__(self):
        """Takes the step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.float16, enabled=self._device == "cuda"):
            outputs = self._compiled(self.image)
            targets = [
                torch.randint(CLASSES, (BATCH, 1, *o.shape[2:]), dtype=torch.int16, device=self._device)
                for o in outputs
            ]
            value = self._loss(outputs, targets)
        self._scaler.scale(value).backward()
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self._scaler.step(self.optimizer)
        self._scaler.update()


def measured_on_cuda(entry: dict, patch_size, compiled: bool) -> int:
    """The most bytes that are allocated at one time."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()
    before = torch.cuda.memory_allocated()
    step = Step(entry, patch_size, "cuda", compiled)
    for _ in range(WARM_UP):
        step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def measured_on_cpu(entry: dict, patch_size) -> int:
    """Likewise, from the profiler's record of allocations."""
    step = Step(entry, patch_size, "cpu", compiled=False)
    step()
    step.optimizer.zero_grad(set_to_none=True)
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    there = [*step.network.parameters(), *step.network.buffers(), step.image]
    before = sum(tensor.nbytes for tensor in [*there, *state] if torch.is_tensor(tensor))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    added = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return before + int(added.cumsum(0).max())


def main():
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    rows = []
    for name, (backbone, geometry, axes) in tqdm(NETWORKS.items(), unit="network"):
        patch_size, stages = GEOMETRIES[geometry][0 if cuda else 1]
        entry = architecture(backbone, geometry, axes, stages)
        if not cuda and backbone == "deconver":
            # Compiled kernels are for real tensors; what is estimated is the path of fake ones.
            entry["arch_kwargs"]["backend"] = "plain"
        estimated = training_memory(
            partial(build_network, entry, CHANNELS, CLASSES, deep_supervision=True),
            input_channels=CHANNELS,
            num_classes=CLASSES,
            regions=False,
            patch_size=patch_size,
            batch_size=BATCH,
            build_optimizer=usual_recipe(entry).build_optimizer,
            device_type="cuda" if cuda else "cpu",
            autocast=cuda,
        ).peak
        measured = (
            {mode: measured_on_cuda(entry, patch_size, mode == "compiled") for mode in ("eager", "compiled")}
            if cuda
            else {"eager": measured_on_cpu(entry, patch_size)}
        )
        rows += [
            {
                "network": name,
                "patch": " x ".join(map(str, patch_size)),
                "batch": BATCH,
                "mode": mode,
                "estimated_MiB": round(estimated / 2**20, 1),
                "measured_MiB": round(size / 2**20, 1),
                "estimated / measured": round(estimated / size, 3),
            }
            for mode, size in measured.items()
        ]
    further = {"device": torch.cuda.get_device_name()} if cuda else {}
    record(args.out, rows, dtype="float16 autocast" if cuda else "float32", **further)


if __name__ == "__main__":
    main()
