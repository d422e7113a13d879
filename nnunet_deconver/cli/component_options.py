"""The options of subcommands that choose an upsampling and a segmentation head."""

from nnunet_deconver.errors import ArgumentError, InputError


def upsampling_entry(name: str | None, receptive_field: str | None) -> dict | None:
    """The entry of the upsampling axis that `--upsampling` and `--receptive-field` name.

    Args:
        name: of the upsampling; None for the backbone's own.
        receptive_field: a positive number or "inf", as typed; None for the default.

    Raises:
        InputError: if the upsampling is unknown or has no receptive field, or that is not a positive number.
    """
    from nnunet_deconver.layers.components import UPSAMPLINGS

    if name is None:
        if receptive_field is not None:
            raise InputError(f"--receptive-field {receptive_field} goes with --upsampling dtc")
        return None
    entry: dict[str, float | str] = {"name": name}
    if receptive_field is not None:
        entry["receptive_field"] = _positive(receptive_field)
    try:
        UPSAMPLINGS.check(entry)
    except ValueError as error:
        raise ArgumentError("upsampling", name, f"{error}") from error
    return entry


def head_entry(name: str | None) -> dict | None:
    """The entry of the head axis that `--head` names.

    Raises:
        InputError: if the head is unknown.
    """
    from nnunet_deconver.layers.components import SEGMENTATION_HEADS

    if name is None:
        return None
    try:
        SEGMENTATION_HEADS.check({"name": name})
    except ValueError as error:
        raise ArgumentError("head", name, f"{error}") from error
    return {"name": name}


def _positive(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number > 0:
        raise ArgumentError("receptive_field", text, "must be a positive number or inf")
    # JSON, in which plans are written, has no infinity.
    return "inf" if number == float("inf") else int(number) if number.is_integer() else number
