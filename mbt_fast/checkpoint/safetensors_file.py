"""Read a safetensors file, with an error of our own for a malformed one."""

from pathlib import Path

from torch import Tensor

from mbt_fast.errors import CheckpointError


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on CPU.

    Raises:
        CheckpointError: The file is truncated or malformed.
        OSError: The file cannot be read, or is a directory.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb"):  # the OSError of safetensors does not name the file
        pass
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    return tensors
