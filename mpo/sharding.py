"""A Trainer whose model is whole on each process (DDP) or sharded over them (FSDP2); checkpoints fit both.

A checkpoint holds whole tensors whatever number of processes wrote it, so that any number can go on from it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from generators.adapters import Tuning, shard_like


def wants_fsdp() -> bool:
    """Whether the launcher was told to shard by FSDP, as by configs/accelerate/fsdp2.yaml."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shard_on_cpu(process: PartialState) -> None:
    """Let FSDP shard on CPUs too: accelerate would fall back to DDP there without a word, torch does not."""
    if wants_fsdp() and process.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def whole(value: Any, keep: bool = True) -> Any:
    """`value`, tensors in dicts and lists, with those that are sharded made whole on the CPU, one at a time.

    Every process calls this and takes part; with `keep=False` a process gets None in the place of tensors.
    """
    match value:
        case DTensor():
            gathered = value.full_tensor()
            return gathered.cpu() if keep else None
        case Tensor():
            return value if keep else None
        case dict():
            return {name: whole(entry, keep) for name, entry in value.items()}
        case list():
            return [whole(entry, keep) for entry in value]
    return value


class ShardingTrainer(Trainer):
    """A Trainer of a `Tuning`: what it saves and restores, and what of it is sharded.

    Model files are the tuning's own. Random states are kept by process, so where dropout acts a run that goes
    on with another number of processes is not bit for bit the one that was not stopped.
    """

    tuning: Tuning

    def create_accelerator_and_postprocess(self) -> None:
        shard_on_cpu(PartialState())
        super().create_accelerator_and_postprocess()
        if not self.is_fsdp_enabled:
            return
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError(
                "FSDP 1 is not supported: set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml"
            )
        # Autocast does it, as on one process. FSDP's own mixed precision would round the inputs, and bfloat16
        # has no timestep 999.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)

    def _prepare_for_training(self, *args, **kwargs):
        frozen = self.tuning.frozen
        if self.is_fsdp_enabled and frozen is not None:
            fsdp2_prepare_model(self.accelerator, frozen)
        prepared = super()._prepare_for_training(*args, **kwargs)
        if (
            self.is_deepspeed_enabled and frozen is not None
        ):  # its engine casts the policy; both must round alike
            frozen.to(next(self.tuning.policy.parameters()).dtype)
        return prepared

    def inference(self) -> AbstractContextManager:
        """The context of a pass without gradients. Not inference mode where weights are gathered: memory that
        was first filled in it can take no part in a pass with gradients later."""
        gathered = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return torch.no_grad() if gathered else torch.inference_mode()

    def _clip_grad_norm(self, model: nn.Module):
        """Of what is trained; accelerate knows a sharded model by all its parameters."""
        return super()._clip_grad_norm(model if self.is_fsdp_enabled else self.tuning.policy.trained)

    def export(self, folder: str | Path) -> None:
        """Write the result as diffusers reads it: an adapter, or a pipeline. Every process calls this."""
        state = self._state()
        if self.args.should_save:
            self.tuning.export(folder, state)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = self._state()
        if self.args.should_save:
            self.tuning.save(output_dir or self.args.output_dir, state)

    def _state(self) -> Mapping[str, Tensor] | None:
        """What is saved, whole on the process that saves; None where it is not sharded anyway."""
        return whole(self.tuning.state(), keep=self.args.should_save) if self.is_fsdp_enabled else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.tuning.restore(resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = whole(self.optimizer.state_dict(), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        optimizer, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for place, entries in optimizer["state"].items():
            like = parameters[place]
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.shape == like.shape:  # moments; not the count of steps
                    entries[name] = shard_like(like, value)
        self.optimizer.load_state_dict(optimizer)
        self.lr_scheduler.load_state_dict(scheduler)
