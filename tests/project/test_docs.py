"""Documents and docstrings tell the truth: their code runs, their links and commands exist."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import mbt_fast
from mbt_fast.cli.main import build_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "csrc/*/*.md", "benchmarks/*.md", "tests/golden/*.md")
    for path in ROOT.glob(pattern)
)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
LINK = re.compile(r"\]\(([^)#:\s]+)[)#]|<img[^>]* src=\"([^\":]+)\"")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
COMMAND = re.compile(r"^(mbt-fast|make|python -m) ([a-z_.]+)(.*)", re.M)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mbt_fast.__path__, "mbt_fast.")
    if not module.name.endswith(("__main__", "_C", "_cuda", ".triton_driver"))
    and "kernels" not in module.name
)


def text_of(document):
    return (ROOT / document).read_text()


def code_in(document):
    """The lines that a document shows as code: fenced, indented or between backticks."""
    text = text_of(document)
    fenced = [block for language, block in FENCED.findall(text) if language == "sh"]
    rest = FENCED.sub("", text)
    spans = re.findall(r"^ {4}(.+)$", rest, re.M) + re.findall(r"`([^`]+)`", rest)
    return "\n".join(fenced + spans)


def test_examples_in_docstrings_run():
    results = {
        name: doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
        for name in MODULES
    }
    assert not [name for name, result in results.items() if result.failed]
    assert sum(result.attempted for result in results.values()) >= 5


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if PYTHON.search(text_of(name))])
def test_python_in_documents_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in PYTHON.findall(text_of(document)):
        exec(compile(block, document, "exec"), names)


def test_readme_has_python_to_run():
    assert PYTHON.search(text_of("README.md"))


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if not name.startswith("docs/")])
def test_links_in_documents_exist(document):
    """Those of docs/ may lead to generated pages, and ``make docs`` checks them."""
    folder = (ROOT / document).parent
    targets = [link or image for link, image in LINK.findall(text_of(document))]
    assert not [target for target in targets if not (folder / target).exists()]


def exists(tool, name, arguments):
    if tool == "make":
        return re.search(rf"^{name}:", text_of("Makefile"), re.M)
    if tool == "python -m":
        return importlib.util.find_spec(name)
    options = re.findall(r"--[a-z0-9-]+", arguments.partition("#")[0])
    known = command(build_parser(), name)
    if known and known._subparsers and arguments:  # such as mbt-fast data check
        known = command(known, arguments.split()[0])
    return known and set(options) <= set(known._option_string_actions)


def command(parser, name):
    (subcommands,) = parser._subparsers._group_actions
    return subcommands.choices.get(name)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_commands_in_documents_exist(document):
    commands = COMMAND.findall(code_in(document))
    assert not [" ".join(command) for command in commands if not exists(*command)]


def test_changelog_has_the_version():
    assert f"## {mbt_fast.__version__}" in text_of("CHANGELOG.md")


def test_every_public_name_is_documented():
    for name in mbt_fast.__all__:
        thing = getattr(mbt_fast, name)
        assert name == "__version__" or thing.__doc__, name
