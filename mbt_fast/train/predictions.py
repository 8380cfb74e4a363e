"""What a model says of the clips of a manifest."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from mbt_fast.data import ClipTransform
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import RunError
from mbt_fast.train.augment import to_float
from mbt_fast.train.clip_cache import ClipCache
from mbt_fast.train.loader import Loader
from mbt_fast.train.views import PADDING, ClipViews, ViewBatch, collate_views

NEARLY_EQUAL = 1e-3  # share of the greatest logit: constant predictions differ by rounding


@dataclass(frozen=True)
class Predictions:
    """Logits of clips, each the mean over its windows.

    Args:
        modalities: What the model was given.
        rows: Those of the clips in their manifest, ascending, int64 ``[n]``.
        logits: Float32 ``[n, K]``.
        absent: For each modality the number of these clips that lack it.
        without: Rows of clips that have none of the modalities.
        broken: Row and reason of clips that cannot be read.
    """

    modalities: tuple[str, ...]
    rows: Tensor
    logits: Tensor
    absent: dict[str, int]
    without: tuple[int, ...]
    broken: dict[int, str]

    @property
    def constant(self) -> bool:
        """Whether all clips, of several, get the same logits: the model has learned nothing."""
        if len(self.logits) < 2:
            return False
        low, high = self.logits.aminmax(dim=0)
        return bool((high - low).max() <= NEARLY_EQUAL * self.logits.abs().max())


def predict(
    model: nn.Module,
    manifest: Manifest,
    transform: ClipTransform,
    *,
    subsets: Sequence[tuple[str, ...]],
    views: int = 4,
    batch_size: int = 8,
    workers: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    mask_padding: bool = False,
    errors: str = "strict",
    rank: int = 0,
    world: int = 1,
    together: bool = False,
    cache: ClipCache | None = None,
    stop: Callable[[], bool] = lambda: False,
    agree: Callable[[bool], bool] = bool,
) -> list[Predictions] | None:
    """Read every clip once, and predict it from each subset of the modalities.

    Logits are averaged over the windows, before any sigmoid or softmax, as in the paper. A clip
    that lacks some modalities is predicted from the others.

    Args:
        model: On ``device``; it is in training mode afterwards if it was before.
        manifest: The clips.
        transform: What the model takes.
        subsets: Modalities that the model is given, at least one each.
        views: Windows of a clip that is longer than one.
        batch_size: Windows at a time, about: at least one clip.
        workers: Processes that read clips; 0 reads in this one.
        device: Where the model is.
        dtype: Of autocast; float32 for none.
        mask_padding: Whether tokens of padding are masked; see ``collate``.
        errors: As for ``load_clip``.
        rank: Of this process, which reads every ``world``-th clip from this one on.
        world: Number of processes. All have equally many batches, of which the last may be empty.
        together: The model is called for an empty batch too, for it is sharded.
        cache: The clips as one view each, decoded before; ``None`` reads their files.
        stop: Asked before each batch and while one does not come; ``True`` ends the work.
        agree: Whether any process is to stop, from whether this one is; called for each batch.

    Returns:
        For each subset its predictions; ``None`` if it was stopped.

    Raises:
        RunError: A logit is NaN; names the clips.
        ValueError: The transform has no such modality, or there is a cache for several views.
    """
    from tqdm import tqdm

    for modality in {modality for subset in subsets for modality in subset}:
        if modality not in transform.windows:
            known = ", ".join(transform.windows)
            raise ValueError(f"modalities must be of {known}, got {modality!r}")

    device = torch.device(device)
    rows = range(rank, len(manifest), world)
    padded = [*rows, *[PADDING] * (-(-len(manifest) // world) - len(rows))]
    batches = BatchSampler(padded, max(1, batch_size // views), drop_last=False)
    loader = Loader(
        ClipViews(manifest, transform, views, errors, cache),
        batches,
        partial(collate_views, mask_padding=mask_padding),
        workers=workers,
        pinned=device.type == "cuda",
        stop=stop,
    )
    tallies = [_Tally(subset) for subset in subsets]
    training = model.training
    model.eval()
    options = {"unit": "clip", "desc": "scored", "leave": False}
    try:
        bar = tqdm(total=len(rows), disable=True if rank else None, **options)
        with bar, _without_gradients(together):
            for _ in range(len(batches)):
                batch = next(loader, None)
                if agree(batch is None) or batch is None:
                    return None
                inputs = {m: x.to(device, non_blocking=True) for m, x in batch.inputs.items()}
                batch.inputs = {m: to_float(x) for m, x in inputs.items()}
                for tally in tallies:
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        called = tally.add(model, batch)
                        if together and not called:
                            _call_for_nobody(model, transform, tally.modalities, device)
                bar.update(batch.size)
    finally:
        loader.close()
        model.train(training)
    return [tally.finish(manifest, rows) for tally in tallies]


def _without_gradients(sharded: bool) -> AbstractContextManager[None]:
    """FSDP2 gathers into memory that it keeps, and training cannot write that of inference mode."""
    return torch.no_grad() if sharded else torch.inference_mode()


@dataclass
class _Tally:
    """Logits of one subset of the modalities, while they come in."""

    modalities: tuple[str, ...]
    seen: list[int] = field(default_factory=list)  # rows, in the order in which they came
    means: dict[int, Tensor] = field(default_factory=dict)  # by row
    absent: dict[str, int] = field(default_factory=dict)
    without: list[int] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin to count."""
        self.absent = dict.fromkeys(self.modalities, 0)

    def add(self, model: nn.Module, batch: ViewBatch) -> bool:
        """Predict the clips of a batch, which holds all windows of each.

        Returns:
            Whether there was one to predict, and the model was called.
        """
        self.broken |= batch.broken
        clips, clip_of = batch.owners.unique(return_inverse=True)
        self.seen += [*clips.tolist(), *batch.broken]
        present = {m: _present(batch, m) for m in self.modalities}
        usable = torch.stack(list(present.values())).any(0)
        views = _sums(usable, clip_of, len(clips))
        scored = views > 0
        self.without += clips[~scored].tolist()
        for modality, here in present.items():
            self.absent[modality] += int((scored & (_sums(here, clip_of, len(clips)) == 0)).sum())
        if scored.any():
            logits = self._forward(model, batch)[usable]
            means = _sums(logits, clip_of[usable], len(clips))[scored] / views[scored, None]
            self.means |= dict(zip(clips[scored].tolist(), means, strict=True))
        return bool(scored.any())

    def finish(self, manifest: Manifest, rows: range) -> Predictions:
        """Put the clips in order, and check that none is missing or twice."""
        if sorted(self.seen) != list(rows):
            raise RuntimeError(
                f"each of {len(rows)} clips must be read once, got {len(self.seen)} readings of "
                f"{len(set(self.seen))} clips"
            )
        scored = sorted(self.means)
        wrong = [manifest[row].id for row in scored if self.means[row].isnan().any()]
        if wrong:
            raise RunError(
                f"logits must not be NaN, got NaN for {len(wrong)} clips: {', '.join(wrong)}"
            )
        means = [self.means[row] for row in scored]
        return Predictions(
            self.modalities,
            torch.tensor(scored, dtype=torch.int64),
            torch.stack(means) if means else torch.empty(0, 0),
            self.absent,
            tuple(sorted(self.without)),
            dict(sorted(self.broken.items())),
        )

    def _forward(self, model: nn.Module, batch: ViewBatch) -> Tensor:
        """Logits of the windows, float32 on the CPU."""
        inputs = {m: x for m, x in batch.inputs.items() if m in self.modalities}
        device = next(iter(inputs.values())).device
        lengths = {
            m: length.to(device) for m, length in (batch.lengths or {}).items() if m in inputs
        }
        return model(inputs, lengths or None).float().cpu()


