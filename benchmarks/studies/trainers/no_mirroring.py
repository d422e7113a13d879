"""Any trainer without mirroring: `NoMirroring_nnUNetTrainerDTC`.

nnU-Net predicts each patch in all mirrorings: eight times in 3D, which is most of a short training on a CPU. nnU-Net
finds these trainers in a folder of `nnUNet_extTrainer`.
"""

from contextlib import contextmanager

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

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

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Predicts small 3D patches by PyTorch's fast convolution."""
        if len(self.configuration_manager.patch_size) < 3:
            super().perform_actual_validation(save_probabilities)
            return
        with _twice(self.network):
            super().perform_actual_validation(save_probabilities)


@contextmanager
def _twice(network: nn.Module):
    """Computes a patch as a batch of two alike: for a small batch of one, PyTorch takes a slower convolution.

    On one core, that takes three times as long per patch (`use_mkldnn` in its Convolution.cpp).
    """
    hooks = (
        network.register_forward_pre_hook(lambda _, args: (args[0].expand(2, *args[0].shape[1:]),)),
        network.register_forward_hook(lambda _, __, output: output[:1]),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def __getattr__(name: str) -> type:
    base = name.removeprefix(PREFIX)
    if base == name:
        raise AttributeError(name)
    try:
        trainer = find_trainer(base)
    except InputError:
        raise AttributeError(name) from None
    return type(name, (_NoMirroring, trainer), {"__module__": __name__})
