"""What a rank does of a step, so that all of them together do what one process would."""

from mbt_fast.errors import InputError
from mbt_fast.parallel.ranks import Ranks
from mbt_fast.train.dataset import Batch
from mbt_fast.train.loop_section import LoopConfig
from mbt_fast.train.stopping import Stopping

_SHARED = ("batch_size", "micro_batch", "virtual_devices")


def check_world(train: LoopConfig, world: int) -> None:
    """Refuse a number of ranks that cannot share a batch equally.

    Raises:
        InputError: Says which numbers can; or what sharding cannot do.
    """
    if world == 1:
        return
    if not _can_share(train, world):
        can = ", ".join(str(n) for n in range(1, train.batch_size + 1) if _can_share(train, n))
        values = {name: getattr(train, name) for name in _SHARED}
        given = ", ".join(f"train.{name} = {value}" for name, value in values.items() if value)
        raise InputError(f"the number of ranks must be one of {can} with {given}; got {world}")
    if train.parallel == "fsdp" and train.virtual_devices:
        raise InputError(
            'train.virtual_devices must be 0 with train.parallel = "fsdp": each clips its own '
            f"gradient, which no rank has whole; got {train.virtual_devices}"
        )
    if train.parallel == "fsdp" and train.dtype == "float16":
        raise InputError(
            'train.dtype must not be "float16" with train.parallel = "fsdp": a rank sees whether '
            "its own share of a gradient overflows, not the others'; take bfloat16"
        )


def _can_share(train: LoopConfig, world: int) -> bool:
    share, rest = divmod(train.batch_size, world)
    parts = train.micro_batch or 1
    return rest == 0 and share % parts == 0 and train.virtual_devices % world == 0


def meet(batch: Batch | None, stop: Stopping, ranks: Ranks) -> Batch | None:
    """Begin a step together, once every rank has its clips.

    Args:
        batch: This rank's clips; ``None`` if it stops.
        stop: Is told of a signal that any rank was sent.
        ranks: This process among the others.

    Returns:
        The batch, or ``None`` if a rank stops. Its ``broken`` are those of all ranks; where one of
        them could read no clip at all, it has no inputs on any.
    """
    if ranks.world == 1:
        return batch
    n_broken = 0 if batch is None else len(batch.broken)
    ended, broken, number = ranks.highest([batch is None, n_broken, stop.number])
    stop.note(int(number))
    if batch is None or ended or number:
        return None
    if broken:
        told = ranks.exchange((batch.broken, bool(batch.inputs)))
        batch.broken = [one for part, _ in told for one in part]
        batch.inputs = batch.inputs if all(readable for _, readable in told) else {}
    return batch
