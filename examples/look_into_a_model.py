"""Reads a trained model and says what its last deformable upsampling has learned: how far it samples from where.

python examples/look_into_a_model.py nnUNet_results/Dataset004_X/nnUNetTrainerDTC__nnUNetPlans__3d_fullres
"""

import sys
from pathlib import Path

import numpy as np

from nnunet_deconver.figures.trained import components_of, learned_displacement
from nnunet_deconver.models.trained_model import TrainedModel


def main(folder: Path) -> None:
    """Prints what the folder holds, and the displacements on a patch of noise."""
    model = TrainedModel.read(folder)
    network = model.load()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{model.trainer.__name__}: {parameters / 1e6:.2f} M parameters, patch {model.configuration.patch_size}")
    upsampling, head = components_of(network)
    print(f"last upsampling: {type(upsampling).__name__ if upsampling else 'not deformable'}")
    print(f"head: {type(head).__name__ if head else 'does not know the position'}")
    if upsampling:
        image = np.random.default_rng(0).normal(size=(model.input_channels, *model.configuration.patch_size))
        length = np.linalg.norm(learned_displacement(network, upsampling, image), axis=0)
        print(f"displacement: mean {length.mean():.3f}, largest {length.max():.3f} voxels of the patch")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
