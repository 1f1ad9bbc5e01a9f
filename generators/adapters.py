"""What is trained in a denoiser, and what it is compared with: LoRA or all of it, and the reference."""

from __future__ import annotations

import copy
import difflib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from huggingface_hub import snapshot_download
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from generators.base import Conditioning
from generators.build import family_class
from generators.pipeline import PipelineGenerator

ADAPTER = "default"
_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_CONFIGS = {"allow_patterns": "*.json", "local_files_only": True}  # of a snapshot
PREVIOUS = "previous"  # the adapter that a later round may be compared with


class Denoiser(nn.Module):
    """`generator.predict` as a module, so that whatever wraps a module (several processes, autocast) wraps
    it."""

    def __init__(self, generator: PipelineGenerator, model: nn.Module):
        super().__init__()
        self.model = model
        self.predict = generator.predict

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        return self.predict(latents, timesteps, Conditioning(conditioning), self.model)

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of its blocks, each of which FSDP shards by itself; a UNet names some that it lacks."""
        named = getattr(self.model, "_no_split_modules", None) or ()
        return sorted({type(module).__name__ for module in self.model.modules()} & set(named))

    def train(self, mode: bool = True) -> Denoiser:
        """As of any module. The Trainer calls it at each step, and a walk through all modules takes time."""
        return self if self.training == self.model.training == mode else super().train(mode)

    @cached_property
    def trained(self) -> nn.ParameterList:
        """What a step changes, looked for among all parameters once: after they are sharded, if they are."""
        return nn.ParameterList(entry for entry in self.parameters() if entry.requires_grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module; nothing else has a gradient."""
        self.trained.zero_grad(set_to_none)

    def activation_checkpointing_enable(self, **_) -> None:
        """The Trainer's switch: recompute activations in the backward pass, by the model's own means."""
        self.model.enable_gradient_checkpointing()


