"""Modality parallelism: each modality's stream on ranks of its own, which exchange slots alone.

A rank holds the weights of its modality, and the few that all share: the bottleneck tokens, the
last norm and the head. After each fused layer but the last, whose slots nobody reads, the ranks sum
their slots (Eq. 9): ``P * C`` numbers for each example, and one that says whether the example has
the modality. That is all that a forward exchanges, and its backward exchanges as much.

::

    mesh = init_device_mesh("cuda", (8, 2), mesh_dim_names=("dp", "modality"))
    model = modality_parallel(create_model("mbt_base"), mesh)   # this rank's part
    logits = DistributedDataParallel(model, process_group=mesh.get_group("dp"))(inputs)
    loss_of(logits).backward()                                  # the same loss on every rank
    sum_gradients(model)                                        # once before each step
    clip_grad_norm_(model, 1.0)
    optimizer.step()
"""

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from mbt_fast import checkpoint
from mbt_fast.config import MBTConfig
from mbt_fast.layers import Block, FusionLayer
from mbt_fast.layers.blockwise import are_unwatched
from mbt_fast.layers.fusion_layer import SHARED
from mbt_fast.layers.rows import Lengths, Streams
from mbt_fast.models import MBT
from mbt_fast.models.inputs import GivenLengths, Inputs, check_names, without_none
from mbt_fast.ops.streams import wide_dtype
from mbt_fast.parallel.modality_group import ModalityGroup


def modality_parallel(
    model: MBT, mesh: DeviceMesh, plan: Mapping[str, int] | None = None
) -> "ModalityParallelMBT":
    """This rank's part of a model whose modalities are spread over ranks.

    The part has the model's own parameters, of which the others are freed with the model. All ranks
    get the shared ones of the first rank, so seeds may differ. Data parallelism is a second
    dimension of the mesh: ``DistributedDataParallel`` or ``fully_shard`` on the part, over that
    dimension alone. A model on the meta device takes no memory before ``to_empty`` and
    ``reset_parameters`` are called on its part.

    Args:
        model: With the same configuration on all ranks.
        mesh: Has a dimension ``"modality"``.
        plan: Ranks per modality, in the order in which they are dealt out; one each by default.
            Several ranks of one modality share the batch in equal parts, the first rank has the
            first clips; so a rank is given a batch ``B / plan[modality]``.

    Returns:
        The part. Its ``forward`` takes the inputs of its modality.

    Raises:
        ValueError: The streams meet otherwise than in the mean over their slots, or mesh and plan
            do not fit the model.
    """
    _check(model.config)
    plan = dict.fromkeys(model.config.modalities, 1) if plan is None else plan
    if sorted(plan) != sorted(model.config.modalities):
        known = ", ".join(model.config.modalities)
        raise ValueError(f"plan must name every modality ({known}), got {', '.join(plan)}")
    return ModalityParallelMBT(model, ModalityGroup(mesh, plan))


