"""Lets the documents of docs/ be read both in the repository and as a site, for mkdocs."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports] of the extra docs

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Adds the figures of studies, which are among the results of benchmarks."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/figures/*.png")):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Turns links out of docs/ into plain text with the file's path: the site has no such pages, only their images.

    Raises:
        FileNotFoundError: if there is no such file in the repository.
    """

    def without_link(found: re.Match) -> str:
        text, target = found.groups()
        path = (ROOT / "docs" / page.file.src_uri).parent / target.partition("#")[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which is not in the repository")
        name = path.resolve().relative_to(ROOT)
        return text if str(name).endswith(text.strip("`")) else f"{text} (`{name}`)"

    markdown = re.sub(r"(!\[[^\]]*\]\()\.\./", r"\1", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]+)\)", without_link, markdown)