class LoraTuning:
    """Low-rank adapters in the denoiser (Hu et al. 2021); the reference is the same model with them off."""

    def __init__(
        self,
        generator: PipelineGenerator,
        rank: int = 16,
        alpha: int = 16,
        dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        seed: int = 0,
        start: str | Path | None = None,
        against_start: bool = False,
    ):
        """Adapters on the modules whose name ends in one of `targets`, started from `seed`.

        `targets` None: the family's attention projections. At the start they change nothing, or else they are
        those that `save` wrote to the folder `start`; with `against_start` the reference has these too.
        ValueError for a target that matches no module.
        """
        self.generator = generator
        targets = list(generator.lora_targets if targets is None else targets)
        _check_targets(generator.model, targets)
        generator.model.requires_grad_(False)
        self.config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=targets,
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator.model.add_adapter(self.config, ADAPTER)
        for parameter in generator.model.parameters():
            if (
                parameter.requires_grad
            ):  # in float32 whatever the base is in: small updates vanish in half precision
                parameter.data = parameter.data.float()
        if start is not None:
            self.restore(start)
        self._against_start = start is not None and against_start
        if self._against_start:
            self._add_previous()
        self.policy, self.frozen = Denoiser(generator, generator.model), None
        self._layers = [
            (parent._modules, name, layer, layer.base_layer)
            for parent in generator.model.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, BaseTunerLayer)
        ]

    @contextmanager
    def reference(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The reference denoiser, callable as `policy` (the policy as the trainer wrapped it) is."""
        self._refer(True)
        try:
            yield policy
        finally:
            self._refer(False)

    def _refer(self, on: bool) -> None:
        """Run the reference's adapter, or the layer without any, in place of the trained one."""
        for siblings, name, layer, base in self._layers:
            if self._against_start:  # not `set_adapter`, which takes the gradient from the other one
                layer._active_adapter = [PREVIOUS if on else ADAPTER]
            else:  # not `disable_adapters`: a layer that is switched off costs more time than none
                siblings[name] = base if on else layer

    def _add_previous(self) -> None:
        """A frozen copy of the adapter as it is now, without dropout."""
        model = self.generator.model
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the second is wanted
            model.add_adapter(replace(self.config, lora_dropout=0.0), PREVIOUS)
        model.set_adapter(ADAPTER)
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            if f".{PREVIOUS}." in name:
                trained = parameters[name.replace(f".{PREVIOUS}.", f".{ADAPTER}.")]
                parameter.requires_grad_(False).data = trained.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors by name: the parameters themselves, sharded where they are."""
        return get_peft_model_state_dict(self.generator.model, None, ADAPTER)

    def save(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter in diffusers' LoRA format: `pipe.load_lora_weights(folder)` applies it.

        `state` has the tensors of `state()` whole, where they are sharded.
        """
        prefix = self.generator.denoiser
        layers = self.state() if state is None else state
        layers = {f"{prefix}.{name}": tensor.contiguous() for name, tensor in layers.items()}
        config = {
            f"{prefix}.r": self.config.r,
            f"{prefix}.lora_alpha": self.config.lora_alpha,
            f"{prefix}.target_modules": sorted(self.config.target_modules),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        # One entry of metadata only: safetensors writes several in random order, and equal adapters are
        # equal files.
        metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps(config)}
        save_file(layers, Path(folder) / LORA_WEIGHT_NAME_SAFE, metadata)

    def restore(self, folder: str | Path) -> None:
        """Read what `save` wrote into the adapter, exactly."""
        layers = load_file(Path(folder) / LORA_WEIGHT_NAME_SAFE)
        for name, tensor in self.state().items():
            _copy(tensor, layers[f"{self.generator.denoiser}.{name}"])

    export = save


class FullTuning:
    """Every parameter of the denoiser; the reference is a frozen copy of it as it was.

    Both in float32, whatever the generator's dtype: small updates vanish in half precision, and a reference
    that rounds otherwise than the policy would drown the difference between them. Give such a generator
    autocast.
    """

    def __init__(
        self,
        generator: PipelineGenerator,
        start: str | Path | None = None,
        against_start: bool = False,
        needed: bool = True,
    ):
        """The denoiser as it is now, or else the one that `save` wrote to the folder `start`, exactly.

        The reference is the denoiser as it is now, with `against_start` that of `start`. Not `needed`: there
        is none, and no memory for it.
        """
        self.generator = generator
        generator.model.float()
        if start is not None and against_start:
            self.restore(start)
        self.frozen = None
        if needed:
            self.frozen = Denoiser(generator, copy.deepcopy(generator.model)).requires_grad_(False)
        if start is not None and not against_start:
            self.restore(start)
        generator.model.requires_grad_(True)
        self.policy = Denoiser(generator, generator.model)

    @contextmanager
    def reference(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The reference denoiser, callable as `policy` is."""
        yield self.frozen
        if isinstance(self.frozen, FSDPModule):  # else a backward pass would do it, which never comes
            self.frozen.reshard()

    def state(self) -> dict[str, Tensor]:
        """The denoiser's tensors by name: the parameters themselves, sharded where they are."""
        return self.generator.model.state_dict()

    def save(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the denoiser alone, as its `save_pretrained` does; `state` as for `LoraTuning.save`."""
        self._whole(state).save_pretrained(folder)

    def restore(self, folder: str | Path) -> None:
        """Read what `save` wrote into the denoiser, exactly."""
        saved = type(self.generator.model).from_pretrained(folder).state_dict()
        for name, tensor in self.state().items():
            _copy(tensor, saved[name])

    def export(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write a pipeline folder: `DiffusionPipeline.from_pretrained(folder)` is the tuned pipeline."""
        self.generator.save(folder, self._whole(state))

    def _whole(self, state: Mapping[str, Tensor] | None) -> nn.Module:
        """The denoiser, or where it is sharded another one that holds the tensors of `state`."""
        model = self.generator.model
        if state is None:
            return model
        with torch.device("meta"):
            whole = type(model).from_config(model.config)
        whole.load_state_dict(state, assign=True)
        return whole


Tuning = LoraTuning | FullTuning


def load_denoiser(generator: PipelineGenerator, folder: str | Path) -> None:
    """Give the generator the denoiser that `FullTuning.save` wrote, in the generator's own precision."""
    saved = type(generator.model).from_pretrained(folder)
    generator.model.load_state_dict(saved.state_dict())


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value`, whole and the same on every process, laid out as `parameter` is: sharded where that is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def _copy(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(shard_like(parameter, value))


def load_adapter(generator: PipelineGenerator, folder: str | Path) -> None:
    """Apply a saved adapter for sampling, as diffusers users do."""
    generator.pipe.load_lora_weights(str(folder), weight_name=LORA_WEIGHT_NAME_SAFE)


def check_targets(config: Any, targets: Sequence[str]) -> None:
    """ValueError for a target that matches no module of the denoiser that a generator's settings name.

    Only configs are read, and those of a hub id only where the hub's cache has them.
    """
    family = family_class(config.family)
    name = family.denoiser
    try:
        folder = config.path if Path(config.path).is_dir() else snapshot_download(config.path, **_CONFIGS)
        kind = getattr(diffusers, family.pipeline_class.load_config(folder)[name][1])
        settings = kind.load_config(folder, subfolder=name)
    except OSError:
        return  # what is wrong with the model is said when it is loaded, before anything is sampled
    with torch.device("meta"):
        _check_targets(kind.from_config(settings), targets)


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    adaptable = {name for name, module in modules.items() if isinstance(module, _ADAPTABLE)}
    ends = {  # of `attn.to_out.0` the last two parts: a number alone says nothing
        ".".join(name.split(".")[-2 if name.rpartition(".")[2].isdigit() else -1 :]) for name in adaptable
    }
    for target in targets:
        matched = {name for name in modules if f".{name}".endswith(f".{target}")}
        if not matched or matched - adaptable:
            what = f"a {type(modules[min(matched)]).__name__}" if matched else "no module"
            nearest = difflib.get_close_matches(target, sorted(ends), n=4, cutoff=0)
            raise ValueError(
                f"train.lora.targets: {target} matches {what} of {type(model).__name__}, must match linear "
                f"layers or convolutions; nearest are {', '.join(nearest)}"
            )
