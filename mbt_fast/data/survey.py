"""What the clips of a manifest are: which can be read, how long they are, what they lack."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mbt_fast.data.examine import Examined


@dataclass
class Survey:
    """What is found of a whole manifest.

    Args:
        clips: Number of clips.
        seconds: Length of all that can be read.
        broken: Why each other clip cannot be read, by id.
        without: Ids of the clips that lack a kind of stream, ``"video"`` or ``"audio"``.
        still: Ids of the clips whose pictures are all the same.
        muted: Ids of the clips whose sound is silence.
        found: Number of readable clips of each class.
        lost: Number of broken clips of each class.
        formats: Number of clips in each format, by kind.
    """

    clips: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)
    without: dict[str, list[str]] = field(default_factory=lambda: {"video": [], "audio": []})
    still: list[str] = field(default_factory=list)
    muted: list[str] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    formats: dict[str, Counter[str]] = field(
        default_factory=lambda: {"video": Counter(), "audio": Counter()}
    )

    def add(self, clip: Examined) -> None:
        """Count one clip."""
        self.clips += 1
        if clip.error is not None:
            self.broken[clip.id] = clip.error
            self.lost.update(clip.classes)
            return
        self.seconds += clip.seconds
        self.found.update(clip.classes)
        self.still += [clip.id] if clip.still else []
        self.muted += [clip.id] if clip.muted else []
        for kind, missing in self.without.items():
            if kind in clip.formats:
                self.formats[kind][clip.formats[kind]] += 1
            else:
                missing.append(clip.id)

    def as_record(self) -> dict[str, Any]:
        """All of it, for JSON; classes and formats by name."""
        return {
            "clips": self.clips,
            "seconds": round(self.seconds, 3),
            "broken": self.broken,
            "without": self.without,
            "still": self.still,
            "muted": self.muted,
            "classes": {
                name: {"clips": self.found[name], "broken": self.lost[name]}
                for name in sorted({*self.found, *self.lost})
            },
            "formats": {
                kind: dict(sorted(counts.items())) for kind, counts in self.formats.items()
            },
        }
