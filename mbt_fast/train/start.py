"""The model with which a run starts, and how it takes clips."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mbt_fast import checkpoint
from mbt_fast.checkpoint.shapes import check_shapes, expected_shapes
from mbt_fast.config import MBTConfig
from mbt_fast.data import ClipTransform
from mbt_fast.data.transform import KIND
from mbt_fast.errors import CheckpointError, InputError
from mbt_fast.layers.fusion_layer import SHARED
from mbt_fast.models import MBT
from mbt_fast.models.fused_classifier import FusedClassifier, FusedConfig
from mbt_fast.models.saved import Model, load_model
from mbt_fast.models.towers import load_tower
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.sections import InitConfig

_NORM = ("norm.weight", "norm.bias")
_TRANSFORM = ("fps", "stride", "min_side", "window", "mean", "std", "short", "circular_sound")


def build(config: TrainConfig, num_classes: int, saved: Path | None = None) -> Model:
    """The model of a run with its first weights, on the CPU and in float32.

    Random weights are those of the seed, and the global generator stays as it was.

    Args:
        config: The run.
        num_classes: Outputs of the classifier, those of all heads together.
        saved: A checkpoint of this run, whose weights the model gets. The files with which the run
            began are then not needed any more.

    Returns:
        A model whose ``forward_modalities(inputs, lengths)`` gives logits per modality and whose
        ``forward`` gives their mean.

    Raises:
        InputError: A file or an encoder cannot be read, weights do not fit, or the number of
            classes is another than ``model.num_classes``.
    """
    config = config.with_num_classes(num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        if saved is not None:
            model = load_model(saved)
        elif config.model.fuse:
            model = _fused(config, num_classes)
        else:
            model = _mbt(config, num_classes)
    if isinstance(model, MBT):
        model.set_execution(recompute=config.train.recompute)
    return model.set_backend(config.train.backend)


def clip_transform(config: TrainConfig, model_config: MBTConfig | FusedConfig) -> ClipTransform:
    """How clips become inputs of the model.

    Args:
        config: The run; its section ``data``.
        model_config: The model; its input sizes.

    Raises:
        InputError: The options contradict one another, or files cannot have a modality.
    """
    foreign = [m for m in model_config.modalities if m not in KIND]
    if foreign:
        raise InputError(f"model.modalities must be of {', '.join(KIND)}, got {foreign[0]!r}")
    options = {name: getattr(config.data, name) for name in _TRANSFORM}
    try:
        return ClipTransform.from_config(model_config, **options)
    except ValueError as error:
        raise InputError(f"data: {error}") from error


def _mbt(config: TrainConfig, num_classes: int) -> MBT:
    model = MBT(config.model.mbt(num_classes))
    init = config.init
    if init.checkpoint:
        _load(model, *_checkpoint("init.checkpoint", init.checkpoint))
    elif init.towers:
        model.load_state_dict(_towers(init.towers, model))
    elif init.vit or init.ast:
        model.load_state_dict(_pretrained(init, model))
    return model


def _fused(config: TrainConfig, num_classes: int) -> FusedClassifier:
    values = config.model.values
    sizes = {m: tuple(size) for m, size in values["input_size"].items()}
    loaded = {m: load_tower(source, sizes[m]) for m, source in config.model.fuse.items()}
    fused_config = FusedConfig(
        towers={m: record for m, (_, record) in loaded.items()},
        input_size=sizes,
        fusion_layer=values["fusion_layer"],
        n_bottlenecks=values["n_bottlenecks"],
        num_classes=num_classes,
    )
    try:
        model = FusedClassifier(fused_config, {m: tower for m, (tower, _) in loaded.items()})
    except ValueError as error:
        raise InputError(f"model.fuse: {error}") from error
    if config.init.checkpoint:
        saved = load_model(config.init.checkpoint)
        state_dict = _with_head(saved.state_dict(), model)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_shapes(state_dict, shapes, f"init.checkpoint {config.init.checkpoint} does not fit")
        model.load_state_dict(state_dict)
    return model.float()


def _checkpoint(key: str, given: str) -> tuple[MBTConfig, dict[str, Tensor]]:
    """Config and weights of a run, a checkpoint of mbt_fast, or an official file."""
    path = Path(given)
    if not path.exists():
        raise CheckpointError(f"{key} must exist, got {path}")
    if path.is_dir() or path.name in ("latest", "best"):
        return checkpoint.load_pretrained(path)
    params = checkpoint.load_scenic(path)
    config, _ = checkpoint.infer_config(params)
    return config, checkpoint.scenic_to_torch(params, config)


def _load(model: MBT, saved: MBTConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Take over weights; positions are resized, a head for other classes stays as it is."""
    state_dict = checkpoint.resize_position_embeddings(state_dict, saved, model.config)
    state_dict = _with_head(state_dict, model)
    check_shapes(state_dict, expected_shapes(model.config), "init.checkpoint does not fit [model]")
    model.load_state_dict(state_dict)


