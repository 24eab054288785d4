"""A hook of mkdocs: the pages of the repository's top level are part of the site, and so are links to its other files.

README.md is the site's first page. It names other pages without links, since it is also shown on package indexes, where
links to files cannot work: here the names become links. A link from docs/ to a page of the top level leads to its place
in the site; a link to a file that is not a page, such as the example configuration, becomes the file's name.
"""

# Loaded by its path:
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "bench/README.md": "benchmark.md",
}
"""Where each is in the site."""

_NAME = re.compile(r"`((?:docs/|bench/)?[\w/-]+\.md)`")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links, seen from the page's place in the repository, as links in the site."""
    del config
    place = page.file.src_uri
    source = next((name for name, its in PAGES.items() if its == place), f"docs/{place}")

    def in_site(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        there = PAGES.get(path) or path.removeprefix("docs/")
        if path not in PAGES and files.get_file_from_path(there) is None:
            if not (ROOT / path).exists():
                raise ValueError(f"{source}: there is no {path}")
            return f"`{path}`"
        up = "../" * place.count("/")
        return f"[{text}]({up}{there}{anchor})"

    if source == "README.md":
        markdown = _NAME.sub(r"[\1](\1)", markdown)
    return _LINK.sub(in_site, markdown)
