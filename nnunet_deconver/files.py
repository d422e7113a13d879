"""Files and folders that are read with an error one can act on, and written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nnunet_deconver.errors import InputError


def check_is_file(path: Path, what: str = "") -> None:
    """Raises InputError for what is there and no file: a folder, or a pipe, from which reading would wait."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a file{f'; {what}' if what else ''}")


def read_json(path: Path, what: str = "", expected: type = dict) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: what it should be or where it comes from, for the message.
        expected: type of its content, dict or list.

    Raises:
        InputError: if there is no such file, or no such content.
    """
    hint = f"; {what}" if what else ""
    check_is_file(path, what)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}){hint}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}){hint}") from error
    if not isinstance(content, expected):
        raise InputError(f"{path}: must hold a {expected.__name__}, got a {type(content).__name__}{hint}")
    return content


def check_schema(content: dict, schema: dict, where: str, what: str = "") -> dict:
    """The content, if a JSON schema allows it.

    Args:
        content: of a JSON file.
        schema: it must follow.
        where: it is from.
        what: see `read_json`.

    Raises:
        InputError: naming the field that is wrong, what it is and what is allowed.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema).iter_errors(content))
    if error is None:
        return content
    field = ".".join(map(str, error.absolute_path))
    described = error.schema.get("description") if isinstance(error.schema, dict) else None
    problem = error.message
    if described and error.validator in ("anyOf", "maxLength", "pattern", "type"):
        problem = f"must be {described}, got {error.instance!r}"
    if error.validator == "required":
        problem = f"has no {', '.join(key for key in error.validator_value if key not in error.instance)}"
    if len(problem) > 300:
        problem = f"{problem[:150]} ... {problem[-100:]}"
    raise InputError(f"{where}: {f'{field}: ' if field else ''}{problem}{f'; {what}' if what else ''}")


@contextmanager
def written_whole(path: Path, mode: str = "w", **options: Any) -> Iterator[IO]:
    """Opens a file to write that takes its name once it is whole; a failure leaves the earlier file as it was.

    Args:
        path: its name.
        mode: of `open`.
        options: of `open`.
    """
    # `remove_unfinished` knows its name. Opened plainly, not with tempfile, whose files only their owner may read.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open(mode, **options) as file:
            yield file
            # On the disk before the name is: a machine that fails in between keeps the earlier file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Removes what a process that was killed in `written_whole` left; nobody may be writing there now.

    Args:
        folder: of the files.
        name: of one of them, by default any.
    """
    for path in folder.glob(f".{name}.*.unfinished"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Makes a folder that takes its name once all is in it; a failure leaves nothing.

    Args:
        folder: its name; there must be none.

    Yields:
        The folder to write to.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
