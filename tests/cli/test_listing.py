import pytest

from nnunet_deconver import cli, plans, trainers
from nnunet_deconver.cli.listing import SECTIONS, section_lines, source, trainer_lines
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.plans.presets import preset_names


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


@pytest.mark.parametrize(
    "name, expected",
    [
        ("nnUNetTrainerUNETR", "arXiv 2103.10504"),
        ("nnUNetTrainerSwinUNETR_5epochs", "arXiv 2201.01266"),
        ("nnUNetTrainerSwinUNETRV2DTC", "doi 10.1007/978-3-031-43901-8_40, arXiv 2601.17939"),
        ("nnUNetPlannerUNetLinear", "arXiv 1505.04597"),
        ("nnUNetTrainerMedNeXtLk5", "arXiv 2303.09975"),
    ],
)
def test_a_name_within_another_has_no_source_of_its_own(name, expected):
    assert source(name) == expected


def test_backbones_of_other_packages_are_listed_by_their_class():
    lines = [" ".join(line.split()) for line in section_lines("backbones")]
    assert "unetr monai.networks.nets.UNETR [arXiv 2103.10504]" in lines


def test_no_trainers():
    assert trainer_lines([]) == []


def test_every_trainer_is_listed_with_a_summary(capsys):
    assert cli.main(["list", "trainers"]) == 0
    listed = set()
    *paragraphs, last = capsys.readouterr().out.split("\n\n")
    assert last.endswith("nnU-Net finds: <trainer>[_<N>epochs][_<N>iterations][_seed<N>]\n")
    for paragraph in paragraphs:
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


def listed(capsys, section: str) -> list[str]:
    assert cli.main(["list", section]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_planner_is_listed_with_a_summary(capsys):
    *lines, targets = listed(capsys, "planners")
    assert targets == "    each also with L for 24 GiB, XL for 40 GiB"
    names = [line.split()[0] for line in lines]
    assert [name + target for name in names for target in ("", "L", "XL")] == plans.__all__
    assert "Deconver + DTC + NeRDc, sized for 8 GiB. [arXiv 2504.00302, arXiv 2601.17939, arXiv 2103.04020]" in (
        next(line for line in lines if line.startswith("nnUNetPlannerDeconverDTCNeRDc "))
    )


def test_every_preset_is_listed_with_its_source(capsys):
    lines = listed(capsys, "presets")
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(line.split()[1] in ("2D", "3D") and line.endswith("]") for line in lines)


@pytest.mark.parametrize("section, axis", [("upsamplings", UPSAMPLINGS), ("heads", SEGMENTATION_HEADS)])
def test_every_choice_of_an_axis_is_listed(capsys, section, axis):
    lines = listed(capsys, section)
    assert [line.split()[0] for line in lines] == [axis.default, *axis.choices]
    assert all(len(line.split()) > 3 for line in lines)


def test_all_is_listed_by_section(capsys):
    assert cli.main(["list"]) == 0
    output = capsys.readouterr().out
    headers = [line for line in output.splitlines() if line.isupper()]
    assert headers == [section.upper() for section in SECTIONS]
    for section in SECTIONS:
        assert all(line in output for line in listed(capsys, section))


def test_an_unknown_section(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["list", "layers"])
    assert left.value.code == 2


@pytest.mark.parametrize(
    "name, where",
    [
        ("nnUNetTrainerDeconverNeRDc", "arXiv 2504.00302, arXiv 2103.04020"),
        ("nnUNetPlannerResEncDTC", "arXiv 2601.17939"),
        ("nnUNetPlannerDySample", "arXiv 2308.15085"),
        ("nnUNetTrainer_Adam_1head", "arXiv 2103.04020"),
        ("nnUNetTrainer_AdamW1e3", "nnunet-deconver"),
        ("nnUNetTrainer", "nnU-Net"),
    ],
)
def test_sources(name, where):
    assert source(name) == where
