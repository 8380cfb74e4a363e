"""The page about what ranks send: closed forms as Markdown."""

from collections.abc import Iterable

from mbt_fast import MBTConfig, flops
from mbt_fast.parallel.prediction import speed_limit
from mbt_fast.parallel.traffic import Collective, traffic

MODEL, CLIPS = MBTConfig(), 64
OF_WEIGHTS = ("weights", "gradients")  # what does not grow with the batch begins so
PLANS = (1, 2, 4, 5, 6)  # ranks for video beside one for sound
START = f"""# What ranks send

MBT-B on eight seconds of AudioSet, {MODEL.n_tokens("rgb")} video tokens and
{MODEL.n_tokens("spectrogram")} of sound: a step of training on {CLIPS} clips. Activations and the
weights that FSDP2 gathers have 16 bits; gradients and sums of slots have 32, so those of streams in
tensor parallelism too, whose norms autocast leaves in float32. Sums go around a ring.
`mbt_fast/parallel/traffic.py` makes this page. Tests count the collectives of the first four ways
on gloo: on a small model the closed forms are right to the byte. Ring attention and Ulysses are not
in this library; theirs is the least that the scheme needs.

## Two ranks

"""
PLANS_ARE = """
## More ranks for video

A rank for each modality is as fast as the slower one. Video costs {ratio:.1f} times as much as
sound, so two ranks are at most {two:.2f} times as fast as one, where data parallelism can be twice
as fast. Several ranks for video share its clips, and sum its gradients. The bound counts FLOPs
alone; nothing here is measured.

"""
SEQUENCES = """
## Why there is no sequence parallelism

Ring attention and Ulysses split the rows of a clip. They are for sequences so long that one does
not fit. Here a clip has {rows} rows, attention is {attention:.0%} of the FLOPs, and a batch can be
split instead. Who splits rows still sums all gradients, so it sends more than data parallelism at
any batch size: here {ulysses:.1f} times as much with Ulysses, and {ring:.1f} times with ring
attention.

Tensor parallelism sends {tensor:.1f} times as much, and less than data parallelism below {few:.1f}
clips. It is for models that do not fit, within one host.
"""


def page() -> str:
    """The whole page."""
    two = traffic(MODEL, 2, CLIPS)
    return START + _ways(two) + _plans() + _sequences(two)


def _ways(ways: dict[str, list[Collective]]) -> str:
    lines = [
        "| way | collectives | activations, MB | weights and gradients, MB | MB in all |",
        "|---|--:|--:|--:|--:|",
    ]
    for way in ("DDP", "FSDP2", "modality", "tensor", "Ulysses", "ring attention"):
        found = ways[way]
        weights = _megabytes(c for c in found if c.what.startswith(OF_WEIGHTS))
        total, calls = _megabytes(found), sum(c.calls for c in found)
        lines.append(f"| {way} | {calls} | {total - weights:.1f} | {weights:.1f} | {total:.1f} |")
    return "\n".join(lines) + "\n"


def _plans() -> str:
    work = {m: flops.both_passes(flops.stream_flops(MODEL, m)).total for m in MODEL.modalities}
    lines = ["| ranks: video + sound | at most, times one rank | MB that a video rank sends |"]
    lines.append("|--:|--:|--:|")
    bounds = {}
    for video in PLANS:
        plan = {"rgb": video, "spectrogram": 1}
        bounds[video] = speed_limit(list(work.values()), list(plan.values()))
        sent = _megabytes(traffic(MODEL, 1 + video, CLIPS, plan=plan)["modality"])
        lines.append(f"| {video} + 1 | {bounds[video]:.2f} | {sent:.1f} |")
    start = PLANS_ARE.format(ratio=work["rgb"] / work["spectrogram"], two=bounds[1])
    return start + "\n".join(lines) + "\n"


def _sequences(ways: dict[str, list[Collective]]) -> str:
    cost = flops.forward_flops(MODEL)
    base = _megabytes(ways["DDP"])
    return SEQUENCES.format(
        attention=cost.attention / cost.total,
        rows=sum(MODEL.n_tokens(m) for m in MODEL.modalities),
        ulysses=_megabytes(ways["Ulysses"]) / base,
        ring=_megabytes(ways["ring attention"]) / base,
        tensor=_megabytes(ways["tensor"]) / base,
        few=CLIPS * base / _megabytes(ways["tensor"]),
    )


def _megabytes(collectives: Iterable[Collective]) -> float:
    return sum(c.sent for c in collectives) / 1e6
