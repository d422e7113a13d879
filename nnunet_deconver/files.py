"""Files and folders that are read with an error one can act on, and written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nnunet_deconver.errors import InputError


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
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}){hint}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}){hint}") from error
    if not isinstance(content, expected):
        raise InputError(f"{path}: must hold a {expected.__name__}, got a {type(content).__name__}{hint}")
    return content


@contextmanager
def written_whole(path: Path, mode: str = "w", **options: Any) -> Iterator[IO]:
    """Opens a file to write that takes its name once it is whole; a failure leaves the earlier file as it was.

    Args:
        path: its name.
        mode: of `open`.
        options: of `open`.
    """
    # Opened plainly, not with tempfile, whose files only their owner may read.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open(mode, **options) as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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
