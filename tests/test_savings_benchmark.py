"""The benchmark of the savings, on a tiny model: what it compares, and what it records."""

import pytest
import torch

from benchmarks import savings
from mbt_fast.models.registry import config_for

TINY = config_for("mbt_tiny", stochastic_depth=0.6)
ENTRIES = {
    "forward": {"eager", "cls_only off", "cls_only on"},
    "step": {"eager", *savings.STEPS},
    "depth": {"masked", "skipped"},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_saving_is_measured_on_and_off(entry):
    records = list(getattr(savings, entry)(TINY, torch.float32, savings.Timing(0.0)))
    assert {record["variant"] for record in records} == ENTRIES[entry]
    assert records[0]["ratio"] == 1
    for record in records:
        assert record["rounds"] == 3
        assert record["ms_p20"] <= record["ms_median"] <= record["ms_p80"]
        assert savings.format_record(record)


def test_bytes_of_a_layer():
    record = savings.layer_bytes(config_for("mbt_tiny"), torch.float32)
    share = record["share_of_eager"]
    assert share["full"] > share["reduced"] > share["minimal"]
    assert savings.format_record(record)
