"""What a training run watches of itself: the typical |delta| that `beta: auto` follows, and displacement."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mpo.losses import auto_beta, running_mean
from mpo.training_arguments import DiffusionDPOConfig

_DELTA_DECAY = 0.95  # of the running mean of |delta|, an optimiser step
_FIRST_BETA = 2000.0  # of `beta: auto` until a |delta| is known; its upper bound would blow up a loss


def beta_now(args: DiffusionDPOConfig, delta: float | None) -> float:
    """The beta of a step before which `delta` is the running mean of |delta|; None: not known yet."""
    if args.beta != "auto":
        return args.beta
    return _FIRST_BETA if delta is None else auto_beta(delta, args.beta_target)


class Watch(TrainerCallback, ExportableState):
    """Running means over optimiser steps, and what is done while the winner's error is above the reference's.

    `step_means` returns the means over the step's whole batch, on all processes, of |delta|, e_w - ref_e_w
    and ref_e_w; so neither micro-batches nor processes change what follows. The state lies in each
    checkpoint's trainer_state.json.
    """

    def __init__(self, args: DiffusionDPOConfig, step_means: Callable[[], tuple[float, float, float]]):
        self._args, self._step_means = args, step_means
        self.delta: float | None = None  # |delta|; None until a step has one
        self.excess: float | None = None  # e_w - ref_e_w
        self.reference: float | None = None  # ref_e_w
        self.above = 0  # steps in a row in which the excess was above the threshold
        self.safeguard: bool = args.safeguard
        self.stopped = False
        self.events: list[dict[str, Any]] = []  # what was done, for the artifact's facts

    @property
    def beta(self) -> float:
        """The beta of the coming step."""
        return beta_now(self._args, self.delta)

    def logs(self) -> dict[str, float]:
        """What the training log has of it."""
        found = {"beta": self.beta} if self._args.beta == "auto" else {}
        return found if self.excess is None else found | {"errors/winner_excess_running": self.excess}

    # ---- kept in checkpoints ----

    _STATE = ("delta", "excess", "reference", "above", "safeguard", "stopped", "events")

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {name: getattr(self, name) for name in self._STATE}}

    def on_train_begin(self, args, state, control, **_):
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        for name, value in saved.get("attributes", {}).items():
            setattr(self, name, value)
        state.stateful_callbacks[type(self).__name__] = self.state()

    # ---- every step ----

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **_):
        delta, excess, reference = self._step_means()
        if not delta > 0:  # at initialisation, where model and reference agree; NaN without a reference
            return
        self.delta = running_mean(self.delta, delta, _DELTA_DECAY)
        action = self._args.displacement
        if action == "off":
            return
        decay = self._args.displacement_decay
        self.excess = running_mean(self.excess, excess, decay)
        self.reference = running_mean(self.reference, reference, decay)
        high = self.excess > self._args.displacement_threshold * self.reference
        self.above = self.above + 1 if high else 0
        if self.above != self._args.displacement_patience or (action == "safeguard" and self.safeguard):
            return
        match action:
            case "warn":
                what = "lower train.learning_rate, or see train.displacement.action"
            case "stop":
                self.stopped = control.should_training_stop = control.should_save = True
                what = "stopped"
            case "lower_rate":
                _lower_rate(optimizer, lr_scheduler, self._args.displacement_factor)
                self.above = 0  # and again, if that does not help
                what = f"the learning rate is lowered to {optimizer.param_groups[0]['lr']:.3g}"
            case "safeguard":
                self.safeguard = True
                what = "the safeguard is switched on"
        share = self.excess / self.reference
        self.events.append(
            {"step": state.global_step, "action": action, "excess": self.excess, "share": share}
        )
        if state.is_world_process_zero:
            tqdm.write(
                f"train: step {state.global_step}: the winner's error has been above the reference's for "
                f"{self._args.displacement_patience} steps, now by {share:.2%} in the running mean: {what}"
            )


class KeepWeights(TrainerCallback):
    """Keeps the trained weights of chosen optimiser steps, each in its folder `path(step)`.

    Where training is stopped at another step, what it ended with takes the place of the last one's.
    """

    def __init__(self, steps: Collection[int], path: Callable[[int], Path]):
        self._steps, self._path = frozenset(steps), path
        self.save: Callable[[str], None] | None = None  # the trainer's save_model, which every process calls

    def on_step_end(self, args, state, control, **_):
        step = state.global_step
        if self._steps and control.should_training_stop and step not in self._steps:
            step = max(self._steps)
        if step not in self._steps:
            return
        path = self._path(step)
        temporary = path.with_name(f".{path.name}.tmp")
        if state.is_world_process_zero:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.save(str(temporary))
        if state.is_world_process_zero:
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)


def _lower_rate(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Scale the rate from the coming step on; the scheduler's base rates are saved with it."""
    for group in optimizer.param_groups:
        group["lr"] *= factor
    while hasattr(scheduler, "scheduler"):  # as accelerate wraps it
        scheduler = scheduler.scheduler
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
