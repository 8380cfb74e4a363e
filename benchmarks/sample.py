"""What has been measured of a case, pass by pass, and the records that come of it.

A pass is a visit to the case with variants, inputs and weights of its own. Between two visits all
other cases have theirs, so that what disturbs the machine for a while hits one pass only.
How ratios change without some of the passes says how sure they are, of all that differs from
process to process as well if each pass has its own (``benchmarks.apart``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.case import Case, Run, Variant
from benchmarks.quiet import (
    ROUNDS_TO_BE_SURE,
    Seconds,
    pooled,
    quiet_ratio,
    quiet_time,
    standard_error,
)
from benchmarks.record import Ceilings, Record, Spread, significant

# Relative standard error of a ratio that needs no further pass: less than what a run is called sure
# with (``benchmarks.compare.SURE``), because it is an estimate, and asked for after every pass.
ENOUGH = 0.007

State = tuple[dict[str, Record], int, list[Seconds]]


@dataclass
class Sample:
    """The passes of one case.

    Attributes:
        case: What is measured.
        blank: A record of the case without variant, the pattern of all others.
        index: Of the case among those of its entry.
        records: One per variant, counted once; times come in at the end.
        calls: Of each variant to one reading of the clock.
        passes: Times by variant, of the visits so far.
    """

    case: Case
    blank: Record
    index: int = 0
    records: dict[str, Record] = field(default_factory=dict)
    calls: int = 1
    passes: list[Seconds] = field(default_factory=list)

    @classmethod
    def of(cls, entry: str, case: Case, device: torch.device, index: int = 0) -> "Sample":
        """The case before its first pass."""
        on_cpu = device.type == "cpu"
        blank = Record(
            entry=entry,
            case=case.name,
            variant="",
            mode=case.mode,
            shape=case.shape,
            dtype=str(case.dtype).removeprefix("torch."),
            device=device.type,
            threads=(case.threads or torch.get_num_threads()) if on_cpu else None,
        )
        return cls(case, blank, index)

    @property
    def state(self) -> State:
        """What the visits so far have found: records, calls, passes."""
        return self.records, self.calls, self.passes

    @state.setter
    def state(self, state: State) -> None:
        self.records, self.calls, self.passes = state

    def record(self, name: str, variant: Variant) -> Record:
        """A record of a variant with what is known of it before it runs."""
        return replace(
            self.blank,
            variant=name,
            flops=variant.flops,
            attention_flops=variant.attention_flops,
            bytes=variant.bytes,
        )

    def fail(self, reason: str) -> None:
        """Give every variant without a reason of its own this one; there is no further pass."""
        records = self.records or {"all": replace(self.blank, variant="all")}
        self.records = {
            name: record if record.error else replace(record, error=reason)
            for name, record in records.items()
        }
        self.passes.clear()

    def working(self, variants: Mapping[str, Variant]) -> dict[str, Run]:
        """What can be timed."""
        return {
            name: variant.run
            for name, variant in variants.items()
            if variant.run is not None and self.records[name].error is None
        }

    def wants_more(self, passes: int) -> bool:
        """Whether another pass could tell something, after so many only if a ratio is unsure."""
        if not self.passes:
            return not self.records
        return len(self.passes) < passes or (passes > 1 and self._is_unsure())

    def _is_unsure(self) -> bool:
        known = [self.uncertainty(name) for name in self.passes[0]]
        compared = [value for value in known if value is not None]
        rounds = sum(len(next(iter(seconds.values()))) for seconds in self.passes)
        return bool(compared) and (max(compared) > ENOUGH or rounds < ROUNDS_TO_BE_SURE)

    def uncertainty(self, name: str) -> float | None:
        """Relative standard error of a variant's ratio."""
        base = self.case.baseline
        if base is None or name == base or base not in self.passes[0]:
            return None
        return standard_error(self.passes, base, name)

    def finished(self, clock: str, ceilings: Ceilings) -> list[Record]:
        """The records, with times where there are any."""
        if not self.passes:
            return list(self.records.values())
        timed = pooled(self.passes)
        return [
            self._with_times(record, timed, clock, ceilings) if name in timed else record
            for name, record in self.records.items()
        ]

    def _with_times(self, record: Record, timed: Seconds, clock: str, ceilings: Ceilings) -> Record:
        name, base = record.variant, self.case.baseline
        ms = [1e3 * seconds / self.calls for seconds in timed[name]]
        changes: dict[str, Any] = {}
        if base is not None and base in timed:
            quiet = quiet_ratio(timed, base, name)
            changes = {"baseline": base, "ratio": Spread.of(ratios(timed, base, name), quiet)}
        uncertainty = self.uncertainty(name)
        if uncertainty is not None:
            changes["uncertainty"] = significant(uncertainty)
        measured = replace(
            record,
            clock=clock,
            calls=self.calls,
            passes=len(self.passes),
            rounds=len(ms),
            ms=Spread.of(ms, quiet_time(ms)),
            **changes,
        )
        return _with_shares(measured, ceilings)


def ratios(seconds: Seconds, base: str, name: str) -> list[float]:
    """Time of the baseline by that of the variant, round by round: above 1 is faster."""
    pairs = zip(seconds[base], seconds[name], strict=True)
    return [of_base / of_variant for of_base, of_variant in pairs]


def _with_shares(record: Record, ceilings: Ceilings) -> Record:
    """Shares of the ceilings, which are those of one number of threads."""
    if record.ms is None or record.threads != ceilings.threads:
        return record
    matmul = ceilings.matmul_gflops.get(record.dtype)
    seconds = record.ms.reported / 1e3
    changes: dict[str, Any] = {}
    if record.flops and matmul:
        changes["share_of_matmul"] = significant(record.flops / seconds / 1e9 / matmul)
    if record.bytes and ceilings.copy_gb_per_s:
        rate = record.bytes / seconds / 1e9
        changes["share_of_copy"] = significant(rate / ceilings.copy_gb_per_s)
    return replace(record, **changes)
