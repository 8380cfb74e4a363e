"""Read files that are damaged at random, one line of JSON for each: run by test_fuzz.py.

    python damage.py FIRST LAST FOLDER [FILE ...]

The damage of file number ``i`` depends on ``i`` alone. An outcome is printed before the next file
is begun, so that a crash or a hang belongs to the one after the last line.
"""

import json
import random
import sys
import time
from pathlib import Path

from mbt_fast.data import ClipTransform, load_clip, read_window
from mbt_fast.errors import ClipError

TRANSFORM = ClipTransform(
    (4, 16, 16), (50, 32), patch_size={"rgb": (1, 16, 16), "spectrogram": (10, 16)}
)


def damaged(data, generator):
    """Cut, overwrite, repeat or leave out parts of a file, or flip some of its bits."""
    data = bytearray(data)
    kind = generator.choice(("cut", "bits", "header bits", "zeros", "noise", "leave out", "repeat"))
    low = generator.randrange(len(data))
    high = min(low + generator.choice((1, 16, 400, 5000)), len(data))
    if kind == "cut":
        del data[low:]
    elif kind in ("bits", "header bits"):
        reach = len(data) if kind == "bits" else min(len(data), 1500)
        for _ in range(generator.choice((1, 10, 100))):
            data[generator.randrange(reach)] ^= 1 << generator.randrange(8)
    elif kind == "zeros":
        data[low:high] = bytes(high - low)
    elif kind == "noise":
        data[low:high] = generator.randbytes(high - low)
    elif kind == "leave out":
        del data[low:high]
    else:
        data[low:low] = data[low:high]
    return kind, bytes(data)


def outcomes(path, position):
    """What each way to read the file ends in: ``"frames"`` or the type of the error."""
    for errors in ("strict", "tolerate"):
        for read in (
            lambda errors=errors: load_clip(path, TRANSFORM, 3, errors=errors),
            lambda errors=errors: read_window(path, TRANSFORM, position=position, errors=errors),
        ):
            try:
                clip = read()
            except ClipError as error:
                yield "ClipError" if "\n" not in str(error) else "ClipError of several lines"
            except Exception as error:
                yield f"{type(error).__name__}: {error}"
            else:
                finite = all(view.isfinite().all() for view in clip.inputs.values())
                yield "frames" if clip.inputs and finite else "frames that are none"


def main(first, last, folder, *sources):
    for number in range(int(first), int(last)):
        generator = random.Random(number)
        source = Path(sources[number % len(sources)])
        kind, data = damaged(source.read_bytes(), generator)
        path = Path(folder) / f"{number}{source.suffix}"
        path.write_bytes(data)
        begin = time.monotonic()
        ends = list(outcomes(path, generator.random()))
        seconds = round(time.monotonic() - begin, 2)
        path.unlink()
        record = {"file": number, "source": source.name, "kind": kind}
        sys.stdout.write(json.dumps({**record, "ends": ends, "seconds": seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
