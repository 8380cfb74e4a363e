"""What the documents and docstrings say is true: their code runs, their names exist."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import mbt_fast
from benchmarks.gate import load_green
from benchmarks.report import readme
from benchmarks.report.results import FOLDER, read
from mbt_fast.profiling import figure3

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


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_readme_says_what_the_records_say(name):
    begin, end = readme.markers(name)
    written = readme.README.read_text().split(begin)[1].split(end)[0]
    assert written == readme.blocks(read(FOLDER))[name]


def test_readme_shows_what_the_records_say():
    for path, svg in readme.plots(read(FOLDER)).items():
        assert path.read_text() == svg, f"{path.name}: run python -m benchmarks.report --readme"


def test_images_of_the_readme_exist():
    images = re.findall(r'<img src="([^"]+)"', readme.README.read_text())
    assert len(images) == 2
    assert all((ROOT / image).exists() for image in images)


def test_shares_of_kept_memory_in_prose_are_the_recorded_ones():
    kept = load_green(FOLDER / "savings.json").select(case="kept", dtype="bfloat16")
    sizes = {record.variant: record.saved_memory for record in kept}
    reduced, minimal = (
        sizes[f"ours, memory {name}"] / sizes["eager"] for name in ("reduced", "minimal")
    )
    prose = " ".join(readme.README.read_text().split())
    assert f"keeps {reduced:.2f} of what eager PyTorch keeps" in prose
    assert f'{minimal:.2f} with `memory="minimal"`' in prose


def test_ratios_of_figure_3_in_prose_are_the_counted_ones():
    early = {p.fusion: p for p in figure3.points() if p.fusion_layer == 0}
    late = next(p for p in figure3.points() if p.fusion_layer == 12)
    prose = " ".join(readme.README.read_text().split())
    vanilla = early["vanilla"]
    assert f"costs {vanilla.ours / late.ours:.1f} times late fusion" in prose
    assert f"it costs {vanilla.efficient / late.efficient:.1f} times" in prose
    assert f"bottlenecks {early['bottleneck'].ours / late.ours:.2f} times" in prose


def test_changelog_has_the_version():
    assert f"## {mbt_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_public_name_is_documented():
    for name in mbt_fast.__all__:
        thing = getattr(mbt_fast, name)
        assert name == "__version__" or thing.__doc__, name
