"""A run on a world of GPUs that does not exist: what the model takes, and what the hosts give."""

from dataclasses import dataclass
from pathlib import Path

from mbt_fast.data import read_labels
from mbt_fast.errors import InputError
from mbt_fast.parallel.counting import work_of
from mbt_fast.parallel.machine import Hosts
from mbt_fast.parallel.prediction import Predictor
from mbt_fast.parallel.scaling import Row, curve, row, worlds
from mbt_fast.parallel.work import Settings, Work
from mbt_fast.profiling.machine import DTYPES
from mbt_fast.train import start
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.machines import read_machine
from mbt_fast.train.parts import Data
from mbt_fast.train.plan import forward_flops
from mbt_fast.train.share import check_world

NAMES = {"ddp": "ddp", "fsdp": "fsdp", "modality": "modality x ddp"}  # of ways, for the reader


@dataclass(frozen=True)
class WorldPlan:
    """A run on a world that does not exist.

    Args:
        config: Complete: ``model.num_classes`` is filled in.
        world: Hosts and ranks.
        predictor: Of its steps.
        source: Of the machine: a file.
    """

    config: TrainConfig
    world: Hosts
    predictor: Predictor
    source: Path

    @property
    def clips(self) -> int:
        """Of a rank, in each step."""
        return self.config.train.batch_size // self.world.size

    def here(self) -> Row:
        """This world."""
        return row(self.predictor, self.world)

    def fixed_batch(self) -> list[Row]:
        """Each world with the batch of the recipe."""
        return curve(self.predictor, list(worlds(self.world.ranks)))

    def fixed_clips(self) -> list[Row]:
        """Each world with as many clips a rank as this one has."""
        return curve(self.predictor, list(worlds(self.world.ranks)), clips=self.clips)


def make_plan(
    config: TrainConfig, world: Hosts, machine: Path, data: Data | None = None
) -> WorldPlan:
    """Count what the model takes, and read what the machine gives.

    Raises:
        InputError: A file cannot be read, the batch does not divide over the world, or nothing says
            how many classes there are.
    """
    check_world(config.train, world.size)
    config = config.with_num_classes(_num_classes(config, data))
    found = read_machine(machine)
    work = _work(config, world)
    return WorldPlan(config, world, Predictor(work, _settings(config), found), machine)


def _num_classes(config: TrainConfig, data: Data | None) -> int:
    if data is not None:
        return len(data.names)
    if config.data.labels:
        return len(read_labels(config.data.labels))
    if config.model.num_classes is None:
        raise InputError("model.num_classes, data.labels or data.train must be given, got none")
    return config.model.num_classes


def _settings(config: TrainConfig) -> Settings:
    train = config.train
    states = 2 if train.optimizer == "adamw" else int(train.momentum > 0)
    passes = 3 + 2 * states  # weight and gradient are read, the weight is written, and each state
    passes += 3 if train.clip_norm else 0  # the gradient is read, then read and written
    passes += 3 if train.ema else 0  # the weight and the average are read, the average is written
    return Settings(
        batch_size=train.batch_size,
        micro_batch=train.micro_batch,
        virtual_devices=train.virtual_devices,
        dtype=_dtype(config),
        states=states,
        passes=passes,
        averaged=train.ema > 0,
    )


def _dtype(config: TrainConfig) -> str:
    """The best precision of a GPU is bfloat16."""
    return "bfloat16" if config.train.dtype == "auto" else config.train.dtype


def _work(config: TrainConfig, world: Hosts) -> Work:
    train, num_classes = config.train, config.model.num_classes or 0
    if not config.model.fuse:
        return work_of(
            config.model.mbt(num_classes),
            DTYPES[_dtype(config)],
            world.size,
            recompute=train.recompute,
            backend=train.backend,
        )
    model = start.build(config, num_classes)
    forward = forward_flops(model, start.clip_transform(config, model.config).shapes)
    parameters = sum(p.numel() for p in model.parameters())
    return Work(parameters, forward, 3 * forward, kept=0, fixed=0, units=(parameters,))
