"""`mpo vqa` with the reward of a release-like checklist: its features are nothing that vqa needs."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from mpo.cli import main

JUDGE = Path(__file__).parents[1] / "golden" / "cogvlm2" / "image"


def test_vqa_loads_no_feature_of_the_reward(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "reward.yaml").write_text(
        f"judge: {JUDGE}\nchecklist: visionreward-image\ndevice: cpu\nmin_mass: 0\n"
        "features: {alignment: {kind: vqascore, path: /nowhere}}\n"
    )
    words = [str(tmp_path / "a.png"), "--question", "Is it day?", "--reward", str(tmp_path / "reward.yaml")]
    monkeypatch.setattr(sys, "argv", ["mpo", "vqa", *words])
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
    line = capsys.readouterr().out
    assert line.split()[0] in ("yes", "no") and line.endswith("a.png  Is it day?\n")
    monkeypatch.setattr(sys, "argv", ["mpo", "score", words[0], "--prompt", "x", *words[3:]])
    with pytest.raises(SystemExit) as ended:  # score needs them
        main()
    assert ended.value.code == 2
