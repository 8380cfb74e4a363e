"""Train with each modality on a process of its own, which exchange slots alone.

python examples/modality_parallel.py
torchrun --nproc-per-node 2 examples/modality_parallel.py
"""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.functional import cross_entropy

from mbt_fast import create_model
from mbt_fast.parallel import (
    ModalityParallelMBT,
    clip_grad_norm_,
    modality_parallel,
    sum_gradients,
)
from mbt_fast.parallel.traffic import traffic

CLIPS, STEPS = 8, 20


def loss_of(model: ModalityParallelMBT, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The official loss, the same on both ranks; each looks at its own modality."""
    logits = model.forward_modalities({model.modality: inputs[model.modality]})
    losses = cross_entropy(logits[model.modality], labels, reduction="none")
    return model.mean_of_modalities(losses).mean()


def main() -> None:
    """Train on random clips; print what the rank holds, how the loss falls and what is sent."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("modality",))
    model = modality_parallel(create_model("mbt_tiny", fusion_layer=1), mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = {"rgb": torch.randn(CLIPS, 3, 2, 32, 32), "spectrogram": torch.randn(CLIPS, 64, 32)}
    labels = torch.arange(CLIPS) % 10
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, labels)
        loss.backward()
        sum_gradients(model)  # of the bottleneck tokens, the last norm and the head
        clip_grad_norm_(model, 1.0)
        optimizer.step()
        losses.append(loss.item())
    with CommDebugMode() as sent:
        loss_of(model, inputs, labels).backward()
    slots = next(c for c in traffic(model.config, 2, CLIPS)["modality"] if c.what == "slots")
    print(
        f"{model.modality}: {sum(p.numel() for p in model.parameters())} parameters; "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; {sent.get_total_counts()} sums in a step: "
        f"{slots.calls} of slots, {slots.size} bytes each, and one of losses"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        main()
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc-per-node", "2", __file__]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
