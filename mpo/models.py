"""The large models of a run, one in memory at a time."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from generators.build import build_generator
from mpo.config import RunConfig
from rewards import load_reward

if TYPE_CHECKING:
    from generators.base import Generator
    from rewards import VisionReward


class Models:
    """Loads a model when it is asked for and keeps it until another is: asking for that frees it."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._name: tuple[Any, ...] = ()
        self._model: Any = None

    def generator(self, weights: Path | None = None) -> Generator:
        """The generator as it was, or with `weights`: a folder with an adapter, a denoiser or a pipeline."""
        return self._hold("generator", weights)

    def reward(self, oracle: str | None = None) -> VisionReward:
        """The run's reward, or the oracle."""
        return self._hold("reward", oracle)

    def release(self) -> None:
        """Free what is held."""
        self._name, self._model = (), None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _hold(self, *name: Any) -> Any:
        if name != self._name:
            self.release()
            self._model, self._name = self._load(*name), name
        return self._model

    def _load(self, kind: str, which: Any) -> Any:
        config = self.config
        match kind, which:
            case "generator", None:
                return build_generator(config.generator)
            case "generator", folder if (folder / "model_index.json").is_file():
                return build_generator(replace(config.generator, path=str(folder)))
            case "generator", folder:
                from generators.adapters import load_adapter, load_denoiser

                generator = build_generator(config.generator)
                load = load_adapter if config.train.mode == "lora" else load_denoiser
                load(generator, folder)
                return generator
            case "reward", None:
                cache = config.reward.cache or f"{config.store}/score-cache"
                return load_reward(replace(config.reward, cache=cache))
            case "reward", "quickstart":
                from quickstart.oracle import OracleReward

                return OracleReward()
            case "reward", "quickstart_video":
                from quickstart.video.oracle import OracleReward

                return OracleReward()
