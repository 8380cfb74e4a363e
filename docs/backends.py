"""The page about backends: the dispatch table as Markdown."""

from mbt_fast import dispatch, functional

WHAT = {
    "cuda": "CUDA C++ for NVIDIA Hopper (`wgmma`, TMA), in `csrc/cuda`",
    "triton": "Triton kernels, in `kernels`",
    "cpu": "C++ with AVX2, AVX-512 or AMX, chosen at run time, in `csrc/cpu`",
    "sdpa": "PyTorch's own fastest functions, such as `scaled_dot_product_attention`",
    "reference": "PyTorch's own operators; defines what every op means",
}
START = """# Backends

A backend runs an op. `backend="auto"` takes the first row that can run the call and that a recorded
measurement shows to win; a named backend runs the call, or raises with the reasons of all rows.
`mbt-fast info` prints the reasons of this machine, `mbt_fast.dispatch.explain` those of one call.

"""
HEADER = "| backend | what | needs | ops | dtypes |\n|---|---|---|---|---|\n"


def page() -> str:
    """The whole page."""
    return START + HEADER + "\n".join(map(_row, dispatch.BACKENDS)) + "\n"


def _row(backend: dispatch.Backend) -> str:
    cells = (f"`{backend.name}`", WHAT[backend.name], _needs(backend), _ops(backend))
    return f"| {' | '.join(cells)} | {_dtypes(backend)} |"


def _needs(backend: dispatch.Backend) -> str:
    needs = []
    if backend.device_type:
        needs.append(f"tensors on `{backend.device_type}`")
    if backend.requires:
        needs.append(f"`{backend.requires}`")
    if backend.min_capability:
        needs.append(f"compute capability {'.'.join(map(str, backend.min_capability))} or higher")
    if backend.major:
        needs.append(f"compute capability {backend.major}.x")
    for widths in backend.widths.values():
        needs.append(f"head dimension {' or '.join(map(str, sorted(widths)))}")
    for op, most in backend.max_width.items():
        needs.append(f"at most {most} channels in `{op}`")
    return ", ".join(needs) or "PyTorch alone"


def _ops(backend: dispatch.Backend) -> str:
    return ", ".join(f"`{op}`" for op in sorted(backend.ops) if hasattr(functional, op))


def _dtypes(backend: dispatch.Backend) -> str:
    if backend.dtypes is None:
        return "all floating point"
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in backend.dtypes))