def _call_for_nobody(
    model: nn.Module, transform: ClipTransform, modalities: Sequence[str], device: torch.device
) -> None:
    """Call the model on a window in which everything is absent: other processes wait for it."""
    inputs = {m: torch.zeros(1, *transform.shapes[m], device=device) for m in modalities}
    lengths = {m: torch.zeros(1, dtype=torch.int32, device=device) for m in modalities}
    model(inputs, lengths)


def merge(parts: Sequence[Predictions], n_clips: int) -> Predictions:
    """The predictions of all processes as one would have made them.

    Args:
        parts: Of the same modalities; together they hold each clip once.
        n_clips: In the manifest.

    Raises:
        RuntimeError: A clip is missing or twice.
    """
    rows = torch.cat([part.rows for part in parts])
    without = sorted(row for part in parts for row in part.without)
    broken = [pair for part in parts for pair in part.broken.items()]
    if sorted([*rows.tolist(), *without, *dict(broken)]) != list(range(n_clips)):
        raise RuntimeError(f"each of {n_clips} clips must be predicted once by the ranks")
    order = rows.argsort()
    logits = [part.logits for part in parts if len(part.rows)]
    return Predictions(
        parts[0].modalities,
        rows[order],
        torch.cat(logits)[order] if logits else parts[0].logits,
        {m: sum(part.absent[m] for part in parts) for m in parts[0].modalities},
        tuple(without),
        dict(sorted(broken)),
    )


def _sums(values: Tensor, clip_of: Tensor, n_clips: int) -> Tensor:
    """For each clip the sum over its windows, float32 ``[n_clips, ...]``."""
    sums = torch.zeros(n_clips, *values.shape[1:])
    return sums.index_add_(0, clip_of, values.float())


def _present(batch: ViewBatch, modality: str) -> Tensor:
    """Which windows have a modality, bool ``[n]``."""
    if modality not in batch.inputs:
        return torch.zeros(len(batch.owners), dtype=torch.bool)
    if batch.lengths is None:
        return torch.ones(len(batch.owners), dtype=torch.bool)
    return batch.lengths[modality] > 0
