from nnunet_deconver.demo.training import TrainingBar


def test_training_bar_follows_nnunets_output(training_output, tmp_path, capsys):
    (tmp_path / "debug.json").write_text('{"num_epochs": "3"}')
    with TrainingBar(tmp_path) as bar:
        for epoch in range(2):
            for line in training_output(epoch):
                bar(line)
            assert bar.bar.n == epoch + 1
        assert bar.bar.total == 3
    assert "Dice 0.50" in capsys.readouterr().err


def test_training_bar_without_a_known_end(tmp_path):
    with TrainingBar(tmp_path / "missing") as bar:
        bar("2025-01-01 10:00:00.000000: Epoch 0")
        assert bar.bar.total is None
