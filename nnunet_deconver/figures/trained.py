"""What the layers of this package have learned in a trained model, measured on its network, and drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nnunet_deconver.errors import InputError
from nnunet_deconver.figures.learned import draw_position, draw_sampling
from nnunet_deconver.figures.panels import choose_axis
from nnunet_deconver.integration.datasets import as_labels
from nnunet_deconver.layers import DeformableTransposedConvolution, NeRDc, NeRDm
from nnunet_deconver.metrics.cases import CaseFiles, find_images
from nnunet_deconver.metrics.comparison import file_name
from nnunet_deconver.models.checkpoint import find_checkpoint, load_weights
from nnunet_deconver.models.trained_model import TrainedModel

if TYPE_CHECKING:
    from nnunet_deconver.figures.cases import Source

SAMPLING, POSITION = "sampling", "position"
CLASSES_SHOWN = 6


def draw_learned(
    source: "Source",
    cases: Sequence[str],
    out: Path,
    problems: dict[str, str],
    not_built: dict[str, str],
    trust: bool = False,
) -> list[Path]:
    """Draws where the last upsampling samples, if it is DTC, and what the head makes of the position, if it is NeRD.

    Args:
        source: where the model's cases are. Without a known model folder, there is nothing to draw.
        cases: of those drawn, the one in the middle is shown: the median case.
        out: folder for the pictures.
        problems: gets why what should be drawn is not.
        not_built: gets why the network cannot be built here.
        trust: see `TrainedModel.read`.

    Returns:
        The files written.
    """
    if source.model is None:
        return []
    try:
        model = TrainedModel.read(source.model, trust)
        network = model.build().eval()
    except Exception as error:  # of a trainer that is not ours, any
        not_built[source.name] = " ".join(str(error).split())[:300]
        return []
    upsampling, head = components_of(network)
    paths = []
    try:
        own = [case for case in cases if case in source.files]
        case = source.files[own[len(own) // 2]] if own else None
        # Of a cross-validation, the fold that has not seen the case.
        fold = case.prediction.parents[1].name if case and model.path in case.prediction.parents else "fold_*"
        if upsampling or head:
            load_weights(network, find_checkpoint(model.path, fold), trust)
        name = file_name(source.name)
        if head:
            paths += draw_head(model, head, source.name, out / f"{POSITION}_{name}")
        if upsampling and case is None:
            raise InputError("none of its cases is drawn, so there is none to show its sampling in")
        if upsampling and case:
            paths += draw_upsampling(model, network, upsampling, source, case, out / f"{SAMPLING}_{name}")
    except ValueError as error:  # InputError and CaseError are both
        problems[source.name] = str(error)
    return paths


def components_of(network: nn.Module) -> tuple[DeformableTransposedConvolution | None, NeRDm | NeRDc | None]:
    """A network's last DTC upsampling and its NeRD head of the highest resolution; None for what it has not."""
    decoder = getattr(network, "decoder", None)
    upsamplings, heads = ([*getattr(decoder, name, [])] for name in ("transpconvs", "seg_layers"))
    upsampling = (
        upsamplings[-1] if upsamplings and isinstance(upsamplings[-1], DeformableTransposedConvolution) else None
    )
    head = heads[-1] if heads and isinstance(heads[-1], NeRDm | NeRDc) else None
    return upsampling, head


def draw_upsampling(
    model: TrainedModel,
    network: nn.Module,
    upsampling: DeformableTransposedConvolution,
    source: "Source",
    case: CaseFiles,
    path: Path,
) -> list[Path]:
    """Draws where the upsampling samples in the patch of a case with most foreground.

    Args:
        model: whose network it is.
        network: trained.
        upsampling: its last.
        source: where the model's cases are.
        case: one of them.
        path: without ending.

    Raises:
        ValueError: if the case's image cannot be read.
    """
    if model.configuration.previous_stage_name is not None:
        raise InputError("sampling is not drawn for cascades, whose second stage needs the first's predictions")
    images = find_images(case.name, source.images, source.dataset.file_ending)
    image, truth = read_patch(model, images, case.reference)
    displacement = learned_displacement(network, upsampling, image)
    spacing = model.configuration.spacing[-truth.ndim :]
    axis = None
    if truth.ndim == 3:
        axis = choose_axis(truth.shape, spacing)
        index = int((truth > 0).sum(axis=tuple(i for i in range(3) if i != axis)).argmax())
        image, truth = image.take(index, axis + 1), truth.take(index, axis)
        displacement = displacement.take(index, axis + 1)
    shown = [i for i in range(len(displacement)) if i != axis]
    rows, columns = (spacing[i] for i in shown)
    return draw_sampling(
        image, truth, displacement[shown], path, aspect=rows / columns, title=f"{source.name}, {case.name}",
        limit=float(np.max([_limit(upsampling, i) for i in shown])),
    )  # fmt: skip


def _limit(upsampling: DeformableTransposedConvolution, axis: int) -> float:
    """Voxels by which a sample can move along an axis; infinity where nothing bounds it."""
    if not upsampling.tanh or upsampling.weighting == "linear":
        return float("inf")
    return upsampling.reach * upsampling.stride[axis]


