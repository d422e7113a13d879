from nnunet_deconver import cli, trainers
from nnunet_deconver.cli.listing import trainer_lines


def test_epoch_variants_share_a_line():
    class Base:
        """The common ground."""

    class Trainer(Base):
        """A trainer.

        With more to say.
        """

    class Trainer_5epochs(Trainer):
        """A trainer for 5 epochs."""

        is_epoch_variant = True

    class Trainer_k5(Trainer):
        """A wider one."""

    class Trainer_k5_5epochs(Trainer_k5):
        is_epoch_variant = True

    class Trainer_k5_1epoch(Trainer_k5):
        is_epoch_variant = True

    class Trainer_1epoch(Trainer):
        is_epoch_variant = True

    class Bare(Base):
        pass

    class Other(Base):
        """Another."""

    class Other_5epochs(Other):
        is_epoch_variant = True

    variants = [Trainer_k5_5epochs, Trainer_5epochs, Trainer_1epoch, Trainer_k5_1epoch]
    assert trainer_lines([Trainer, Trainer_k5, *variants, Bare, Other, Other_5epochs]) == [
        "Trainer     A trainer. [nnU-Net]",
        "Trainer_k5  A wider one. [nnU-Net]",
        "    each also with _5epochs _1epoch",
        "",
        "Bare         [nnU-Net]",
        "",
        "Other       Another. [nnU-Net]",
        "    each also with _5epochs",
    ]


def test_no_trainers():
    assert trainer_lines([]) == []


def test_every_trainer_is_listed_with_a_summary(capsys):
    assert cli.main(["list", "trainers"]) == 0
    listed = set()
    for paragraph in capsys.readouterr().out.split("\n\n"):
        names, suffixes = [], []
        for line in paragraph.splitlines():
            if line.startswith(" "):
                suffixes = line.removeprefix("    each also with ").split()
            else:
                name, summary = line.split(maxsplit=1)
                assert summary
                names.append(name)
        listed |= {name + suffix for name in names for suffix in ["", *suffixes]}
    assert listed == set(trainers.__all__)
