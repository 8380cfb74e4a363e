"""A subset in which no class has more than so many clips, as AudioSet-500K is made."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from mbt_fast.data.importers.segment import LabelledSegment


def cap_classes(segments: Sequence[LabelledSegment], cap: int, seed: int) -> list[LabelledSegment]:
    """Keep a segment if none of its classes is full yet, in an order drawn by ``seed``.

    The official list of AudioSet-500K and its order are not published; this follows its
    description (Nagrani et al. 2021, at most 200,000 clips of a class). The order is that of a hash
    of seed and id: a clip that is missing here changes nothing of the order of the others.

    Args:
        segments: All segments.
        cap: Most segments of a class.
        seed: Another seed gives another subset.

    Returns:
        The segments that are kept, in the order given.
    """
    counts: Counter[str] = Counter()
    kept = set()
    for segment in sorted(
        segments, key=lambda s: hashlib.sha256(f"{seed}:{s.id}".encode()).digest()
    ):
        if all(counts[name] < cap for name in segment.classes):
            counts.update(segment.classes)
            kept.add(segment.id)
    return [segment for segment in segments if segment.id in kept]
