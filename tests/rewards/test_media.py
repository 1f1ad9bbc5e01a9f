"""Images and clips of every odd kind: the right pixels, or one clear line."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import decord
import numpy as np
import pytest
from PIL import Image

from generators.saving import write_clip
from rewards.media import load_media, sample_indices

CLIPS = Path(__file__).parents[1] / "golden" / "media"
SHARED = Path(__file__).parents[3] / "shared" / "media"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(frame) -> list[str]:
    """Names of the colours near the corners: top left, top right, bottom left, bottom right."""
    frame = np.asarray(frame).astype(int)
    height, width = frame.shape[:2]
    names = {RED: "red", GREEN: "green", BLUE: "blue", WHITE: "white"}
    places = [(3, 3), (3, width - 4), (height - 4, 3), (height - 4, width - 4)]
    return [names[min(names, key=lambda colour: abs(frame[place] - colour).sum())] for place in places]


def quarters(width=64, height=36) -> Image.Image:
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def test_frames_of_the_release():
    """124 frames at 24 fps: seconds 0 to 5; 49 at 8 fps: seconds 0 to 6."""
    assert sample_indices([frame / 24 for frame in range(124)], "per_second") == [0, 24, 48, 72, 96, 120]
    assert sample_indices([frame / 8 for frame in range(49)], "per_second") == [0, 8, 16, 24, 32, 40, 48]
    assert sample_indices([0.0], "per_second") == [0]
    assert sample_indices([frame / 10 for frame in range(1000)], "per_second") == [10 * s for s in range(24)]


def test_frames_at_equal_distances():
    assert sample_indices(range(10), "uniform:1") == [5]
    assert sample_indices(range(10), "uniform:5") == [1, 3, 5, 7, 9]
    assert sample_indices(range(3), "uniform:8") == [0, 1, 2]
    assert sample_indices(range(10), "first:3") == [0, 1, 2] == sample_indices(range(3), "first:8")
    for rule in ("uniform:0", "first:0", "uniform", "every:2", "per_seconds"):
        with pytest.raises(ValueError, match="allowed: per_second, uniform:n"):
            sample_indices(range(10), rule)


def test_rotation_and_odd_sizes():
    rotated = load_media(CLIPS / "rotated.mp4")  # 64 x 36, to be turned left by 90 degrees
    assert rotated.frames.shape == (2, 64, 36, 3)
    assert corners(rotated.frames[1]) == ["green", "white", "red", "blue"]
    odd = load_media(CLIPS / "odd.mp4")
    assert odd.frames.shape == (2, 35, 63, 3) and odd.timestamps == (0.0, 1.0)
    assert corners(odd.frames[1]) == ["red", "green", "blue", "white"]


def test_long_clips_say_what_was_not_seen():
    """30 s at 2 fps, every frame 4 grey levels brighter: second s shows frame 2 s, so 8 levels more each."""
    clip = load_media(CLIPS / "long.mp4")
    assert clip.timestamps == tuple(float(second) for second in range(24))
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) - 8 * np.arange(24)).max() < 2
    assert clip.notes == (f"{CLIPS / 'long.mp4'}: 30.0 s long, only the first 24 s were seen",)
    uniform = load_media(CLIPS / "long.mp4", frames="uniform:4")  # frames 7, 22, 37, 52
    assert np.abs(uniform.frames.mean(axis=(1, 2, 3)) - 4 * np.array([7, 22, 37, 52])).max() < 2
    assert uniform.notes == ()


def test_what_follows_the_first_frames_is_not_decoded(monkeypatch):
    decoded, read = [], decord.VideoReader.next
    monkeypatch.setattr(decord.VideoReader, "next", lambda reader: decoded.append(1) or read(reader))
    first = load_media(CLIPS / "long.mp4", frames="first:3")
    assert len(decoded) == 3 and first.timestamps == (0.0, 0.5, 1.0) and first.notes == ()
    assert np.abs(first.frames.mean(axis=(1, 2, 3)) - 4 * np.arange(3)).max() < 2


def test_decord_adds_nothing_to_the_reason(tmp_path, capfd):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ValueError, match="an unknown format, or damaged"):
        load_media(tmp_path / "noise.mp4")
    assert capfd.readouterr() == ("", "")


def test_files_are_closed():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        load_media(CLIPS / "odd.mp4")
        with pytest.raises(ValueError, match="neither an image nor a video"):
            load_media(CLIPS / "no_frames.mp4")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the release's demo media are not here")
def test_demo_media():
    clip = load_media(SHARED / "test1.mp4")  # 49 frames at 8 fps
    assert clip.frames.shape == (7, 480, 720, 3) and clip.timestamps == (0, 1, 2, 3, 4, 5, 6)
    clip = load_media(SHARED / "test2.mp4")  # 60 frames at 10 fps
    assert clip.timestamps == pytest.approx((0, 1, 2, 3, 4, 5, 5.9))
    assert load_media(SHARED / "test1.jpg").kind == "image"


def test_arrays():
    array = np.random.default_rng(0).integers(0, 256, (49, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(load_media(array, fps=8).frames, array[::8])
    assert np.array_equal(load_media(array[:24]).frames, array[:24])
    assert np.array_equal(load_media(array, "uniform:7").frames, array[3::7])
    with pytest.raises(ValueError, match="49 frames without a frame rate"):
        load_media(array)
    for bad in (array.astype(np.float32), array[0], array[:0], array[..., :1]):
        with pytest.raises(ValueError, match="needed uint8"):
            load_media(bad)


def test_exif_rotation(tmp_path):
    image = quarters()
    exif = image.getexif()
    exif[0x0112] = 6  # stored on its side: turn right by 90 degrees to see it
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    media = load_media(tmp_path / "turned.jpg")
    assert media.image.size == (36, 64)
    assert corners(media.image) == ["blue", "red", "white", "green"]


def test_sixteen_bits(tmp_path):
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    pixels = np.asarray(load_media(tmp_path / "deep.png").image)
    assert np.array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk(tmp_path):
    quarters().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    media = load_media(tmp_path / "print.jpg")
    assert media.image.mode == "RGB" and corners(media.image) == ["red", "green", "blue", "white"]


def test_animated_gif_shows_its_first_frame_and_says_so(tmp_path):
    first, second = quarters(), quarters().transpose(Image.Transpose.ROTATE_180)
    first.save(tmp_path / "moves.gif", save_all=True, append_images=[second], duration=100)
    media = load_media(tmp_path / "moves.gif")
    assert corners(media.image) == ["red", "green", "blue", "white"]
    assert media.notes == (f"{tmp_path / 'moves.gif'}: animated, only the first of 2 frames was seen",)


@pytest.mark.parametrize(
    ("name", "format", "several"), [("a.tif", "TIFF", "pages"), ("a.jpg", "MPO", "pictures")]
)
def test_several_still_pictures_are_called_what_they_are(name, format, several, tmp_path):
    first, second = quarters(), quarters().transpose(Image.Transpose.ROTATE_180)
    first.save(tmp_path / name, format, save_all=True, append_images=[second])
    media = load_media(tmp_path / name)
    assert corners(media.image) == ["red", "green", "blue", "white"]
    assert media.notes == (f"{tmp_path / name}: 2 {several}, only the first was seen",)


def test_extreme_shapes(tmp_path):
    Image.new("RGB", (10_000, 10), RED).save(tmp_path / "long.png")
    assert load_media(tmp_path / "long.png").image.size == (10_000, 10)
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")
    assert load_media(tmp_path / "dot.png").image.size == (1, 1)


def test_more_pixels_than_memory_is_one_line(tmp_path):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match="more than .* pixels"):
        load_media(tmp_path / "bomb.png")


def broken_files(folder: Path) -> dict[Path, str]:
    quarters().save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:60])
    (folder / "header.png").write_bytes(whole.replace(b"IHDR", b"XXXX"))  # decord takes it for a picture
    quarters().save(folder / "pages.tif", save_all=True, append_images=[quarters()])
    pages = (folder / "pages.tif").read_bytes()
    (folder / "cut.tif").write_bytes(pages[: len(pages) // 2])
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    write_clip(noise, folder / "whole.mp4", 8)  # its index comes first, so that decord opens what is left
    clip = (folder / "whole.mp4").read_bytes()
    for percent in (50, 99):
        (folder / f"{percent}.mp4").write_bytes(clip[: len(clip) * percent // 100])
    (folder / "text.mp4").write_text("this is not a video")
    (folder / "text.png").write_text("this is not an image")
    (folder / "nothing.jpg").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "cut.mp4").write_bytes((CLIPS / "odd.mp4").read_bytes()[:900])
    shutil.copy(CLIPS / "no_frames.mp4", folder)
    unclear = r"neither an image nor a video that can be read \(an unknown format, or damaged\)$"
    return {
        folder / "cut.png": "damaged image",
        folder / "cut.tif": r"damaged image \(Missing dimensions\)$",
        folder / "header.png": unclear,
        folder / "50.mp4": unclear,
        folder / "99.mp4": unclear,
        folder / "text.mp4": r"neither an image nor a video that can be read \(it looks like text\)",
        folder / "noise.mp4": unclear,
        folder / "text.png": "neither an image nor a video",
        folder / "nothing.jpg": "the file is empty",
        folder / "cut.mp4": "neither an image nor a video",
        folder / "no_frames.mp4": "it has no video stream",
        folder / "absent.png": "no such file",
        folder: ": a folder, needed a file$",
    }


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of PIL, about the cut TIFF
def test_what_cannot_be_read_is_one_clear_line(tmp_path):
    for path, words in broken_files(tmp_path).items():
        with pytest.raises(ValueError, match=words) as caught:
            load_media(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="needed a path"):
        load_media(3)
    with pytest.raises(ValueError, match="floating-point"):
        load_media(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    """Root may read everything, so the refusal is made up."""
    path = tmp_path / "a.png"
    quarters().save(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for place in ("PIL.Image.open", "pathlib.Path.is_dir"):  # the file, or a folder above it
        with monkeypatch.context() as patched:
            patched.setattr(place, refuse)
            with pytest.raises(ValueError, match=f"^{path}: no permission to read it$"):
                load_media(path)


def test_a_whole_image_that_cannot_be_judged_is_not_called_damaged(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"^{tmp_path}/a.tif: floating-point pixels have no known range"):
        load_media(tmp_path / "a.tif")


def test_digest_is_of_the_pixels(tmp_path):
    image = quarters()
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    digest = load_media(image).digest
    assert load_media(tmp_path / "a.png").digest == load_media(tmp_path / "b.bmp").digest == digest
    other = image.copy()
    other.putpixel((0, 0), (254, 0, 0))
    assert load_media(other).digest != digest
    assert load_media(np.asarray(image)[None]).digest != digest  # a clip of one frame is asked differently
    assert load_media(image.resize((36, 64))).digest != digest
