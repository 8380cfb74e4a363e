"""What the documents and docstrings say is true: their code runs, their names exist."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import mbt_fast

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mbt_fast.__path__, "mbt_fast.")
    if not module.name.endswith(("__main__", "_C")) and "kernels" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for n in MODULES for t in finder.find(importlib.import_module(n)) if t.examples]
    assert len(found) >= 5


def code_blocks(document):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.S | re.M)


@pytest.mark.parametrize("document", ["README.md", "DESIGN.md", "CONTRIBUTING.md"])
def test_python_in_documents_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in code_blocks(document):
        exec(compile(block, document, "exec"), names)


def test_readme_has_python_to_run():
    assert code_blocks("README.md")


@pytest.mark.parametrize("document", ["README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_paths_in_documents_exist(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), f"{document} links to {target}"


def test_changelog_has_the_version():
    assert f"## {mbt_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_public_name_is_documented():
    for name in mbt_fast.__all__:
        thing = getattr(mbt_fast, name)
        assert name == "__version__" or thing.__doc__, name