def read_patch(model: TrainedModel, images: Sequence[Path], reference: Path) -> tuple:
    """The patch of a preprocessed case around its foreground: image (channels, *patch), truth (*patch).

    Raises:
        InputError: if nnU-Net cannot preprocess the case.
    """
    preprocessor = model.configuration.preprocessor_class(verbose=False)
    try:
        image, truth, _ = preprocessor.run_case(
            [str(file) for file in images], str(reference), model.plans, model.configuration, model.dataset
        )
    except Exception as error:  # each step raises its own
        raise InputError(f"{images[0]}: nnU-Net cannot preprocess it ({type(error).__name__}: {error})") from error
    image, truth = np.asarray(image), np.asarray(truth)[0]
    patch = model.configuration.patch_size
    if len(patch) == 2:
        index = int((truth > 0).sum(axis=(1, 2)).argmax())
        image, truth = image[:, index], truth[index]
    missing = [max(0, size - length) for size, length in zip(patch, truth.shape, strict=True)]
    around = [(gap // 2, gap - gap // 2) for gap in missing]
    image, truth = np.pad(image, [(0, 0), *around]), np.pad(truth, around)
    foreground = np.argwhere(truth > 0)
    middle = foreground.mean(axis=0) if len(foreground) else np.array(truth.shape) / 2
    starts = [
        int(np.clip(round(center - size / 2), 0, length - size))
        for center, size, length in zip(middle, patch, truth.shape, strict=True)
    ]
    window = tuple(slice(start, start + size) for start, size in zip(starts, patch, strict=True))
    return image[(slice(None), *window)], truth[window]


def learned_displacement(
    network: nn.Module, upsampling: DeformableTransposedConvolution, image: np.ndarray
) -> np.ndarray:
    """By how many of its output's voxels an upsampling samples elsewhere than linear interpolation would.

    Args:
        network: whose forward pass feeds the upsampling.
        upsampling: a `DeformableTransposedConvolution` of it.
        image: (channels, *patch), of which its output has the size.

    Returns:
        (axes, *patch), along each axis.
    """
    seen = []
    handle = upsampling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            network(torch.from_numpy(np.ascontiguousarray(image, np.float32))[None])
            relative = upsampling.relative_displacement(seen[0])[0]
    finally:
        handle.remove()
    limits = upsampling.displacement_limit(seen[0].shape[2:])
    # grid_sample's coordinates run from -1 to 1.
    scale = [limit * size / 2 for limit, size in zip(limits, relative.shape[1:], strict=True)]
    return relative.numpy() * np.array(scale).reshape(-1, *[1] * (relative.ndim - 1))


def draw_head(model: TrainedModel, head: NeRDm | NeRDc, name: str, path: Path) -> list[Path]:
    """Draws what a NeRD head makes of the position in the patch, in the planes through its middle."""
    labels = model.plans.get_label_manager(model.dataset)
    names = {as_labels(value): name for name, value in model.dataset["labels"].items()}
    classes = [
        names[as_labels(key)] for key in (labels.foreground_regions if model.regions else labels.foreground_labels)
    ]
    constants, weights = position_maps(head, model.configuration.patch_size, softmax=not model.regions)
    # The classes for which the position counts most.
    counts = sorted(range(len(classes)), key=lambda i: -max(float(plane[i].std()) for plane in constants))
    shown = sorted(counts[:CLASSES_SHOWN])
    spacing = model.configuration.spacing[-len(model.configuration.patch_size) :]
    return draw_position(
        [[plane[i] for plane in constants] for i in shown],
        [[plane[i] for plane in weights] for i in shown],
        [classes[i] for i in shown],
        path,
        spacing=spacing,
        title=f"{name}, {type(head).__name__}",
    )


def position_maps(head: NeRDm | NeRDc, patch_size: Sequence[int], softmax: bool) -> tuple[list, list]:
    """What a head makes of the position: at each it is a linear classifier, with weights and a constant of its own.

    They are measured: the constant is the head's answer to features of zero, a weight its answer to one feature alone.

    Args:
        head: maps (1, C, *S) to logits (1, K, *S).
        patch_size: S.
        softmax: classes are told apart from the background, their first; otherwise each stands for itself.

    Returns:
        For each plane through the patch's middle (2D: the patch) the constant of each class, less its mean over the
        plane's positions, and by how much its weights differ from their mean, relative to that mean's norm: each
        (K or K - 1, rows, columns).
    """

    def planes(logits: torch.Tensor) -> list[torch.Tensor]:
        """The planes through the middle, (K, rows, columns) each."""
        logits = logits[1:] - logits[:1] if softmax else logits
        if len(patch_size) == 2:
            return [logits]
        return [logits.select(axis + 1, size // 2) for axis, size in enumerate(patch_size)]

    with torch.no_grad():
        features = torch.zeros(1, head.in_channels, *patch_size)
        constants = planes(head(features)[0])
        weights = [[] for _ in constants]
        for channel in range(head.in_channels):
            features[:, channel] = 1
            for plane, constant, found in zip(planes(head(features)[0]), constants, weights, strict=True):
                found.append(plane - constant)
            features[:, channel] = 0
    changes = []
    for found in weights:
        stacked = torch.stack(found)  # (C, K, rows, columns)
        mean = stacked.mean(dim=(2, 3), keepdim=True)
        changes.append((stacked - mean).norm(dim=0) / mean.norm(dim=0).clamp_min(1e-8))
    centred = [constant - constant.mean(dim=(1, 2), keepdim=True) for constant in constants]
    return [plane.numpy() for plane in centred], [plane.numpy() for plane in changes]
