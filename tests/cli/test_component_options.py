import pytest

from nnunet_deconver.cli.component_options import head_entry, upsampling_entry
from nnunet_deconver.errors import InputError


@pytest.mark.parametrize(
    "name, receptive_field, entry",
    [
        (None, None, None),
        ("linear", None, {"name": "linear"}),
        ("dtc", None, {"name": "dtc"}),
        ("dtc", "4", {"name": "dtc", "receptive_field": 4}),
        ("dtc", "2.5", {"name": "dtc", "receptive_field": 2.5}),
        ("dtc", "inf", {"name": "dtc", "receptive_field": "inf"}),
    ],
)
def test_upsamplings(name, receptive_field, entry):
    found = upsampling_entry(name, receptive_field)
    assert found == entry
    if entry and receptive_field == "4":
        assert type(found["receptive_field"]) is int  # goes into names of plans


def test_heads():
    assert head_entry(None) is None
    assert head_entry("nerdc") == {"name": "nerdc"}


@pytest.mark.parametrize(
    "name, receptive_field, message",
    [
        ("cubic", None, "upsampling cubic: upsampling 'cubic' is unknown; known are transposed, dtc"),
        (None, "4", "--receptive-field 4 goes with --upsampling dtc"),
        ("linear", "4", "upsampling linear: .* has no option receptive_field"),
        ("dtc", "0", "receptive_field 0: must be a positive number or inf"),
        ("dtc", "-1", "must be a positive number"),
        ("dtc", "nan", "must be a positive number"),
        ("dtc", "wide", "must be a positive number"),
    ],
)
def test_bad_upsamplings(name, receptive_field, message):
    with pytest.raises(InputError, match=message):
        upsampling_entry(name, receptive_field)


def test_bad_heads():
    with pytest.raises(InputError, match=r"head nerd: .* known are conv, nerdm, nerdc"):
        head_entry("nerd")
