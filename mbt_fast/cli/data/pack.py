"""``mbt-fast data pack``: the clips of a manifest in tar files that are cheap to decode."""

import argparse
import time
from pathlib import Path

import torch

from mbt_fast.cli.data.options import Rows, add_manifest, add_workers, progress
from mbt_fast.data.clip import read_window
from mbt_fast.data.encode import AUDIO_CODECS
from mbt_fast.data.entry import Entry
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.pack import Shards, write_packed_manifest, write_shard
from mbt_fast.data.transcode import Recipe
from mbt_fast.data.transform import ClipTransform
from mbt_fast.errors import ClipError, InputError

HELP = "Write the clips of a manifest anew: small, with many key frames, in tar files."
_TIMED = 16  # clips
_SHOWN = 20  # broken clips
_DEFAULT = Recipe()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast data pack``."""
    add_manifest(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the shards")
    add_workers(parser)
    for name, kind, what in (
        ("short_side", int, "short side of the pictures, in pixels, at most"),
        ("key_frames", int, "a key frame every so many pictures"),
        ("fps", float, "pictures per second, at most"),
        ("quality", int, "constant rate factor of H.264; smaller is better"),
    ):
        flag, value = f"--{name.replace('_', '-')}", getattr(_DEFAULT, name)
        parser.add_argument(flag, type=kind, default=value, help=f"{what} ({value:g})")
    parser.add_argument("--audio-codec", choices=AUDIO_CODECS, default=_DEFAULT.audio_codec)
    parser.add_argument(
        "--clips-per-shard", type=int, default=500, metavar="N", help="clips of a tar file (500)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the shards that are not there yet, and their manifest; 2 if a clip is broken."""
    if args.clips_per_shard < 1:
        raise InputError(f"--clips-per-shard must be at least 1, got {args.clips_per_shard}")
    recipe = Recipe(args.short_side, args.key_frames, args.fps, args.audio_codec, args.quality)
    manifest = Manifest.read(args.manifest)
    target = args.out / args.manifest.name
    if target.exists() and target.samefile(args.manifest):
        raise InputError(f"OUT must be another folder than that of the manifest, got {args.out}")
    args.out.mkdir(parents=True, exist_ok=True)
    shards = Shards(manifest, args.out, recipe, args.clips_per_shard)
    there = sum(shard.read_index() is not None for shard in shards)
    if there:
        print(f"{there} of {len(shards)} shards are there already")
    indices = list(progress(write_shard, shards, args.workers, unit="shard"))
    count = write_packed_manifest(target, indices)
    broken = {name: why for index in indices for name, why in index["broken"].items()}

    size = sum((args.out / index["shard"]).stat().st_size for index in indices)
    print(f"{target}: {count:,} clips in {len(shards)} shards, {size / 1e6:,.1f} MB")
    print(f"left out, broken: {len(broken):,}")
    for name, reason in list(broken.items())[:_SHOWN]:
        print(f"  {name}: {reason}")
    if len(broken) > _SHOWN:
        print(f"  and {len(broken) - _SHOWN:,} more, see the .json beside each shard")
    if count:
        packed = Manifest.read(target)
        before, after = _windows_per_second(manifest), _windows_per_second(packed)
        print(f"windows per second in one thread: {before:.1f} before, {after:.1f} packed")
        print(f"hash of ids and labels: {packed.hash}")
    return 2 if broken else 0


def _windows_per_second(manifest: Manifest) -> float:
    """How many windows of some clips one thread reads, of the default size."""
    transform = ClipTransform()
    rows = Rows(manifest, _TIMED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers of a loader
    _read(rows[0], transform)  # imports what the others find
    begin = time.perf_counter()
    count = sum(_read(rows[index], transform) for index in range(len(rows)))
    seconds = time.perf_counter() - begin
    torch.set_num_threads(threads)
    return count / seconds


def _read(entry: Entry, transform: ClipTransform) -> bool:
    """Read a window; whether this was possible."""
    try:
        read_window(entry.media, transform, entry.start, entry.end)
    except ClipError:
        return False
    return True
