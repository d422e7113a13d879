"""Where a submission runs: an entry each, with all that the exported files need to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Triton compiles for GPUs from this compute capability on.
TRITON_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Target:
    """A platform.

    Attributes:
        description: one line for `--help`.
        layout: how images lie in /input and results in /output; `find_cases` of inference.py says how.
        ending: of the files that are written; None for the dataset's own.
        gpus: GPUs that may be there, with their compute capability; empty where it can be any.
        cuda: the newest CUDA that its drivers are known to run; None for that of the torch installed here.
        apis: ways in which the container can be run, the default first: "exec" segments all and ends, "invoke" answers
            HTTP requests with the model in memory.
        model_apart: whether the weights can be uploaded beside the image.
        labels_only: whether another file in /output would be taken for labels.
        suffixes: how the name of a channel's file ends, by what datasets call the channel, in lower case without
            punctuation.
        reads: what /input holds, for the README.
        writes: what /output gets, likewise; `$ending` stands for the ending.
        hand_in: how to hand it in, likewise.
    """

    description: str
    layout: str
    ending: str | None
    gpus: Mapping[str, tuple[int, int]]
    cuda: str | None
    apis: tuple[str, ...]
    model_apart: bool
    labels_only: bool
    reads: str
    writes: str
    hand_in: str
    suffixes: Mapping[str, str] = field(default_factory=dict)

    @property
    def can_use_triton(self) -> bool:
        """Whether a GPU that may be there runs Triton's kernels."""
        return not self.gpus or max(self.gpus.values()) >= TRITON_CAPABILITY


SAVE_IMAGE = """\
```bash
docker build --platform linux/amd64 --tag nnunet-deconver-submission .
docker save nnunet-deconver-submission | gzip -c > image.tar.gz
```"""

TARGETS = {
    "grand-challenge": Target(
        description="an algorithm of grand-challenge: .mha files in sockets",
        layout="sockets",
        ending=".mha",
        # Those that challenges are offered; the first is what an algorithm gets unless it asks (GPUTypeChoices in
        # comic/grand-challenge.org at 9957bfc, 2025-11-15).
        gpus={"T4": (7, 5), "A10G": (8, 6)},
        # "cuda12.6 is required for the T4 GPU instances used on Grand Challenge": the starter kit's Dockerfile
        # (DIAGNijmegen/demo-challenge-pack at 7e684e4, 2026-07-16).
        cuda="12.6",
        # The starter kit has used invoke since that commit.
        apis=("invoke", "exec"),
        model_apart=True,
        labels_only=False,
        reads="`inputs.json` and one image per socket, as the platform gives them; or, to try it, images as nnU-Net "
        "names them: `CASE_0000.mha`, `CASE_0001.mha`, ... for the channels of a case",
        writes="`images/SOCKET/<name of the first image>$ending` for each output",
        hand_in=f"""\
{SAVE_IMAGE}

`image.tar.gz` is the algorithm's container image; `model.tar.gz`, if it is here, its model, which the platform unpacks
at /opt/ml/model. Settings of the algorithm that must fit: its sockets, and the GPU, a T4 or an A10G.""",
    ),
    "brats": Target(
        description="a BraTS challenge: a folder per case with a NIfTI file per modality, CASE.nii.gz out",
        layout="cases",
        ending=".nii.gz",
        gpus={"A10G": (8, 6)},
        # No driver is published. CUDA 12 runs with those from 525 on, CUDA 13 from 580 on (NVIDIA's release notes).
        cuda="12.6",
        apis=("exec",),
        model_apart=False,
        # BrainLesion/BraTS at 6c3fb6b (2026-08-19), which runs these images, opens all that is in /output as NIfTI.
        labels_only=True,
        reads="a folder per case with one NIfTI file per modality: `CASE/CASE-t1c.nii.gz` and so on",
        writes="`CASE$ending` for each case, with the labels of the dataset the model was trained on",
        hand_in=f"""\
{SAVE_IMAGE}

Or push the image to the registry that the challenge names. The weights are in it.""",
        # The modalities of BraTS from 2023 on, with older and common names of the same.
        suffixes={
            "t1n": "t1n",
            "t1": "t1n",
            "t1c": "t1c",
            "t1ce": "t1c",
            "t1gd": "t1c",
            "t2w": "t2w",
            "t2": "t2w",
            "t2f": "t2f",
            "flair": "t2f",
            "t2flair": "t2f",
        },
    ),
    "folder": Target(
        description="plain use: images named as nnU-Net names them, CASE with the dataset's file ending out",
        layout="files",
        ending=None,
        gpus={},
        cuda=None,
        apis=("exec",),
        model_apart=False,
        labels_only=False,
        reads="images as nnU-Net names them, `CASE_0000$ending`, `CASE_0001$ending`, ... for the channels of a case",
        writes="`CASE$ending` for each case, as nnU-Net writes it; other outputs in folders of their own",
        hand_in="The image `nnunet-deconver-submission` is there after `./test_run.sh`, or:\n\n" + SAVE_IMAGE,
    ),
}
