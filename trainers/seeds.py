"""Seeds: what is drawn in a training depends on a seed alone.

A batch depends on the seed, on whether it is for training or validation, on the rank in distributed training, and on
its index: neither on how many workers there are and which of them is faster, nor on whether the training was continued.
What the main process draws, as dropout does, depends on the seed, the rank and the epoch.
"""

import copy
import functools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any
from unittest import mock

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_deconver.errors import InputError
from nnunet_deconver.trainers.checkpoints import best_ema

# Streams: each has random numbers of its own for a seed.
CONSTRUCTOR, NETWORK, LOADERS, EPOCH, TRAINING, VALIDATION = range(6)


def seed_cpu(seed: int, stream: int, *numbers: int) -> int:
    """Seeds Python's, NumPy's and, on the CPU, PyTorch's global generators.

    Args:
        seed: of the training.
        stream: one of those above.
        numbers: which part of the stream, such as rank and index of a batch.

    Returns:
        What PyTorch's was seeded with.
    """
    words = np.random.SeedSequence(seed, spawn_key=(stream, *numbers)).generate_state(4, np.uint64)
    for_random, for_torch, *for_numpy = map(int, words)
    random.seed(for_random)
    # The old generator, from which nnU-Net draws, takes words of 32 bits.
    np.random.seed([part for word in for_numpy for part in divmod(word, 2**32)])
    torch.default_generator.manual_seed(for_torch)
    return for_torch


@contextmanager
def seeded_cpu(seed: int, stream: int, *numbers: int) -> Iterator[None]:
    """Seeds as `seed_cpu` does, and computes with one thread, as nnU-Net's workers do; afterwards all is as before."""
    threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    if threads > 1:  # sums of several threads are rounded otherwise
        torch.set_num_threads(1)
    try:
        seed_cpu(seed, stream, *numbers)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if threads > 1:
            torch.set_num_threads(threads)


class SeededBatches:
    """Batches of nnU-Net's loader, each of which depends on the seed and its index alone.

    Args:
        augmenter: nnU-Net's loader, with its transforms.
        seed: of the training.
        stream: `TRAINING` or `VALIDATION`.
        rank: in distributed training.
        index: of the first batch.
        workers: by how many processes it is copied, each of which makes one in so many batches.
    """

    def __init__(
        self, augmenter: SingleThreadedAugmenter, seed: int, stream: int, rank: int, index: int, workers: int
    ) -> None:
        self.augmenter = augmenter
        self.seed, self.stream, self.rank = seed, stream, rank
        self.index, self.step = index, max(1, workers)

    def set_thread_id(self, thread_id: int) -> None:
        """Makes the batches of one worker, whose process this is."""
        torch.set_num_threads(1)
        self.index += thread_id

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        with seeded_cpu(self.seed, self.stream, self.rank, self.index):
            batch = next(self._fresh_augmenter())
        self.index += self.step
        return batch

    def _fresh_augmenter(self) -> SingleThreadedAugmenter:
        # As it was before the first batch: transforms for cascades, for one, shuffle a list of theirs in each batch.
        dataset = getattr(self.augmenter.data_loader, "_data", None)
        copies = {id(dataset): dataset}
        augmenter = copy.deepcopy(self.augmenter, copies)
        for each in copies.values():
            if isinstance(each, GaussianBlurTransform):
                each.benchmark = False  # which takes the faster of two ways, and they round differently
            # Generators of a user's own transforms, which would draw the same for each batch.
            elif isinstance(each, np.random.BitGenerator):
                each.state = type(each)(random.getrandbits(64)).state
            elif isinstance(each, random.Random):
                each.seed(random.getrandbits(64))
            elif isinstance(each, torch.Generator):
                each.manual_seed(random.getrandbits(63))
        return augmenter


class OrderedBatches(MultiThreadedAugmenter):
    """Batches of several processes, which take turns.

    The class above it waits for ever for batches of a process that was killed, as for want of memory.
    """

    def __next__(self) -> dict:
        assert self.pin_memory_queue is not None and self.pin_memory_thread is not None  # it was started
        while True:
            try:
                return self.pin_memory_queue.get(timeout=1)
            except Empty:
                if self.abort_event.is_set() or not self.pin_memory_thread.is_alive():
                    self._finish()
                    raise RuntimeError(
                        "a process that makes batches has died; its error, if it had one, is printed above. If memory "
                        "ran out: nnUNet_n_proc_DA sets the number of these processes"
                    ) from None


class SeededTrainer(nnUNetTrainer):
    """Makes any trainer draw what its seed says; comes before it among the bases of a class."""

    named_seed: int

    # See `LengthTrainer`. A trainer may draw in its constructor.
    @functools.wraps(nnUNetTrainer.__init__)
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._seed(CONSTRUCTOR)
        super().__init__(*arguments, **named)

    def initialize(self) -> None:
        """Makes the network of the seed."""
        self._seed(NETWORK)
        super().initialize()

    def on_epoch_start(self) -> None:
        """Starts an epoch, in which the same is drawn after a checkpoint as in a training that was never stopped."""
        self._seed(EPOCH, self.local_rank, self.current_epoch)
        super().on_epoch_start()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Loads a checkpoint, and knows the best epoch until then, on which checkpoint_best depends."""
        super().load_checkpoint(filename_or_checkpoint)
        self._best_ema = best_ema(self)

    # nnU-Net's types are those of its own augmenters.
    def get_dataloaders(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> tuple[SeededBatches | OrderedBatches, SeededBatches | OrderedBatches]:
        """nnU-Net's loaders, whose batches are those of the seed, in their order.

        Raises:
            InputError: if the trainer has loaders of another kind.
        """
        with mock.patch.dict(os.environ, nnUNet_n_proc_DA="0"), seeded_cpu(self.named_seed, LOADERS, self.local_rank):
            training, validation = super().get_dataloaders()
        workers = get_allowed_n_proc_DA()
        fewer = max(1, workers // 2) if workers else 0  # for validation, as nnU-Net has it
        return (
            self._batches(training, TRAINING, self.num_iterations_per_epoch, workers),
            self._batches(validation, VALIDATION, self.num_val_iterations_per_epoch, fewer),
        )

    def _batches(self, augmenter: object, stream: int, iterations: int, workers: int) -> SeededBatches | OrderedBatches:
        if not isinstance(augmenter, SingleThreadedAugmenter):
            raise InputError(
                f"{type(self).__name__}: its batches come from {type(augmenter).__name__}, not from nnU-Net's loaders, "
                "and cannot be seeded; leave _seed out of its name"
            )
        first = self.current_epoch * iterations
        batches = SeededBatches(augmenter, self.named_seed, stream, self.local_rank, first, workers)
        if workers == 0:
            return batches
        # One waits in the queue of each: hardly more than nnU-Net lets wait.
        ordered = OrderedBatches(
            batches, None, workers, num_cached_per_queue=1, pin_memory=self.device.type == "cuda", wait_time=0.002
        )
        ordered.restart()  # now, as nnU-Net does: a process that has computed with several threads should not fork
        return ordered

    def _seed(self, stream: int, *numbers: int) -> None:
        torch.manual_seed(seed_cpu(self.named_seed, stream, *numbers))  # on all devices
