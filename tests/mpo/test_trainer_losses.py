"""Losses and the watch within a training run: what the trainer hands them, and what survives a kill."""

import math

import pytest
import torch
from training import Stop, assert_equal, losses, trained, trainer

from mpo.config import DisplacementConfig
from mpo.losses import reward_offset, running_mean
from mpo.preference_data import PreferencePairs
from mpo.trainer import last_checkpoint

# Above the threshold from the second step on, the first at which model and reference differ.
ALWAYS = {"patience": 2, "threshold": -1.0}


def resumed(tiny_pipeline, pairs, folder, after=5, **changes):
    """The trainer of a run that was killed after some steps and started again."""
    killed = trainer(tiny_pipeline, pairs, folder, callbacks=[Stop(after)], **changes)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = trainer(tiny_pipeline, pairs, folder, **changes)
    again.train(resume_from_checkpoint=str(last_checkpoint(folder)))
    return again


@pytest.mark.parametrize("action", ["warn", "lower_rate", "safeguard"])
def test_auto_beta_and_the_watch_survive_a_kill(tiny_pipeline, pairs, tmp_path, action):
    changes = {"beta": "auto", "displacement": DisplacementConfig(action, **ALWAYS), "steps": 6}
    straight = trainer(tiny_pipeline, pairs, tmp_path / "straight", **changes)
    straight.train()
    again = resumed(tiny_pipeline, pairs, tmp_path / "killed", **changes)
    assert_equal(trained(again), trained(straight))
    assert losses(again) == losses(straight)
    assert again.watch.state() == straight.watch.state()
    assert [event["step"] for event in straight.watch.events] == ([3, 5] if action == "lower_rate" else [3])
    betas = [entry["beta"] for entry in straight.state.log_history if "beta" in entry]
    assert betas[0] == 2000.0 and len(set(betas)) == 6


def test_what_the_watch_does_changes_the_result(tiny_pipeline, pairs, tmp_path):
    """So that the test above could fail."""
    ends = []
    for action in ("off", "lower_rate", "safeguard"):
        run = trainer(
            tiny_pipeline,
            pairs,
            tmp_path / action,
            displacement=DisplacementConfig(action, **ALWAYS),
            steps=4,
        )
        run.train()
        ends.append(torch.cat([p.flatten() for p in trained(run).values()]))
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_a_run_that_the_watch_stopped_stays_stopped(tiny_pipeline, pairs, tmp_path):
    changes = {"displacement": DisplacementConfig("stop", patience=3, threshold=-1.0), "steps": 6}
    run = trainer(tiny_pipeline, pairs, tmp_path, **changes)
    run.train()
    assert run.state.global_step == 4
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint.name == "checkpoint-4"
    again = trainer(tiny_pipeline, pairs, tmp_path, **changes)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 4
    assert_equal(trained(again), trained(run))


def test_the_watch_follows_what_the_log_shows(tiny_pipeline, pairs, tmp_path):
    """Its input in the trainer: the step's mean over all micro-batches, of the right one of the errors."""
    watch = DisplacementConfig("warn", decay=0.5)
    run = trainer(
        tiny_pipeline, pairs, tmp_path, displacement=watch, steps=4, batch_size=2, micro_batch_size=1
    )
    run.train()
    rows = [row for row in run.state.log_history if "errors/winner_excess" in row]
    assert len(rows) == 4 and "errors/winner_excess_running" not in rows[0]  # where nothing has moved yet
    excess = reference = None
    for row in rows[1:]:
        excess = running_mean(excess, row["errors/winner_excess"], 0.5)
        reference = running_mean(reference, row["errors/winner"] - row["errors/winner_excess"], 0.5)
        assert row["errors/winner_excess_running"] == pytest.approx(excess, rel=1e-5)
    assert run.watch.reference == pytest.approx(reference, rel=1e-5)
    assert abs(excess) > 1e-6 and len({row["errors/winner_excess"] for row in rows}) == 4


def test_delta_is_how_far_apart_the_two_excesses_are(tiny_pipeline, pairs, tmp_path):
    run = trainer(tiny_pipeline, pairs, tmp_path, beta="auto", steps=3, batch_size=1, micro_batch_size=1)
    run.train()
    rows = [row for row in run.state.log_history if "errors/winner_excess" in row]
    delta = [abs(row["errors/winner_excess"] - row["errors/loser_excess"]) for row in rows]
    # the running mean starts with the second step, the first that has one
    assert run.watch.delta == pytest.approx(0.95 * delta[1] + 0.05 * delta[2], rel=1e-4)


def test_auto_beta_is_the_same_for_any_split_of_the_batch(tiny_pipeline, pairs, tmp_path):
    whole = trainer(tiny_pipeline, pairs, tmp_path / "4x1", beta="auto", steps=4)
    whole.train()
    split = trainer(tiny_pipeline, pairs, tmp_path / "1x4", beta="auto", steps=4, micro_batch_size=1)
    split.train()
    assert split.watch.delta == pytest.approx(whole.watch.delta, rel=1e-3)
    assert whole.watch.delta > 0


def test_the_offset_is_the_pairs_gap_over_the_mean_gap(tiny_pipeline, pairs, tmp_path):
    run = trainer(tiny_pipeline, pairs, tmp_path, margin_offset=0.7)
    batch = next(iter(run.get_train_dataloader()))
    gaps = torch.tensor(pairs.gap)[batch["pair"]]
    # at initialisation z = 0; the mean of .1 ... .6 is .35
    expected = torch.log1p(torch.exp(0.7 * gaps / 0.35))
    torch.testing.assert_close(run.preference_loss(run.model, batch).loss, expected, atol=1e-6, rtol=0)
    unknown = PreferencePairs(
        *(getattr(pairs, n) for n in ("latents", "conditioning", "winner", "loser", "prompt", "names"))
    )
    with pytest.raises(ValueError, match="train.margin_offset = 0.7: must be 0"):
        trainer(tiny_pipeline, unknown, tmp_path, margin_offset=0.7)


def test_a_pair_that_the_reward_sees_the_other_way_round_need_not_exceed_any_margin():
    gap = torch.tensor([2.0, -4.0, 0.0])
    assert reward_offset(gap, typical_gap=1.0, weight=0.5).tolist() == [1.0, 0.0, 0.0]


def test_mapo_trains_without_a_reference(tiny_pipeline, pairs, tmp_path, capsys):
    run = trainer(tiny_pipeline, pairs, tmp_path, loss="mapo", beta=0.1, steps=2)
    run.tuning.reference = None  # so that using it fails
    run.train()
    first = run.state.log_history[0]
    assert math.isfinite(first["loss"]) and first["errors/winner"] > 0
    assert not any("excess" in name or "beta" in name for name in first)
    assert "per element" not in capsys.readouterr().out  # which would mean nothing here
    assert set(run.watch.events) == set()
