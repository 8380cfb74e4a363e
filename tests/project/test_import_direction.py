"""Who may import whom. Each row may import the rows named beside it, and none that comes after it.

{config, errors} <- checkpoint; {kernels, _C, _cuda} <~when called~ ops <- layers <- models
<- {data, flops, profiling, rollout, parallel} <- train <- pictures <- cli; testing, benchmarks,
tests: public names.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = {
    *("av", "jinja2", "matplotlib", "msgpack", "numpy", "pytest", "safetensors", "tabulate"),
    *("tensorboard", "timm", "tomli", "tomli_w", "tqdm", "transformers", "triton"),
}
IMPORTED_BY_NAME = {"numpy": Path("testing", "ptx")}  # only who asks for the folder needs these
PUBLIC = {"", "dispatch", "functional", "testing"}  # "": the names that mbt_fast itself lists
OPS = {"dispatch", "functional", "ops"}
MODELS = {*OPS, "activation_checkpointing", "checkpoint", "config", "errors", "layers"}

# By the first part of the name below mbt_fast, from the ground up.
MAY_IMPORT = {
    "errors": set(),
    "scenic_config": {"errors"},
    "config": {"errors", "scenic_config"},
    "checkpoint": {"config", "errors"},
    "kernels": set(),
    "ops": {"kernels"},  # when called
    "functional": {"ops"},
    "dispatch": {"ops"},
    "activation_checkpointing": {"ops"},
    "layers": OPS,
    "models": MODELS,
    "rollout": {"layers", "models", "ops"},
    "data": {"config", "errors", "models"},
    "flops": {"config", "layers", "models"},
    "profiling": {*MODELS, "", "flops", "models"},
    "parallel": {*MODELS, "flops", "models"},
    "train": {*MODELS, "", "data", "flops", "models", "parallel", "profiling"},
    "pictures": {"data", "errors", "models", "profiling", "rollout"},
    "testing": {*PUBLIC, "profiling"},
    "cli": {"*"},
    "__main__": {"cli"},
}


def sources():
    """(row, path) of every module but mbt_fast itself, which lists the public names."""
    for path in sorted((ROOT / "mbt_fast").rglob("*.py")):
        row = path.relative_to(ROOT / "mbt_fast").with_suffix("").parts[0]
        if row != "__init__":
            yield row, path
    yield from (("kernels", path) for path in sorted((ROOT / "kernels").rglob("*.py")))


SOURCES = list(sources())
ROWS = {row for row, _ in SOURCES}


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def rows_imported(path, nodes=ast.walk):
    """(row, line) of what a file imports of ours; the row of a public name is empty."""
    for node in nodes(ast.parse(path.read_text())):
        for package, _, rest in (name.partition(".") for name in imported(node)):
            if package == "mbt_fast":
                row = rest.partition(".")[0]
                yield (row if row in ROWS else ""), node.lineno


def test_every_module_belongs_to_a_row():
    assert set(MAY_IMPORT) == ROWS, "MAY_IMPORT has one row for each module or package"


def test_no_row_imports_one_above_it():
    rows = list(MAY_IMPORT)
    for row, allowed in MAY_IMPORT.items():
        assert allowed <= {"*", "", *rows[: rows.index(row)], row}, row


@pytest.mark.parametrize("row", MAY_IMPORT)
def test_import_direction(row):
    allowed = MAY_IMPORT[row] | {row}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports mbt_fast.{name}"
        for path in (path for own, path in SOURCES if own == row)
        for name, line in rows_imported(path)
        if name not in allowed and "*" not in allowed
    ]
    assert not wrong, f"{row} may import {sorted(allowed)}\n" + "\n".join(wrong)


def test_kernels_are_imported_when_they_are_called():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports mbt_fast.kernels at module level"
        for own, path in SOURCES
        if own not in ("cli", "kernels")
        for row, line in rows_imported(path, ast.iter_child_nodes)
        if row == "kernels"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_what_uses_the_library_imports_public_names(folder):
    packages = {"checkpoint", "cli", "data", "models", "parallel", "profiling", "rollout", "train"}
    public = {*PUBLIC, *packages, "errors", "flops", "kernels"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports mbt_fast.{row}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for row, line in rows_imported(path)
        if row not in public
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_packages_are_imported_where_they_are_needed():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name} at module level"
        for row, path in SOURCES
        if row != "kernels" and "ptx" not in path.parts  # imported by name only
        for node in ast.parse(path.read_text()).body
        for name in imported(node)
        if (package := name.partition(".")[0]) in OPTIONAL
        and IMPORTED_BY_NAME.get(package) not in path.relative_to(ROOT / "mbt_fast").parents
    ]
    assert not wrong, "\n".join(wrong)
