import numpy as np
import pytest
import torch

from nnunet_deconver.models.training_log import noted_number, parse_logs, read_curves

START = """
2026-01-01 10:00:00.1: do_dummy_2d_data_aug: True
2026-01-01 10:00:00.2: The split file contains 5 splits.
"""


def epoch(number, train, val, dice, seconds=14.47):
    lines = [
        f"Epoch {number}",
        "Current learning rate: 0.01",
        f"train_loss {train}",
        f"val_loss {val}",
        f"Pseudo dice [{dice}]",
        f"Epoch time: {seconds} s",
        "Yayy! New best EMA pseudo Dice: 0.3297",
    ]
    return "".join(f"2026-01-01 10:00:01.2: {line} \n" for line in lines)  # nnU-Net's lines end with a space


def test_logs_of_nnunet():
    text = START + epoch(0, 0.25, -0.1, "np.float32(0.5), np.float32(0.7)") + epoch(1, -0.25, -0.3, "0.75, nan")
    found = parse_logs([text])
    np.testing.assert_allclose(found.train_loss, [0.25, -0.25])
    np.testing.assert_allclose(found.val_loss, [-0.1, -0.3])
    np.testing.assert_allclose(found.dice, [0.6, 0.75])
    np.testing.assert_array_equal(found.seconds, [14.47, 14.47])


def test_a_resumed_run_repeats_epochs():
    first = START + epoch(0, 1, 1, "0.1") + epoch(1, 2, 2, "0.2", 20.5) + "2026-01-01 10:00:09.2: Epoch 2 \n"
    second = START + epoch(1, 3, 3, "0.3", 30.25) + epoch(2, 4, 4, "1e-05", 40)
    found = parse_logs([first, second])
    np.testing.assert_allclose(found.train_loss, [1, 3, 4])
    np.testing.assert_allclose(found.dice, [0.1, 0.3, 1e-5])
    np.testing.assert_array_equal(found.seconds, [14.47, 30.25, 40])


def test_an_unfinished_epoch_does_not_count():
    found = parse_logs([epoch(0, 1, 1, "0.1") + "2026-01-01 10:00:09.2: Epoch 1 \n"])
    assert len(found.train_loss) == 1
    assert parse_logs([START]) is None
    # Killed after the losses and before the time: the epoch counts, its time is not known.
    killed = "Epoch 0 \ntrain_loss 1 \nval_loss 1 \nPseudo dice [0.1] \n"
    np.testing.assert_array_equal(parse_logs([killed]).seconds, [np.nan])
    assert parse_logs([]) is None


def checkpoint(path, epochs, timed=0):
    logging = {
        "train_losses": np.arange(epochs, dtype=np.float32).tolist(),
        "val_losses": [np.float32(-1)] * epochs,
        "mean_fg_dice": [np.float64(0.5)] * epochs,
        "lrs": [0.1] * (epochs + 1),
        "epoch_start_timestamps": [100.0 + 10 * epoch for epoch in range(timed)],
        "epoch_end_timestamps": [107.5 + 10 * epoch for epoch in range(timed)],
    }
    torch.save({"logging": logging, "network_weights": {"a": torch.zeros(3)}}, path)


def test_checkpoints_where_there_is_no_log(tmp_path):
    assert read_curves(tmp_path) is None
    checkpoint(tmp_path / "checkpoint_best.pth", 2)
    checkpoint(tmp_path / "checkpoint_final.pth", 4)
    found = read_curves(tmp_path)
    np.testing.assert_array_equal(found.train_loss, [0, 1, 2, 3])
    assert (found.val_loss == -1).all()
    assert found.dice == pytest.approx(0.5)
    assert np.isnan(found.seconds).all()
    checkpoint(tmp_path / "checkpoint_final.pth", 4, timed=3)
    np.testing.assert_array_equal(read_curves(tmp_path).seconds, [7.5, 7.5, 7.5, np.nan])
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(epoch(0, 9, 9, "0.9"))
    np.testing.assert_array_equal(read_curves(tmp_path).train_loss, [9])


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"num_epochs": "many"}', '{"num_epochs": [3]}'])
def test_a_number_that_nnunet_did_not_note(tmp_path, content):
    if content is not None:
        (tmp_path / "debug.json").write_text(content)
    assert noted_number(tmp_path, "num_epochs") is None


def test_a_number_that_nnunet_noted(tmp_path):
    # As nnU-Net writes it: everything is text.
    (tmp_path / "debug.json").write_text('{"num_epochs": "30", "num_iterations_per_epoch": "250"}')
    assert noted_number(tmp_path, "num_epochs") == 30
