"""Packed and batched questions give equal answers; which is used follows from counts, or from the clock."""

import pytest
import torch
from golden_cogvlm2 import asked, clip, close, judge, picture
from PIL import Image

from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.judges.layouts import LAYOUTS, Layouts, counted
from rewards.judges.packing import PrefixCache
from rewards.media import load_media

ELSEWHERE = torch.device("meta")  # any device that is no CPU: nothing is computed on it


@pytest.mark.parametrize("kind", ["image", "video"])
def test_both_layouts_equal_one_question_at_a_time(kind):
    """Two media of one pass, their questions of different lengths."""
    mine = CogVLM2Judge(judge(kind).model, judge(kind).processor, kind)
    if kind == "image":
        media = [picture(), load_media(Image.effect_noise((40, 30), 90).convert("RGB"))]
    else:
        media = [clip(3), load_media(clip(3).frames[:, ::-1].copy())]
    asking = [asked(kind)[:4], asked(kind)[4:8]]
    plain = [
        [mine.logits_plainly(m, question) for question in row] for m, row in zip(media, asking, strict=True)
    ]
    for layout in LAYOUTS:
        mine.layouts.fixed = layout
        for found, expected in zip(mine.logits(media, asking), plain, strict=True):
            close(found, torch.stack(expected), atol=1e-4)


def test_a_cache_repeats_its_prefix_and_keeps_nothing_else():
    cache = PrefixCache()
    keys, values = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    cache.update(keys, values, 0)
    new = torch.randn(6, 3, 2, 4)
    seen, _ = cache.update(new, new, 0)
    assert torch.equal(seen[:, :, 5:], new)
    for row in range(6):  # three rows for each of two prefixes, side by side
        assert torch.equal(seen[row, :, :5], keys[row // 3])
    assert torch.equal(cache.layers[0].keys, keys) and torch.equal(cache.layers[0].values, values)
    assert cache.get_seq_length() == 5


def questions(widths, pictures=1):
    return [[[7] * width for width in widths] for _ in range(pictures)]


def test_the_work_is_counted():
    """Packed: (3 + 5)^2 = 64 pairs. Batched: 2 * (5^2 + 60 P), and 2 padded tokens at 8 * hidden."""
    assert counted(questions([3, 5]), prefix=0, hidden=0) == "batched"  # 50
    assert counted(questions([3, 5]), prefix=0, hidden=1) == "packed"  # 50 + 16
    assert counted(questions([4, 4]), prefix=0, hidden=1000) == "batched"  # 32: nothing is padded
    assert counted(questions([4, 4]), prefix=1, hidden=1000) == "packed"  # 32 + 120
    assert counted(questions([12] * 60), prefix=20, hidden=96) == "batched"
    assert counted(questions([14] * 29), prefix=1634, hidden=512) == "packed"


def run(layouts, seconds, widths=(3, 5), failing=()):
    """Runs `layouts` off the CPU, where an ask takes so many `seconds` by layout; which layouts it saw."""
    seen, now = [], [0.0]

    def ask(packed):
        layout = "packed" if len(packed.input_ids) == 2 else "batched"  # of two pictures
        seen.append(layout)
        if layout in failing:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        now[0] += seconds[layout]
        return packed.input_ids.new_empty(*packed.ends.shape, 1, device="cpu")

    result = layouts.run(questions(widths, pictures=2), 9, ELSEWHERE, ask, clock=lambda: now[0])
    assert result.shape == (2, len(widths), 1)
    return seen


def test_off_the_cpu_the_faster_one_is_kept():
    for faster, slower in (LAYOUTS, LAYOUTS[::-1]):
        layouts = Layouts(hidden=8)
        seconds = {faster: 1.0, slower: 1.1}
        assert run(layouts, seconds) == [*["packed"] * 2, *["batched"] * 2, faster]
        assert run(layouts, {faster: 9.0, slower: 1.0}) == [faster]  # timed once
        assert len(run(layouts, seconds, widths=(3, 5, 4))) == 5  # and once for another number of questions
    assert run(Layouts(hidden=8, fixed="batched"), seconds) == ["batched"]


def test_a_layout_that_does_not_fit_is_not_chosen():
    seconds = {"packed": 2.0, "batched": 1.0}
    assert run(Layouts(hidden=8), seconds, failing=("batched",)) == ["packed"] * 2 + ["batched"] + ["packed"]
    with pytest.raises(torch.OutOfMemoryError):  # which makes the batch of pictures smaller
        run(Layouts(hidden=8), seconds, failing=LAYOUTS)


def test_results_come_by_picture_and_question():
    """Each question's last token is given back in its place, in both layouts."""
    rows = [[[1, 2], [3], [4, 5, 6]], [[7], [8, 9], [10]]]
    ends = torch.tensor([[2, 3, 6], [7, 9, 10]])
    for layout in LAYOUTS:
        found = Layouts(hidden=8, fixed=layout).run(
            rows, 4, torch.device("cpu"), lambda packed: packed.input_ids.gather(1, packed.ends)[..., None]
        )
        assert torch.equal(found[..., 0], ends)
