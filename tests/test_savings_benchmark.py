"""The benchmark of the savings, on a tiny model: what it compares, and what it records."""

from collections import defaultdict

from benchmarks import savings


def test_every_saving_is_measured_on_and_off():
    variants, shares = defaultdict(set), []
    for record in savings.measure("mbt_tiny", 0.0, {}):
        assert savings.format_record(record)
        if record["entry"] == "bytes":
            shares.append(record["share_of_eager"])
            continue
        assert record["rounds"] == 2
        assert record["ms_p20"] <= record["ms_median"] <= record["ms_p80"]
        key = (record["entry"], record["dtype"], record["stochastic_depth"])
        variants[key].add(record["variant"])
    forward, step = {"eager", "cls_only off", "cls_only on"}, {"eager", *savings.STEPS}
    depth = {"masked", "skipped"}
    assert variants == {
        **{("forward", dtype, 0.0): forward for dtype in ("bfloat16", "float32")},
        **{("step", dtype, 0.0): step for dtype in ("bfloat16", "float32")},
        **{("depth", "bfloat16", rate): depth for rate in savings.DROP_RATES},
    }
    assert all(s["eager"] == s["full"] > s["reduced"] > s["minimal"] for s in shares)
    assert len(shares) == 2
