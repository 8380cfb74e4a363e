"""The records of a profile: which belong together, and what they are called."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

SETTING = ("mode", "batch_size", "device", "dtype")
IDENTITY = (*SETTING, "backend", "fusion", "share_encoder", "fusion_layer", "n_bottlenecks")
COST = ("gflops", "gflops_attention", "gflops_linear")


def check_records(records: Sequence[Record]) -> None:
    """Refuse records that cannot be shown. Measured values and ``gflops_official`` may be absent.

    Raises:
        ValueError: There is no record, or one lacks a key.
    """
    if not records:
        raise ValueError("records must hold at least one record, got none")
    for index, record in enumerate(records):
        missing = [key for key in (*IDENTITY, *COST) if key not in record]
        if missing:
            raise ValueError(f"records[{index}] must have {', '.join(missing)}, got {dict(record)}")


def is_pairwise(record: Record) -> bool:
    """Whether this is vanilla fusion with own weights (Eq. 5-6), to which all is compared."""
    return record["fusion"] == "vanilla" and not record["share_encoder"]


def series_name(record: Record, *, with_backend: bool = False) -> str:
    """What a line of the charts is called; records that differ in the fusion layer share it."""
    details = [f"B = {record['n_bottlenecks']}"] if record["fusion"] == "bottleneck" else []
    if record["share_encoder"]:
        details.append("shared weights")
    elif not details:
        details.append("own weights")
    if with_backend:
        details.append(str(record["backend"]))
    return f"{record['fusion']} ({', '.join(details)})"


def has_several_backends(records: Iterable[Record]) -> bool:
    """Whether a name must say which backend ran."""
    return len({record["backend"] for record in records}) > 1


def sort_key(record: Record) -> tuple[Any, ...]:
    """Bottleneck first, then vanilla with own and with shared weights; by layer within a series."""
    return (
        str(record["mode"]),
        record["batch_size"] or 0,
        str(record["device"]),
        str(record["dtype"]),
        record["fusion"] != "bottleneck",
        record["fusion"],
        record["share_encoder"],
        record["n_bottlenecks"] if record["fusion"] == "bottleneck" else 0,
        str(record["backend"]),
        record["fusion_layer"],
    )


def by_series(
    records: Iterable[Record], *, with_backend: bool = False
) -> dict[str, dict[int, Record]]:
    """Series name to fusion layer to record, sorted; of equal records the first is taken."""
    series: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=sort_key):
        layers = series.setdefault(series_name(record, with_backend=with_backend), {})
        layers.setdefault(record["fusion_layer"], record)
    return series


def by_setting(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records that were measured alike and may share a chart, under a name for the setting."""
    settings: dict[str, list[Record]] = {}
    for record in records:
        settings.setdefault(setting_name(record), []).append(record)
    return settings


def setting_name(record: Record) -> str:
    """Mode, batch size, device and dtype in words."""
    return ", ".join(describe(record, SETTING))


def describe(record: Record, keys: Iterable[str]) -> list[str]:
    """The values of some keys in words; what is ``None`` is left out."""
    words = {"batch_size": "batch ", "backend": "backend "}
    return [f"{words.get(key, '')}{record[key]}" for key in keys if record[key] is not None]


def of_one_mode(records: Sequence[Record]) -> list[Record]:
    """The records whose FLOPs are compared: those of the forward pass, where there are any."""
    modes = [record["mode"] for record in records]
    mode = "forward" if "forward" in modes else modes[0]
    return [record for record in records if record["mode"] == mode]


def late_fusion_layer(records: Sequence[Record]) -> int | None:
    """The last fusion layer if pairwise attention costs no more there than the others do.

    Only late fusion has no pairwise attention left; records do not say how many layers there are.
    """
    last = max(record["fusion_layer"] for record in records)
    costs = {
        name: layers[last]
        for name, layers in by_series(of_one_mode(records)).items()
        if last in layers
    }
    meet = len({record["gflops"] for record in costs.values()}) == 1
    return last if meet and len(costs) > 1 and any(map(is_pairwise, costs.values())) else None
