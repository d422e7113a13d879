"""Options in a trainer's name without training: what is made of a name, and the batches of a seed."""

import copy
import inspect
import itertools
import json
import os
import pickle
import random

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise import gaussian_blur
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs

from nnunet_deconver import trainers
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.trainers import shim_folder
from nnunet_deconver.models.trainer import find_trainer
from nnunet_deconver.trainers.options import without_options
from nnunet_deconver.trainers.seeds import TRAINING, VALIDATION, OrderedBatches, SeededBatches, SeededTrainer

# A thread of batchgenerators may still read from a process that has ended.
ends_workers = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
OWN = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class OwnTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1500
        self.drawn = torch.rand(1).item()

class OwnTrainer_3epochs(OwnTrainer):
    pass
"""


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """nnU-Net's folders, and a folder of trainers beside this package's."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_trainers_with_options.py").write_text(OWN)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join((str(shim_folder()), str(tmp_path / "own"))))


@pytest.fixture
def make(trained_model):
    """A function that makes a trainer as nnU-Net does."""
    model = trained_model()
    plans, dataset = (json.loads((model / f"{name}.json").read_text()) for name in ("plans", "dataset"))

    def make(name):
        named = {"configuration": "test", "fold": 0, "dataset_json": dataset, "device": torch.device("cpu")}
        return find_trainer(name)(plans=copy.deepcopy(plans) | {"continue_training": False}, **named)

    return make


@pytest.mark.parametrize(
    "name, base, length",
    [
        ("nnUNetTrainer_7epochs_50iterations_seed1", "nnUNetTrainer", (7, 50, 10)),
        ("nnUNetTrainer_7epochs", "nnUNetTrainer", (7, 250, 50)),
        ("nnUNetTrainer_seed0", "nnUNetTrainer", (1000, 250, 50)),
        ("nnUNetTrainer_4iterations", "nnUNetTrainer", (1000, 4, 1)),
        ("nnUNetTrainer_5epochs_seed1", "nnUNetTrainer_5epochs", (5, 250, 50)),
        ("nnUNetTrainerDTC_rf4_7epochs_seed1", "nnUNetTrainerDTC_rf4", (7, 250, 50)),
        ("nnUNetTrainerDeconver_5epochs_1iterations", "nnUNetTrainerDeconver_5epochs", (5, 1, 1)),
        ("nnUNetTrainerDeconverDemo_2epochs", "nnUNetTrainerDeconverDemo", (2, 16, 2)),
        ("OwnTrainer_7epochs_seed1", "OwnTrainer", (7, 250, 50)),
        ("OwnTrainer_3epochs_1iterations", "OwnTrainer_3epochs", (1500, 1, 1)),
    ],
)
def test_any_trainer_takes_a_length_and_a_seed(make, name, base, length):
    trainer = make(name)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == length
    assert isinstance(trainer, SeededTrainer) is ("_seed" in name)
    assert type(trainer).__name__ == name and f"/{name}__testPlans__test/fold_0" in trainer.output_folder
    assert (without_options(name), without_options(base)) == (base, base)
    assert type(trainer).__bases__[-1].__name__ == base


def test_schedules_fit_the_length_in_the_name(make):
    for name in ("nnUNetTrainer_4epochs", "nnUNetTrainerDeconver_4epochs"):
        trainer = make(name)
        trainer.network = torch.nn.Linear(1, 1)
        _, schedule = trainer.configure_optimizers()
        schedule.step(3)
        assert schedule.optimizer.param_groups[0]["lr"] < 0.5 * trainer.initial_lr


def test_a_class_of_exactly_this_name_is_found():
    assert find_trainer("nnUNetTrainer_5epochs") is nnUNetTrainer_5epochs
    assert find_trainer("nnUNetTrainerDeconver_5epochs").__module__ == "nnunet_deconver.trainers.deconver"
    assert find_trainer("OwnTrainer_3epochs").__module__ == "own_trainers_with_options"
    assert not hasattr(trainers, "nnUNetTrainer_5epochs") and not hasattr(trainers, "OwnTrainer_3epochs")


