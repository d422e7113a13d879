"""The JSON files of nnU-Net, checked as they are read: plans and dataset.json.

What is in them may be written by hand, or by somebody else: an error names the file, the field, what it is and what is
allowed, and nothing that they name is imported.
"""

from functools import cache
from pathlib import Path

from nnunet_deconver.files import check_schema, read_json

_FOLDER = Path(__file__).parent
PLANS_HINT = "make it with nnUNetv2_plan_experiment or nnunet-deconver plan, or name others"


@cache
def _schema(name: str) -> dict:
    return read_json(_FOLDER / f"{name}.schema.json")


def read_plans(path: Path, what: str = PLANS_HINT) -> dict:
    """The content of a plans file.

    Args:
        path: of the file.
        what: what it should be or where it comes from, for the message.

    Raises:
        InputError: if there is no such file, or a field is not what nnU-Net has there.
    """
    return check_plans(read_json(path, what), str(path), what)


def check_plans(plans: dict, where: str, what: str = PLANS_HINT) -> dict:
    """The plans, if every field is what nnU-Net has there.

    Args:
        plans: content of a plans file.
        where: they are from.
        what: see `read_plans`.

    Raises:
        InputError: otherwise.
    """
    return check_schema(plans, _schema("plans"), where, what)


def read_dataset_json(path: Path, what: str = "it must be nnU-Net's dataset.json") -> dict:
    """The content of a dataset.json.

    Args:
        path: of the file.
        what: what it should be or where it comes from, for the message.

    Raises:
        InputError: if there is no such file, or a field is not what nnU-Net has there.
    """
    return check_schema(read_json(path, what), _schema("dataset"), str(path), what)
