"""Several processes, one result: sharded weights (FSDP2), and checkpoints that any number of processes can read.

A checkpoint is written by torch's distributed checkpointing in its safetensors layout: each rank writes what it
holds, no tensor is ever whole on one rank, and nothing is pickled. On one process it is the same code.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from quintet import dist
from quintet.errors import CheckpointError
from quintet.model.mllm import MLLM
from quintet.training.objectives.lm import Notes
from quintet.training.optim import Optimizers
from quintet.values import Batch

__all__ = ["Step", "full_state", "load_state", "save_state", "shard", "training_state"]

Objective = Callable[[MLLM, Batch, Any], tuple[Tensor, float, Notes]]


class Step(nn.Module):
    """Model and objective as one module: what is sharded as the root, so that the head is gathered with the rest."""

    def __init__(self, model: MLLM, objective: Objective, settings: Any) -> None:
        super().__init__()
        self.model, self.objective, self.settings = model, objective, settings

    def forward(self, batch: Batch) -> tuple[Tensor, Notes]:
        """The objective's sum, and sums to report; its count is known from the batch."""
        loss, _, notes = self.objective(self.model, batch, self.settings)
        return loss, notes


def shard(step: Step, *, precision: str) -> None:
    """Shards the weights over all processes: each transformer block by itself, the rest with the root.

    Every rank then runs every part at every forward, also without media, or the gathers would wait for each other.
    """
    if dist.world() == 1:
        return
    device = dist.device()
    mesh = init_device_mesh(device.type, (dist.world(),))
    policy = MixedPrecisionPolicy()
    if precision == "bf16" and device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in step.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(step, mesh=mesh, mp_policy=policy)
    step.model.run_all_parts = True


def training_state(model: MLLM, optimizer: Optimizers) -> dict[str, Tensor]:
    """What a checkpoint holds: the weights that train and the optimizer's moments, by name.

    A parameter that has not had a gradient yet gets the moments it would start with, so that every checkpoint of a
    stage has the same keys.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.moments(parameter).items():
            # Scalars have no shape to shard; the safetensors layout wants one dimension.
            state[f"optim.{name}.{key}"] = value.reshape(1) if value.ndim == 0 else value
    return state


def save_state(state: dict[str, Tensor], folder: Path) -> None:
    """Writes `state` into a new folder; every rank must call it."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _one_process_is_meant():
        save(state, storage_writer=writer, no_dist=dist.world() == 1)


def load_state(state: dict[str, Tensor], folder: Path) -> None:
    """Fills the tensors of `state` in place from a checkpoint of any number of processes.

    Raises:
        CheckpointError: the folder does not hold these keys.
    """
    try:
        with _one_process_is_meant():
            load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=dist.world() == 1)
    except (RuntimeError, OSError, CheckpointException) as error:
        raise CheckpointError(f"{folder} does not fit this stage: {error}. Was the recipe changed since?") from None


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Without `torchrun` torch warns that it assumes one process; that is what we want."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def full_state(model: MLLM) -> dict[str, Tensor]:
    """The whole state dict on the CPU, gathered tensor by tensor; every rank must call it."""
    whole: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        whole[name] = (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
    return whole