class ModalityParallelMBT(MBT):
    """The part of an ``MBT`` that one modality needs; made by ``modality_parallel``.

    Parameters are named as in the whole model. Random masks of dropout and stochastic depth are
    drawn on each rank by itself: ranks of different modalities should have different seeds.

    Args:
        model: The whole.
        group: The ranks that share it.
    """

    def __init__(self, model: MBT, group: ModalityGroup) -> None:
        """Take what the rank's modality needs."""
        nn.Module.__init__(self)
        self.config, self.group = model.config, group
        self.embed = nn.ModuleDict({group.modality: model.embed[group.modality]})
        self.blocks = nn.ModuleList(
            _SharingLayer(layer.block_of(group.modality), group, model, index)
            for index, layer in enumerate(model.layers)
        )
        self.bottleneck_tokens = model.bottleneck_tokens
        self.norm, self.head = model.norm, model.head
        self.set_backend(model.layers[0].chosen_backend)
        self._execution = model.execution
        self.set_execution()
        self.train(model.training)
        if not any(parameter.is_meta for parameter in self.parameters()):
            self._equalise()

    @property
    def modality(self) -> str:
        """Whose stream this rank computes."""
        return self.group.modality

    def forward(self, inputs: Inputs, lengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """Classify; the ranks exchange logits.

        Args:
            inputs: Of the rank's modality ``[b, ...]``; others are not looked at. Where it is
                absent, give zeros, and 0 in ``lengths``.
            lengths: As of ``MBT``; that of the rank's modality counts.

        Returns:
            Logits ``[B, num_classes]`` of all clips, the mean over the modalities that are present,
            the same on all ranks. All ranks must compute the same loss from them.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: The rank's modality is missing, or a shape, device or value does not fit.
        """
        logits = self.forward_modalities(inputs, lengths)[self.modality]
        return self.mean_of_modalities(logits, lengths)

    def forward_features(
        self, inputs: Inputs, lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What the head reads of the rank's modality, ``[b, C]``; arguments as of ``forward``.

        So ``forward_modalities`` returns its logits alone, from which its loss is made.
        """
        check_names(inputs, self.config.modalities)
        if self.modality not in inputs:
            raise ValueError(
                f"inputs must hold {self.modality!r}, the modality of this rank; got "
                f"{', '.join(inputs)}. Where it is absent, give zeros, and 0 in lengths"
            )
        own = {self.modality: inputs[self.modality]}
        self.group.check_clips(len(own[self.modality]))
        return super().forward_features(own, self._own_lengths(lengths))

    def mean_of_modalities(self, values: Tensor, lengths: GivenLengths | None = None) -> Tensor:
        """Mean over the modalities that an example has, of what each rank has computed.

        The training loss is ``mean_of_modalities(losses, lengths).mean()``, with the losses of this
        rank's logits.

        Args:
            values: ``[b]`` or ``[b, K]``, one row per clip of this rank.
            lengths: As of ``forward``.

        Returns:
            ``[B]`` or ``[B, K]`` of all clips, the same on all ranks; zero for an example without
            any modality. All ranks must go on in the same way, for the backward exchanges nothing.
        """
        rows = values.reshape(len(values), -1)
        mean = self.group.mean_for_all(rows, self._own_lengths(lengths).get(self.modality))
        return mean.reshape(len(mean), *values.shape[1:])

    def reset_parameters(self) -> None:
        """Draw all weights of the part anew; all ranks must. See ``MBT.reset_parameters``."""
        super().reset_parameters()
        self._equalise()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those that all ranks have: of the shared encoder, if there is one, too."""
        for name, parameter in self.named_parameters():
            if not self._is_own(name):
                yield parameter

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those that only ranks of this modality have."""
        for name, parameter in self.named_parameters():
            if self._is_own(name):
                yield parameter

    def whole_state_dict(self) -> dict[str, Tensor]:
        """The state dict of the whole model, on the CPU of the group's first rank.

        All ranks must call it; the others get nothing.
        """
        own = {name: _whole(tensor) for name, tensor in self.state_dict().items()}
        return self.group.gather(own)

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
        """State of an optimizer for every parameter of the whole model, by the parameter's name.

        All ranks must call it; it is on the CPU of the group's first rank, and nothing elsewhere.
        """
        state = get_optimizer_state_dict(self, optimizer)["state"]
        own = {
            name: {key: _whole(x) if isinstance(x, Tensor) else x for key, x in values.items()}
            for name, values in cast(dict[str, dict[str, Any]], state).items()
        }
        return self.group.gather(own)

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write the whole model, as ``MBT.save_pretrained`` does; all ranks must call it.

        The first rank of each group writes: give different directories to different groups, or call
        it in one group alone.
        """
        state_dict = self.whole_state_dict()
        if state_dict:
            checkpoint.save_pretrained(directory, self.config, state_dict)

    def _own_lengths(self, lengths: GivenLengths | None) -> dict[str, Tensor]:
        """The entry of the rank's modality, if there is one."""
        return {m: length for m, length in without_none(lengths).items() if m == self.modality}

    def _equalise(self) -> None:
        self.group.equalise(self.shared_parameters(), self.own_parameters())

    def _is_own(self, name: str) -> bool:
        kind = name.split(".")[0]
        return kind == "embed" or (kind == "blocks" and not self.config.share_encoder)


class _SharingLayer(FusionLayer):
    """The layer of one modality; its slots become the mean over the ranks."""

    def __init__(self, block: Block, group: ModalityGroup, model: MBT, index: int) -> None:
        shares_weights = model.config.share_encoder
        super().__init__({SHARED if shares_weights else group.modality: block}, f"layer {index}")
        self._group = group
        self._is_last = index == model.config.num_layers - 1

    def forward(
        self, streams: Streams, lengths: Lengths, *, n_slots: int = 0, **options: Any
    ) -> Streams:
        """As ``FusionLayer`` does; nobody reads the slots of the last layer."""
        outs = super().forward(streams, lengths, n_slots=n_slots, **options)
        if n_slots and not self._is_last:
            ((modality, x),) = outs.items()
            if not are_unwatched([self.block_of(modality)]):
                x = x.clone()  # a hook may keep the block's output
            slots = x[:, -n_slots:]
            values = slots.flatten(1).to(wide_dtype(x.dtype))
            mean = self._group.mean_for_each(values, lengths.get(modality))
            x[:, -n_slots:] = mean.view_as(slots).to(x.dtype)
            outs = {modality: x}
        return outs


def _check(config: MBTConfig) -> None:
    """Refuse streams that meet elsewhere than in their slots."""
    required = {
        "fusion": (config.fusion, config.fusion == "bottleneck"),
        "update_order": (config.update_order, not config.update_order),
        "classifier": (config.classifier, config.classifier != "gap"),
    }
    reasons = {
        "fusion": "'bottleneck': every stream attends to all others",
        "update_order": "empty: modalities wait for one another",
        "classifier": "'token' or 'gap_per_modality': the mean is over the tokens of all",
    }
    for name, (value, fits) in required.items():
        if not fits:
            raise ValueError(
                f"{name} of a model in modality parallelism must be {reasons[name]}, got {value!r}"
            )


def _whole(tensor: Tensor) -> Tensor:
    """All of it, if it is sharded, on the CPU."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return cast(Tensor, whole).detach().cpu()
