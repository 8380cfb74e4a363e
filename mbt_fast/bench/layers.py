"""One fused layer, by backend and by what it keeps for the backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast.bench import ways
from mbt_fast.bench.comparison import Bench, Deadline, Run
from mbt_fast.bench.rows import Row
from mbt_fast.bench.ways import Way
from mbt_fast.layers.fusion import SHARED, Streams
from mbt_fast.models import MBT
from mbt_fast.testing import saved_bytes

ENTRY = "fusion layer"


def measure_layer(bench: Bench, model: MBT, deadline: Deadline) -> None:
    """Time the last layer of a model; stock PyTorch first."""
    setting = bench.setting
    call = LayerCall(model, bench.setting.batch_size)
    rows, runs = {}, {}
    for way in ways.of_layer(model.config, setting):
        name = way.name(setting)
        saved = call.saved_bytes(way) if setting.mode == "train" else None
        rows[name] = Row(
            "layer", ENTRY, name, batch_size=setting.batch_size, saved_bytes=saved, note=_note(way)
        )
        runs[name] = call.step(way) if setting.mode == "train" else call.forward(way)
    bench.compare(rows, runs, deadline)


class LayerCall:
    """The last layer of a model on random streams."""

    def __init__(self, model: MBT, batch_size: int) -> None:
        """Draw the streams."""
        config, weight = model.config, model.norm.weight
        self._layer = model.layers[-1]
        self._n_slots, self._pairwise = config.n_slots, ways.is_pairwise(config)
        rows = {m: config.n_tokens(m) + config.n_slots for m in config.modalities}
        self._cls = [0]
        if config.fusion == "vanilla" and config.share_encoder and len(rows) > 1:
            starts = [sum(list(rows.values())[:index]) for index in range(len(rows))]
            rows, self._cls = {SHARED: sum(rows.values())}, starts
        self._streams = {
            name: torch.randn(batch_size, count, config.hidden_size).to(weight)
            for name, count in rows.items()
        }

    def forward(self, way: Way) -> Run:
        """The forward in inference mode."""
        return torch.inference_mode()(lambda: self._call(way))

    def step(self, way: Way) -> Run:
        """Forward and backward, to parameters and streams."""
        leaves: Sequence[Tensor] = [*self._layer.parameters(), *self._streams.values()]
        for stream in self._streams.values():
            stream.requires_grad_()
        gradients = [torch.randn_like(out) for out in self._call(way).values()]

        def run() -> object:
            outs = list(self._call(way).values())
            return torch.autograd.grad(outs, leaves, gradients)

        return run

    def saved_bytes(self, way: Way) -> int:
        """What autograd keeps for the backward, apart from the parameters."""
        return saved_bytes(lambda: self._call(way), self._layer.parameters())

    def _call(self, way: Way) -> Streams:
        self._layer.set_backend(way.backend)
        self._layer.set_savings(way.savings)
        rows = self._cls if way.cls_only else None
        slots, pairwise = self._n_slots, self._pairwise
        return self._layer(self._streams, {}, n_slots=slots, pairwise=pairwise, rows=rows)


def _note(way: Way) -> str:
    return "the last layer of a model alone" if way.cls_only else ""
