"""Displacement and the typical |delta|, fed by hand: no model."""

from types import SimpleNamespace

import pytest
import torch
from training import settings
from transformers import TrainerControl, TrainerState

from mpo.config import DisplacementConfig
from mpo.losses import auto_beta
from mpo.training_arguments import training_arguments
from mpo.watch import Watch


def watching(means, tmp_path, beta=200.0, **displacement):
    """(watch, learning rate, control) after steps of these means: |delta|, excess, reference error."""
    defaults = {"patience": 2, "decay": 0.5, "threshold": 0.0}
    train = settings(beta=beta, displacement=DisplacementConfig(**defaults | displacement))
    told = iter(means)
    watch = Watch(training_arguments(train, tmp_path, seed=0, use_cpu=True), lambda: next(told))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    control, state = TrainerControl(), TrainerState(stateful_callbacks=[watch])
    watch.on_train_begin(None, state, control)
    for _ in means:
        optimizer.step()
        scheduler.step()
        state.global_step += 1
        watch.on_step_end(
            None, state, control, optimizer=optimizer, lr_scheduler=SimpleNamespace(scheduler=scheduler)
        )
    scheduler.step()
    return watch, optimizer.param_groups[0]["lr"], control


RISING = [(0.0, 0.0, 1.0), (0.1, -0.02, 1.0), (0.1, 0.04, 1.0), (0.1, 0.02, 1.0)]


def test_a_warning_comes_once_and_says_step_and_share(tmp_path, capsys):
    watch, rate, control = watching(RISING, tmp_path, action="warn")
    # running mean of the excess: -, -.02, .01, .015; two steps above 0 at step 4
    assert watch.events == [{"step": 4, "action": "warn", "excess": 0.015, "share": 0.015}]
    told = capsys.readouterr().out
    assert "step 4: " in told and "1.50%" in told and told.count("\n") == 1
    assert rate == 0.8 and not control.should_training_stop


def test_a_winner_that_improves_is_left_alone(tmp_path):
    watch, *_ = watching([(0.1, -0.02, 1.0)] * 9, tmp_path, action="stop")
    assert watch.events == [] and not watch.stopped and watch.excess == pytest.approx(-0.02)


def test_a_fall_starts_the_patience_again(tmp_path):
    rising, falling = (0.1, 0.02, 1.0), (0.1, -0.1, 1.0)
    watch, *_ = watching([rising, falling] * 4, tmp_path, action="stop")
    assert watch.events == []


def test_the_threshold_is_a_share_of_the_references_error(tmp_path):
    assert watching(RISING, tmp_path, action="stop", threshold=0.03)[0].events == []
    assert watching(RISING, tmp_path, action="stop", threshold=0.009)[0].events != []


def test_stop_stops_and_saves(tmp_path):
    watch, _, control = watching(RISING, tmp_path, action="stop")
    assert control.should_training_stop and control.should_save and watch.stopped


def test_lower_rate_lowers_it_again_after_as_many_steps(tmp_path):
    rates = [watching([(0.1, 0.02, 1.0)] * n, tmp_path, action="lower_rate")[1] for n in range(1, 7)]
    assert rates == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2, 0.1])


def test_the_safeguard_is_switched_on_once(tmp_path):
    watch, *_ = watching([(0.1, 0.02, 1.0)] * 9, tmp_path, action="safeguard")
    assert watch.safeguard and len(watch.events) == 1


def test_off_sees_nothing(tmp_path):
    assert watching(RISING, tmp_path, action="off")[0].logs() == {}


def test_auto_beta_follows_the_running_mean_of_delta(tmp_path):
    watch, *_ = watching([(0.0, 0.0, 1.0), (0.2, 0.0, 1.0), (0.4, 0.0, 1.0)], tmp_path, beta="auto")
    # starts with the first |delta| above 0; then .95 * .2 + .05 * .4
    assert watch.delta == pytest.approx(0.21)
    assert watch.beta == watch.logs()["beta"] == auto_beta(watch.delta, 0.2)
    assert watching([(0.0, 0.0, 1.0)], tmp_path, beta="auto")[0].beta == 2000.0
    assert watching([(0.3, 0.0, 1.0)], tmp_path)[0].beta == 200.0
