import numpy as np
import pytest
from PIL import Image

from generators.saving import save_media
from rewards.media import load_media


def clip(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A square that moves two pixels a frame over a plain ground."""
    frame = np.full((frames, height, width, 3), (242, 242, 242), np.uint8)
    for index in range(frames):
        frame[index, 10:22, 4 + 2 * index : 16 + 2 * index] = (36, 64, 214)
    return frame


def test_a_clip_comes_back_frame_by_frame_nearly_as_it_was(tmp_path):
    frames = clip()
    save_media(frames, tmp_path / "clip.mp4", 8)
    read = load_media(tmp_path / "clip.mp4", "uniform:9")
    assert read.frames.shape == frames.shape
    assert read.timestamps == pytest.approx([index / 8 for index in range(9)])
    off = np.abs(read.frames.astype(int) - frames)
    assert off.mean() < 3  # of 255; half the colours' resolution blurs the edge, not the rest
    assert off[:, 12:20, 40:].max() < 8


def test_the_release_frame_rule_sees_a_frame_a_second(tmp_path):
    save_media(clip(33, 32, 96), tmp_path / "clip.mp4", 16)
    assert load_media(tmp_path / "clip.mp4").timestamps == (0.0, 1.0, 2.0)


def test_equal_clips_are_equal_bytes_whatever_the_name(tmp_path):
    for name in ("a.mp4", "b.temporary"):
        save_media(clip(), tmp_path / name, 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.temporary").read_bytes()


def test_equal_clips_are_equal_bytes_however_often_they_are_written(tmp_path):
    random = np.random.default_rng(0)
    clips = [
        random.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2) for _ in range(20)
    ]
    first = {}
    for _ in range(4):
        for number, frames in enumerate(clips):
            held = np.empty(random.integers(1, 1 << 20), np.uint8)  # memory lies elsewhere next time
            save_media(frames.copy(), tmp_path / "clip.mp4", 8)
            assert (
                first.setdefault(number, (tmp_path / "clip.mp4").read_bytes())
                == (tmp_path / "clip.mp4").read_bytes()
            )
            del held


def test_odd_sizes_are_refused_and_pictures_are_png(tmp_path):
    with pytest.raises(ValueError, match="33x32 pixels"):
        save_media(np.zeros((5, 32, 33, 3), np.uint8), tmp_path / "odd.mp4", 8)
    assert not (tmp_path / "odd.mp4").exists()
    save_media(Image.new("RGB", (3, 2), (1, 2, 3)), tmp_path / "picture", 8)
    assert load_media(tmp_path / "picture").image.getpixel((2, 1)) == (1, 2, 3)
