"""Who may import whom. The table is the architecture; this test keeps it true."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"mbt_fast": ROOT / "mbt_fast", "mbt_fast.kernels": ROOT / "kernels"}
OPTIONAL = {
    "av",
    "cycler",
    "jinja2",
    "matplotlib",
    "msgpack",
    "numpy",
    "safetensors",
    "tabulate",
    "tqdm",
    "triton",
}

# Direct imports. "mbt_fast" itself, the list of public names, may import what it lists.
MAY_IMPORT = {
    "mbt_fast.kernels": set(),
    "mbt_fast.errors": set(),
    "mbt_fast.native": set(),
    "mbt_fast.reference": set(),
    "mbt_fast.autocast": set(),
    "mbt_fast.validation": {"autocast"},
    "mbt_fast.cpu": {"native"},
    "mbt_fast.cuda": {"native"},
    "mbt_fast.dispatch": {"autocast", "native", "validation"},
    "mbt_fast.flop_formulas": set(),
    "mbt_fast.ops": {"flop_formulas", "reference"},
    "mbt_fast.autograd": {"autocast", "dispatch", "ops"},
    "mbt_fast.recompute": {"ops"},
    "mbt_fast.sdpa": {"reference", "autograd"},
    "mbt_fast.functional": {
        "autocast",
        "autograd",
        "dispatch",
        "reference",
        "sdpa",
        "validation",
    },
    "mbt_fast.layers": {"autograd", "dispatch", "functional", "reference", "validation"},
    "mbt_fast.models": {
        "autocast",
        "checkpoint",
        "dispatch",
        "errors",
        "functional",
        "layers",
        "reference",
        "validation",
    },
    "mbt_fast.checkpoint": {"models.config", "layers", "errors"},
    "mbt_fast.flops": {"layers", "models"},
    "mbt_fast.data": {"models", "errors"},
    "mbt_fast.profiling": {"dispatch", "errors", "flops", "functional", "models", "native"},
    "mbt_fast.testing": {"functional", "profiling.timing"},
    "mbt_fast.cli": {
        "checkpoint",
        "data",
        "dispatch",
        "errors",
        "flops",
        "kernels.sources",
        "models",
        "native",
        "profiling",
    },
    "mbt_fast.__main__": {"cli"},
}


def modules():
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            yield ".".join(parts).removesuffix(".__init__"), path


def within(name, package):
    return f"{name}.".startswith(f"{package}.")


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def is_module(name):
    return any(within(module, name) for module, _ in modules())


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules()])
def test_import_direction(module, path):
    if module == "mbt_fast":
        return
    layer = max((la for la in MAY_IMPORT if within(module, la)), key=len, default=None)
    assert layer is not None, f"{module} belongs to no layer; add it to MAY_IMPORT"
    allowed = {layer, *(f"mbt_fast.{name}" for name in MAY_IMPORT[layer])}
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported(node):
            inner = within(name, "mbt_fast") and is_module(name.rpartition(".")[0])
            if inner and name.count(".") == 1 and not is_module(name):
                inner = layer != "mbt_fast.cli"  # a public name of the package
            if inner:
                right = any(within(name, package) for package in allowed)
                assert right, f"{module}:{node.lineno} imports {name}; {layer} may not"


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules()])
def test_optional_packages_are_imported_where_they_are_needed(module, path):
    if within(module, "mbt_fast.kernels"):
        return
    body = ast.parse(path.read_text()).body
    eager = {name.split(".")[0] for node in body for name in imported(node)}
    assert not eager & OPTIONAL, f"{module} imports {eager & OPTIONAL} at module level"


def test_nothing_imports_the_command_line():
    for module, path in modules():
        if within(module, "mbt_fast.cli") or module == "mbt_fast.__main__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not any(within(name, "mbt_fast.cli") for name in imported(node)), module
