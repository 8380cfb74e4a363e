"""Machine files: what a prediction assumes of the hosts of a run."""

from pathlib import Path
from typing import Any

from mbt_fast import parallel
from mbt_fast.errors import InputError
from mbt_fast.parallel.machine import Machine
from mbt_fast.train import toml
from mbt_fast.train.fields import PositiveNumber, PositiveShare, Share, accept, check_known

MACHINES = Path(parallel.__file__).with_name("machines")
DEFAULT = MACHINES / "h100.toml"
_DTYPES = ("float32", "bfloat16", "float16")
_FIELDS: dict[str, tuple[str, Any]] = {  # key of the file: field, and what it takes
    "name": ("name", str),
    "gpu.memory": ("memory", PositiveNumber),
    "gpu.memory_bandwidth": ("memory_bandwidth", PositiveNumber),
    "link.bandwidth": ("link", PositiveNumber),
    "link.latency": ("link_latency", PositiveNumber),
    "network.bandwidth": ("network", PositiveNumber),
    "network.latency": ("network_latency", PositiveNumber),
    "collective.latency": ("start", PositiveNumber),
    "collective.overlap": ("overlap", Share),
}
_PER_DTYPE = {"peak": PositiveNumber, "efficiency": PositiveShare}


def read_machine(path: Path = DEFAULT) -> Machine:
    """Read a machine file: TOML with all the keys of ``machines/h100.toml``.

    Raises:
        InputError: It cannot be read, or a key is unknown, missing or has a value that does not
            fit.
    """
    kinds = {key: kind for key, (_, kind) in _FIELDS.items()}
    kinds |= {f"{table}.{dtype}": kind for table, kind in _PER_DTYPE.items() for dtype in _DTYPES}
    given = toml.read(path)
    try:
        for key in given:
            check_known(key, key, kinds)
        missing = next((key for key in kinds if key not in given), None)
        if missing:
            raise InputError(f"{missing} must be given, got none")
        values = {key: accept(key, kind, given[key]) for key, kind in kinds.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    fields = {name: values[key] for key, (name, _) in _FIELDS.items()}
    for table in _PER_DTYPE:
        fields[table] = {dtype: values[f"{table}.{dtype}"] for dtype in _DTYPES}
    return Machine(**fields)