@pytest.mark.parametrize(
    "name, message",
    [
        ("nnUNetTrainer_0epochs", "epochs must be at least 1, not 0"),
        ("nnUNetTrainer_0iterations_seed1", "iterations must be at least 1, not 0"),
        ("nnUNetTrainerNowhere_7epochs_seed1", "nnU-Net finds no trainer nnUNetTrainerNowhere; a name is <trainer>"),
        ("nnUNetTrainer_seed1_7epochs", "nnU-Net finds no trainer nnUNetTrainer_seed1; a name is <trainer>"),
        ("nnUNetTrainer_seed1_seed2", "nnU-Net finds no trainer nnUNetTrainer_seed1; a name is <trainer>"),
        ("nnUNetTrainer_50iterations_7epochs", "nnU-Net finds no trainer nnUNetTrainer_50iterations; a name is"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(InputError, match=f"^trainer {name}: {message}"):
        find_trainer(name)
    assert not hasattr(trainers, name)


def test_a_name_without_options_is_no_attribute(monkeypatch):
    monkeypatch.setattr("nnunet_deconver.trainers.options.search_trainer", None)  # nobody is asked
    for name in ("nnUNetTrainer_seed", "nnUNetTrainer_seed-1", "nnUNetTrainer_epochs", "_seed", "x", "__wrapped__"):
        assert not hasattr(trainers, name), name
    imported = {}
    exec("from nnunet_deconver.trainers import *", imported)
    assert imported.keys() - {"__builtins__"} == set(trainers.__all__)


def test_a_class_is_one_and_has_nnunets_signature():
    found = trainers.nnUNetTrainer_7epochs_seed1
    assert trainers.nnUNetTrainer_7epochs_seed1 is pickle.loads(pickle.dumps(found)) is copy.deepcopy(found) is found
    assert inspect.signature(found) == inspect.signature(nnUNetTrainer)
    assert found.__doc__ == "nnUNetTrainer with 7 epochs, seed 1."


def test_what_a_trainer_draws_in_its_constructor_is_seeded(make):
    drawn = [make(f"OwnTrainer_seed{seed}").drawn for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_first_weights_do_not_depend_on_what_was_drawn_before(make, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda self: setattr(self, "drawn", torch.rand(1)))
    made = [make(f"nnUNetTrainer_seed{seed}") for seed in (1, 1, 2)]
    for trainer in made:
        trainer.initialize()
    assert made[0].drawn == made[1].drawn != made[2].drawn


def test_the_best_epoch_is_known_after_going_on(make):
    """nnU-Net writes checkpoint_latest before it notes that the epoch was the best."""
    trainer = make("nnUNetTrainer_seed1")
    trainer.network, trainer.was_initialized = torch.nn.Linear(1, 1), True
    trainer.optimizer, _ = trainer.configure_optimizers()
    for epoch, dice in enumerate((0.2, 0.3)):
        trainer.logger.log("mean_fg_dice", dice, epoch)
    trainer._best_ema = 0.2
    path = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(path)
    trainer.load_checkpoint(path)
    assert trainer._best_ema == trainer.logger.get_value("ema_fg_dice", -1) > 0.2


class Shuffling:
    """Draws from all that a transform may draw from, and changes itself, as those for cascades do."""

    def __init__(self):
        self.channels = list(range(9))
        self.generators = np.random.default_rng(0), np.random.RandomState(0), random.Random(0), torch.Generator()

    def __call__(self, image):
        np.random.shuffle(self.channels)
        new, old, python, pytorch = self.generators
        drawn = [random.random(), new.random(), old.random(), python.random()]
        drawn += torch.rand(1, generator=pytorch).tolist() + torch.rand(1).tolist()
        # Sums of several threads are rounded otherwise.
        return {"drawn": [*self.channels, *drawn], "image": image, "sum": torch.rand(100_003).sum()}


class Loader(SlimDataLoaderBase):
    """Cases of a dataset that nobody copies, with transforms."""

    def __init__(self, *transforms):
        super().__init__(Dataset(), 2)
        self.transforms = transforms

    def generate_train_batch(self):
        case = np.random.choice(self._data.images)
        batch = {"image": torch.full((1, 8, 8, 8), float(case)) + torch.rand(1, 8, 8, 8)}
        for transform in self.transforms:
            batch = transform(**batch)
        return batch


class Dataset:
    images = list(range(100))

    def __deepcopy__(self, memo):
        raise AssertionError("a dataset may be large")


def batches(*transforms, seed=1, stream=TRAINING, rank=0, index=0, workers=0):
    return SeededBatches(SingleThreadedAugmenter(Loader(*transforms), None), seed, stream, rank, index, workers)


def take(number, found) -> list:
    """So many batches, as they are compared."""
    found = list(itertools.islice(found, number))
    return [{key: np.asarray(value).tolist() for key, value in batch.items()} for batch in found]


@ends_workers
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = take(10, batches(Shuffling()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    augmenter = OrderedBatches(batches(Shuffling(), workers=workers), None, workers, wait_time=0.002)
    augmenter.restart()
    try:
        assert take(10, augmenter) == expected
    finally:
        augmenter._finish()


def test_batches_go_on_at_an_index():
    expected = take(6, batches(Shuffling()))
    assert take(2, batches(Shuffling(), index=4)) == expected[4:]


def test_no_batch_repeats_another():
    """Within a training; in validation, of another seed, of another process."""
    several = [{}, {"stream": VALIDATION}, {"seed": 2}, {"rank": 1}]
    drawn = [batch["drawn"] for chosen in several for batch in take(30, batches(Shuffling(), **chosen))]
    for generator in zip(*drawn, strict=True):
        if max(generator) < 1:  # not one of the shuffled channels
            assert len(set(generator)) == len(drawn)


def test_making_batches_leaves_the_main_process_alone():
    def drawn():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        yield
        yield random.random(), np.random.random(), torch.rand(1)

    expected, found = drawn(), drawn()
    next(expected)
    expected = next(expected)
    next(found)
    next(batches(Shuffling()))
    assert next(found) == expected


def test_the_blur_does_not_depend_on_what_is_fast(monkeypatch):
    """nnU-Net's tries convolution and FFT, and goes on with the faster of the two."""
    blur = gaussian_blur.GaussianBlurTransform((0.5, 1.0), p_per_channel=1, benchmark=True)
    found = []
    for seconds in (itertools.count(step=1), itertools.count(step=-1)):  # FFT comes second: at first slower, then not
        clock = itertools.accumulate(itertools.chain.from_iterable(zip(itertools.repeat(0), seconds, strict=False)))
        monkeypatch.setattr(gaussian_blur, "time", lambda clock=clock: next(clock))
        loader = Loader(copy.deepcopy(blur))
        chosen = SeededBatches(SingleThreadedAugmenter(loader, None), 1, TRAINING, 0, 0, 0)
        np.random.seed(0)
        next(loader)  # as nnU-Net does, before a training
        assert set(loader.transforms[0].benchmark_use_fft[8].values()) == {len(found) == 1}
        found.append(take(3, chosen))
    assert found[0] == found[1]


@ends_workers
def test_a_worker_that_died_ends_the_training():
    augmenter = OrderedBatches(batches(Shuffling(), workers=2), None, 2, wait_time=0.002)
    augmenter.restart()
    next(augmenter)
    augmenter._processes[0].kill()
    with pytest.raises(RuntimeError, match="a process that makes batches has died"):
        take(1000, augmenter)


def test_a_trainer_with_loaders_of_its_own_is_refused_a_seed(make):
    class Other(SeededTrainer, nnUNetTrainer):
        named_seed = 1

    with pytest.raises(InputError, match="Other: its batches come from list, not from nnU-Net's loaders"):
        Other._batches(Other.__new__(Other), [], TRAINING, 1, 0)
