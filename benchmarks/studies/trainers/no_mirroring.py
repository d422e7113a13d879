"""Any trainer without mirroring: `NoMirroring_nnUNetTrainerDTC`.

nnU-Net predicts each patch in all mirrorings: eight times in 3D, which is most of a short training on a CPU. nnU-Net
finds these trainers in a folder of `nnUNet_extTrainer`.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_deconver.errors import InputError
from nnunet_deconver.models.trainer import find_trainer

PREFIX = "NoMirroring_"


class _NoMirroring(nnUNetTrainer):
    """As nnU-Net's own nnUNetTrainerNoMirroring; mixed in before a trainer."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        """Leaves mirroring out."""
        *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return *others, None


def __getattr__(name: str) -> type:
    base = name.removeprefix(PREFIX)
    if base == name:
        raise AttributeError(name)
    try:
        trainer = find_trainer(base)
    except InputError:
        raise AttributeError(name) from None
    return type(name, (_NoMirroring, trainer), {"__module__": __name__})