def _towers(towers: Mapping[str, str], model: MBT) -> dict[str, Tensor]:
    """Weights of a model whose modalities have been trained apart; the rest stays fresh.

    What modalities share is that of the first: the last norm, and blocks with ``share_encoder``.
    """
    weights: dict[str, Tensor] = {}
    for modality, path in towers.items():
        weights = _tower(modality, path, model) | weights
    return model.state_dict() | weights


def _tower(modality: str, path: str, model: MBT) -> dict[str, Tensor]:
    """A modality's embedding and blocks, and the last norm, by their names in the model."""
    key, config = f"init.towers.{modality}", model.config
    if modality not in config.modalities:
        raise InputError(f"{key} must be of model.modalities, got {', '.join(config.modalities)}")
    saved, state_dict = _checkpoint(key, path)
    if modality not in saved.modalities:
        known = ", ".join(saved.modalities)
        raise InputError(f"{key} must be a model of {modality}, got one of {known}: {path}")
    if saved.num_heads != config.num_heads:
        raise InputError(
            f"{key} must have {config.num_heads} heads as [model], got {saved.num_heads}: {path}"
        )
    with _naming(key):
        state_dict = checkpoint.resize_position_embeddings(
            state_dict, saved, _alone(config, modality)
        )
    own, theirs = _names(config, modality), _names(saved, modality)
    tower = {own.get(name, name): state_dict[given] for name, given in theirs.items()}
    shapes = expected_shapes(config)
    what = f"{key} {path} does not fit [model]"
    check_shapes(tower, {name: shapes[name] for name in own.values()}, what)
    return tower


def _names(config: MBTConfig, modality: str) -> dict[str, str]:
    """Names of a modality's tensors, by those that they have where each has blocks of its own."""
    owner = f".{SHARED}." if config.share_encoder else f".{modality}."
    return {
        name.replace(owner, f".{modality}."): name
        for name in expected_shapes(config)
        if name.startswith(f"embed.{modality}.")
        or (name.startswith("blocks.") and owner in name)
        or name in _NORM
    }


def _alone(config: MBTConfig, modality: str) -> MBTConfig:
    """The configuration of one modality alone."""
    return config.replace(modalities=(modality,), update_order=())


def _with_head(state_dict: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """The weights, with the model's own classifier where theirs has other sizes."""
    own = {name: t for name, t in model.state_dict().items() if name.startswith("head.")}
    fits = all(name in state_dict and state_dict[name].shape == t.shape for name, t in own.items())
    return dict(state_dict) if fits else {**state_dict, **own}


def _pretrained(init: InitConfig, model: MBT) -> dict[str, Tensor]:
    """Weights of an image ViT in every modality, as the official code does it; then of an AST.

    What is in neither stays random. The last norm, which the modalities share, is the ViT's.
    """
    weights = model.state_dict()
    if init.vit:
        with _naming("init.vit"):
            weights = checkpoint.from_vit(checkpoint.load_vit(init.vit), model.config)
    if init.ast:
        with _naming("init.ast"):
            weights |= _sound(init.ast, model.config, norm=not init.vit)
    return {name: tensor.float() for name, tensor in weights.items()}


def _sound(ast: str, config: MBTConfig, norm: bool) -> dict[str, Tensor]:
    """The spectrogram's part of a model, from an AST."""
    if "spectrogram" not in config.modalities or config.share_encoder:
        raise ValueError("the model must have blocks of its own for the modality spectrogram")
    state_dict, grid = checkpoint.load_ast(ast)
    weights = checkpoint.from_vit(state_dict, _alone(config, "spectrogram"), grid=grid)
    own = {name: tensor for name, tensor in weights.items() if ".spectrogram." in name}
    return own | {name: weights[name] for name in _NORM if norm}


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Name the key whose file cannot be used."""
    try:
        yield
    except OSError:
        raise
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error
