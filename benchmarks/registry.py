"""What is measured, against whom, and which correctness tests guard it.

python -m benchmarks.run --list      prints this table
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One document of results.

    Attributes:
        name: Of the entry and of its file, ``results/<environment>/<name>.json``.
        measures: One sentence.
        baseline: The variant that ratios are relative to.
        guards: Test files, besides those of the device's kernels; a speed-up counts if they are
            green at the same commit.
        seconds: About how long it may take, per type of device; not run on others.
    """

    name: str
    measures: str
    baseline: str
    guards: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def module(self) -> str:
        """Where its cases are described."""
        return f"benchmarks.entries.{self.name}"

    def guards_on(self, device: str) -> tuple[str, ...]:
        """All test files that guard it on this type of device."""
        return (KERNELS[device], *self.guards)


KERNELS = {"cpu": "tests/test_cpu_kernels.py", "cuda": "tests/test_triton_kernels.py"}
OPS = ("tests/test_bottleneck_attention.py",)
MODEL = (*OPS, "tests/test_layer_ops.py", "tests/test_mbt.py")

# Those that compile come last: how long that takes nobody knows before.
ENTRIES = (
    Entry(
        name="attention",
        measures="attention of two to three streams, forward and backward, no layer around it",
        baseline="sdpa",
        guards=OPS,
        seconds={"cpu": 560, "cuda": 120},
    ),
    Entry(
        name="short_attention",
        measures="the same for streams of 4 to 256 rows: from which length on ours is faster",
        baseline="sdpa",
        guards=OPS,
        seconds={"cpu": 160},
    ),
    Entry(
        name="layer_ops",
        measures="GELU with bias, LayerNorm and residual sums around attention, both directions",
        baseline="torch",
        guards=("tests/test_layer_ops.py", "tests/test_residual_add.py"),
        seconds={"cpu": 640, "cuda": 40},
    ),
    Entry(
        name="parts",
        measures="what a fusion layer of ours consists of, part by part, against the ceilings",
        baseline="",
        guards=MODEL,
        seconds={"cpu": 60},
    ),
    Entry(
        name="host_cost",
        measures="what a call of the op costs the host beyond its launcher",
        baseline="",
        guards=OPS,
        seconds={"cpu": 20},
    ),
    Entry(
        name="savings",
        measures="each exact saving on and off, and what a layer keeps for its backward",
        baseline="eager",
        guards=(*MODEL, "tests/test_savings.py", "tests/test_recomputing.py"),
        seconds={"cpu": 300, "cuda": 60},
    ),
    Entry(
        name="sweeps",
        measures="cost against fusion layer, span, B, modalities and batch, with fitted exponents",
        baseline="bottleneck",
        guards=(*MODEL, "tests/test_flops.py"),
        seconds={"cpu": 240, "cuda": 120},
    ),
    Entry(
        name="linears",
        measures="Linears of both modalities together or one by one, and GELU in the epilogue",
        baseline="one by one",
        guards=("tests/test_mbt.py",),
        seconds={"cuda": 20},
    ),
    Entry(
        name="layer",
        measures="one fusion layer, forward and step, against every other way to fuse",
        baseline="eager",
        guards=MODEL,
        seconds={"cpu": 220, "cuda": 90},
    ),
    Entry(
        name="model",
        measures="the whole model, forward and step, against every other way to fuse",
        baseline="eager",
        guards=MODEL,
        seconds={"cpu": 350, "cuda": 90},
    ),
)

# Variants that are not ours, by name, and what each one is. A suffix tells the kernel asked for.
PEERS = {
    "sdpa": "torch's attention once per stream, on views of packed qkv",
    "sdpa, contiguous": "the same on copies that were made before",
    "sdpa cudnn": "the same on views, by cuDNN",
    "sdpa flash": "the same on views, by flash attention",
    "sdpa cudnn, copies": "the same on copies, made in the call",
    "sdpa flash, copies": "the same on copies, made in the call",
    "varlen_attn": "torch's variable-length attention over packed rows",
    "flex_attention": "torch's FlexAttention, compiled, with a block mask",
    "xformers": "attention of xformers with a block-diagonal mask",
    "vanilla pairwise": "attention over all streams joined: what bottlenecks replace",
    "torch": "torch's own gelu, layer_norm or sum",
    "one by one": "torch's Linear, modality after modality",
    "side by side": "the same on a CUDA stream each",
    "grouped, no bias": "torch's grouped_mm over packed rows",
    "linear, gelu": "torch's Linear, then its gelu",
    "linear, gelu, compiled": "the same under torch.compile",
    "epilogue": "torch's product with bias and GELU in its epilogue (cublasLt)",
    "torch, compiled": "the same under torch.compile",
    "eager": "bottleneck fusion on stock PyTorch: torch's attention per modality, cat, slice, mean",
    "eager, compiled": "the same under torch.compile",
    "eager, compiled, cudnn": "the same under torch.compile, attention by cuDNN",
    "eager, compiled, flash": "the same under torch.compile, attention by flash attention",
    "vanilla shared": "Eq. 4, one set of weights over all tokens, on stock PyTorch",
    "vanilla own": "Eq. 5-6, own weights, queries of own rows only, on stock PyTorch",
    "vanilla shared, compiled": "the same under torch.compile",
    "vanilla own, compiled": "the same under torch.compile",
    "vanilla official": "as the official code computes it: every block over the tokens of all "
    "modalities, foreign rows thrown away; wasteful, no baseline",
}


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: There is none.
    """
    for candidate in ENTRIES:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in ENTRIES)
    raise ValueError(f"name must be one of {names}, got {name!r}")
