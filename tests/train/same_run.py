"""Whether two runs left the same in their folders."""

import torch
from safetensors.torch import load_file

from mbt_fast.checkpoint.runs import find_checkpoint
from mbt_fast.train.log import read

MEASURED = ("clips_per_second", "data_wait")


def assert_same_run(run, whole):
    """Last checkpoint bit for bit, records but for what was measured, and what is pointed to."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        actual, expected = (load_file(find_checkpoint(folder) / name) for folder in (run, whole))
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(actual[key], tensor), key
    for name in ("log.jsonl", "broken.jsonl"):
        actual, expected = (list(map(timeless, read(folder / name))) for folder in (run, whole))
        assert actual == expected
    for pointer in ("latest", "best"):
        assert (run / pointer).read_text() == (whole / pointer).read_text()


def timeless(record):
    return {key: value for key, value in record.items() if key not in MEASURED}
