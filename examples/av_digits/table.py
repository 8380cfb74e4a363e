"""The record in words: accuracies of every model, and whether they are what was expected."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from examples.av_digits.scores import BOTH, LOSS

SPLITS = ("seen", "unseen")
SHARE, LATE, ALONE = 0.9, 0.20, 0.15  # what was expected beforehand
WORDS = {
    "bottleneck-0": "bottleneck, B = 4, from layer 0",
    "bottleneck-2": "bottleneck, B = 4, from layer 2",
    "bottleneck-3": "bottleneck, B = 4, from layer 3",
    "bottleneck-2-b1": "bottleneck, B = 1, from layer 2",
    "bottleneck-2-b16": "bottleneck, B = 16, from layer 2",
    "bottleneck-2-one-head": "bottleneck, B = 4, from layer 2, the sum's head alone",
    "vanilla-0": "vanilla, from layer 0",
    "vanilla-2": "vanilla, from layer 2",
    "vanilla-3": "vanilla, from layer 3",
    "vanilla-shared-2": "vanilla, shared weights, from layer 2",
    "late": "late, a loss per modality",
    "late-mean": "late, loss of the mean logits",
    "rgb": "pictures alone",
    "spectrogram": "sound alone",
}

LAYERS = (0, 2, 3)  # fused from, with both kinds of fusion
TOWERS = ("tower-spectrogram", "tower-rgb")

Row = dict[str, Any]


def accuracy(row: Row, split: str) -> float:
    """Of the mean of the logits, on the task of the run."""
    scores = row["scores"][split][BOTH]
    return scores["sum"] if "sum" in scores else scores["digit"]


def of(rows: Sequence[Row], name: str) -> list[Row]:
    """The runs of a model, by seed."""
    return sorted((row for row in rows if row["name"] == name), key=lambda row: row["seed"])


def pairs(rows: Sequence[Row], name: str, other: str) -> list[tuple[Row, Row]]:
    """The runs of two models with the same seed."""
    by_seed = {row["seed"]: row for row in of(rows, other)}
    return [(row, by_seed[row["seed"]]) for row in of(rows, name) if row["seed"] in by_seed]


def products(rows: Sequence[Row], split: str) -> dict[int, float]:
    """By seed: accuracy of *digit* from sound alone, times that from pictures alone."""
    found = pairs(rows, *TOWERS)
    return {row["seed"]: accuracy(row, split) * accuracy(other, split) for row, other in found}


def block(record: dict[str, Any], figures: list[str]) -> str:
    """The README's block.

    Args:
        record: What ``record.py`` gathered.
        figures: Markup of the plots.
    """
    rows, machine = record["runs"], record["machine"]
    lines = [
        "| model | seen speakers, % | unseen speakers, % | loss | MFLOP |",
        "|---|---|---|---:|---:|",
        *(_line(of(rows, name), words) for name, words in WORDS.items() if of(rows, name)),
        *_products(rows),
    ]
    seeds = sorted({row["seed"] for row in rows})
    conditions = (
        f"Accuracy of the sum (chance: 10 %): mean over seeds, then each of seeds "
        f"{', '.join(map(str, seeds))}. The 1,000 clips of a test leave each number uncertain by "
        f"2.5 points (95 %). Loss: cross-entropy of the sum, seen speakers; ln 10 is 2.30. "
        f"MFLOP: of a training step, for each clip. {machine['device']}, torch "
        f"{machine['torch']}, one thread."
    )
    found = "\n".join([*verdicts(rows), *comparison(rows)])
    return "\n\n".join((*figures, "\n".join(lines), conditions, found)) + "\n"


def verdicts(rows: list[Row]) -> list[str]:
    """What was expected, and in how many seeds it came out."""
    found = []
    for split in SPLITS:
        product = products(rows, split)
        ratios = [accuracy(r, split) / product[r["seed"]] for r in of(rows, "bottleneck-2")]
        if not ratios:
            continue
        found.append(
            f"- Bottleneck from layer 2, {split} speakers: {_times(ratios)} of the product of the "
            f"towers; expected {SHARE}: {_count([ratio >= SHARE for ratio in ratios])}."
        )
    for names, most, words in (
        (("late", "late-mean"), LATE, "Late fusion"),
        (("rgb", "spectrogram"), ALONE, "One modality"),
    ):
        values = [accuracy(r, split) for name in names for r in of(rows, name) for split in SPLITS]
        if values:
            greatest = f"{100 * max(values):.1f} %"
            met = _count([value <= most for value in values])
            found.append(f"- {words}: at most {greatest}; expected {most:.0%}: {met}.")
    return found


def comparison(rows: list[Row]) -> list[str]:
    """Bottlenecks against vanilla fusion from the same layer and towers."""
    found = []
    for split in SPLITS:
        parts = []
        for layer in LAYERS:
            gains = [
                100 * (accuracy(ours, split) - accuracy(theirs, split))
                for ours, theirs in pairs(rows, f"bottleneck-{layer}", f"vanilla-{layer}")
            ]
            if gains:
                each = " ".join(f"{gain:+.1f}" for gain in gains)
                parts.append(f"from layer {layer} **{mean(gains):+.1f}** ({each})")
        if parts:
            found.append(
                f"- Bottleneck minus vanilla, {split} speakers, points: {', '.join(parts)}."
            )
    return found


def _line(rows: list[Row], words: str) -> str:
    cells = [_cell([accuracy(row, split) for row in rows]) for split in SPLITS]
    loss = mean(row["scores"][SPLITS[0]][LOSS]["sum"] for row in rows)
    flops = rows[0]["flops_per_clip"] / 1e6
    return f"| {words} | {cells[0]} | {cells[1]} | {loss:.2f} | {flops:.1f} |"


def _products(rows: list[Row]) -> list[str]:
    """What sound alone and pictures alone would give together, before and after training on."""
    before = [list(products(rows, split).values()) for split in SPLITS]
    trained = pairs(rows, "spectrogram", "rgb")
    after = [
        [
            sound["scores"][split][BOTH]["spoken"] * pictures["scores"][split][BOTH]["shown"]
            for sound, pictures in trained
        ]
        for split in SPLITS
    ]
    lines = {
        "*towers: digit from sound x from pictures*": before,
        "*the same after the steps of* sum": after,
    }
    return [
        f"| {words} | {_cell(seen)} | {_cell(unseen)} | | |"
        for words, (seen, unseen) in lines.items()
        if seen
    ]


def _cell(values: list[float]) -> str:
    each = " ".join(f"{100 * value:.1f}" for value in values)
    return f"**{100 * mean(values):.1f}** ({each})"


def _times(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _count(met: list[bool]) -> str:
    return f"met in {sum(met)} of {len(met)}"
