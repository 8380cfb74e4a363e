"""A hook of mkdocs: pages that are made, not written. Their sources stay where they belong."""

import posixpath
import re
from pathlib import Path

import backends  # beside this file, as is tested
import tested
import traffic
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(([^):#]+)(#[^)]*)?\)")
DOCUMENTS = {  # page: the document that it shows
    "design.md": "DESIGN.md",
    "kernels/cpu.md": "csrc/cpu/README.md",
    "kernels/cuda.md": "csrc/cuda/README.md",
    "kernels/cuda_backward.md": "csrc/cuda/BACKWARD.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGES = {document: page for page, document in DOCUMENTS.items()}


def on_files(files, config):
    """Add the pages, as mkdocs asks hooks to."""
    for page, document in DOCUMENTS.items():
        files.append(File.generated(config, page, content=with_links_to_pages(page, document)))
    files.append(File.generated(config, "backends.md", content=backends.page()))
    files.append(File.generated(config, "tested.md", content=tested.page()))
    files.append(File.generated(config, "traffic.md", content=traffic.page()))
    return files


def on_page_content(html, page, config, files):
    """Docstrings announce code by two colons; a page by one."""
    return html.replace("::</p>", ":</p>")


def with_links_to_pages(page: str, document: str) -> str:
    """The text of a document; a link to a file that has no page becomes plain text."""

    def relink(match: re.Match) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(document), target))
        if path not in PAGES:
            return text
        link = posixpath.relpath(PAGES[path], posixpath.dirname(page) or ".")
        return f"[{text}]({link}{anchor or ''})"

    return LINK.sub(relink, (ROOT / document).read_text())
