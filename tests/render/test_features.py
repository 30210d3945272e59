"""What does the sound do at each frame of the video?"""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve, fields_dict
from numpy.typing import NDArray

from renderdispatch import render
from renderdispatch.render.features import RECORD_BYTES, Analyser, Features, Frame

RATE = 44_100


def analysed(
    path: Path, sound: NDArray[np.float64], fps: Fraction, *, block: int = 10_000, rate: int = RATE
) -> Features:
    samples = np.atleast_2d(sound).astype(np.float32)
    with Analyser(path, rate=rate, fps=fps) as analyser:
        for at in range(0, samples.shape[1], block):
            analyser.feed(samples[:, at : at + block])
        return analyser.finish(round(Fraction(samples.shape[1], rate) * fps))


def noise(seconds: float) -> NDArray[np.float64]:
    return np.random.default_rng(3).normal(0, 0.1, round(seconds * RATE))


def test_row_0_is_what_webaudio_computes(tmp_path: Path) -> None:
    """The spectrum is the AnalyserNode's of the specification, computed here the long way."""
    sound, fps = noise(2), Fraction(30)
    n = np.arange(2048)
    blackman = 0.42 - 0.5 * np.cos(2 * np.pi * n / 2048) + 0.08 * np.cos(4 * np.pi * n / 2048)
    smoothed = np.zeros(512)
    with analysed(tmp_path / "features", sound, fps) as features:
        padded = np.pad(sound, 4096)
        for number in range(len(features)):
            middle = 4096 + (number * 1470 + (number + 1) * 1470) // 2
            window = padded[middle - 1024 : middle + 1024] * blackman
            smoothed = 0.8 * smoothed + 0.2 * np.abs(np.fft.rfft(window))[:512] / 2048
            expected = np.clip(255 / 70 * (20 * np.log10(smoothed) + 100), 0, 255).astype(int)
            got = features.frame(number).texture[0].astype(int)
            assert np.abs(got - expected).max() <= 1


def test_row_1_is_the_wave(tmp_path: Path) -> None:
    """The 512 samples around the frame's middle, 128 at rest."""
    with analysed(tmp_path / "features", np.linspace(-1, 1, RATE), Fraction(30)) as features:
        frame = features.frame(15)
    middle = 15 * 1470 + 735
    expected = np.floor(128 * (1 + np.linspace(-1, 1, RATE)[middle - 256 : middle + 256]))
    np.testing.assert_allclose(frame.texture[1], expected, atol=1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_the_wave_has_the_same_points_at_any_rate(tmp_path: Path, rate: int) -> None:
    """512 points at 11,025 a second around the frame's middle, with the mean of the channels."""
    times = np.arange(rate) / rate
    sound = np.stack([np.sin(2 * np.pi * 220 * times), 0.2 * np.sin(2 * np.pi * 220 * times)])
    with analysed(tmp_path / "features", sound, Fraction(25), rate=rate) as features:
        wave = features.frame(12).wave
    points = 12.5 / 25 + (np.arange(512) - 255.5) / 11_025
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave, 0.6 * np.sin(2 * np.pi * 220 * points), atol=0.012)


def test_the_wave_holds_nothing_above_half_its_rate(tmp_path: Path) -> None:
    """High notes do not come back as low ones."""
    for hz, highest in ((2_800, 0.3), (6_000, 0.02), (10_500, 0.02)):
        with analysed(tmp_path / "features", 0.5 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE), Fraction(30)) as f:
            assert np.abs(f.frame(15).wave).max() < highest, hz


def test_sound_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    """Samples above 1 do not wrap around."""
    with analysed(tmp_path / "features", np.full(RATE, 1.7), Fraction(30)) as features:
        np.testing.assert_array_equal(features.frame(15).wave, np.ones(512))


def same(one: Frame, other: Frame) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields_dict(Frame))


def test_a_slice_has_the_same_frames(tmp_path: Path) -> None:
    """They keep their index and time. A slice can be cut again, and outlives what it was cut from."""
    with analysed(tmp_path / "features", noise(2), Fraction(30)) as features:
        whole = list(features)
        outer = features.slice(10, 40)
    with outer, outer.slice(20, 30) as inner:
        assert [frame.index for frame in inner] == list(range(20, 30))
        assert all(same(frame, whole[frame.index]) for frame in [*outer, *inner])
        for index in (19, 30):
            with pytest.raises(IndexError, match=f"frame {index} is not among the frames 20 to 29"):
                inner.frame(index)
        with pytest.raises(IndexError):
            outer.slice(30, 41)


def test_a_slice_needs_its_part_of_the_file_alone(tmp_path: Path) -> None:
    """Records have one size, so a machine that draws some frames fetches a range of bytes."""
    with analysed(tmp_path / "features", noise(2), Fraction(30)) as features:
        part = features.slice(10, 40)
        whole = list(features)
    with part:
        stored = (tmp_path / "features").read_bytes()
        assert len(stored) == len(whole) * RECORD_BYTES
        (tmp_path / "part").write_bytes(stored[part.offset : part.offset + len(part) * RECORD_BYTES])
        with evolve(part, path=tmp_path / "part", offset=0) as fetched:
            assert all(same(frame, whole[frame.index]) for frame in fetched)


def test_a_tone_stands_in_its_texel(tmp_path: Path) -> None:
    """Texel k is k * rate / 2048 Hz."""
    tone = 0.5 * np.sin(2 * np.pi * 100 * RATE / 2048 * np.arange(RATE) / RATE)
    with analysed(tmp_path / "features", tone, Fraction(30)) as features:
        assert int(np.argmax(features.frame(20).texture[0])) in range(99, 102)


@pytest.mark.parametrize("index", [-1, 30])
def test_a_frame_beyond_the_video_is_an_error(tmp_path: Path, index: int) -> None:
    """A second of sound has the frames 0 to 29."""
    with analysed(tmp_path / "features", noise(1), Fraction(30)) as features, pytest.raises(IndexError):
        features.frame(index)


@pytest.mark.parametrize("fps", ["24", "25", "30000/1001", "60", "7/3"])
def test_the_blocks_do_not_matter(tmp_path: Path, fps: str) -> None:
    """However the song is cut into blocks, the features are the same."""
    sound = np.stack([noise(3), noise(3)[::-1]])
    with (
        analysed(tmp_path / "a", sound, Fraction(fps), block=997) as small,
        analysed(tmp_path / "b", sound, Fraction(fps), block=10**9) as whole,
    ):
        assert len(small) == len(whole)
        assert all(map(same, small, whole))


def test_no_module_that_draws_calls_blas() -> None:
    """BLAS splits sums among the cores, and chooses its kernels by the processor: other bits on each machine."""
    calls = {
        "convolve",
        "corrcoef",
        "correlate",
        "cov",
        "dot",
        "inner",
        "linalg",
        "matmul",
        "polyfit",
        "tensordot",
        "vdot",
    }
    modules = [*Path(render.__file__).parent.rglob("*.py")]
    assert len(modules) > 10
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np":
                assert node.attr not in calls, f"{module.name}:{node.lineno} calls {node.attr}"
            if isinstance(node, ast.BinOp | ast.AugAssign):
                assert not isinstance(node.op, ast.MatMult), f"{module.name}:{node.lineno} multiplies matrices"


@pytest.mark.parametrize(
    ("fps", "seconds"), [("24", 60), ("25", 60), ("30000/1001", 600), ("30", 60), ("60", 60), ("997/31", 60)]
)
def test_a_click_lifts_the_level_of_its_frame_alone(tmp_path: Path, fps: str, seconds: int) -> None:
    """A sample at time t belongs to frame floor(t x fps), ten minutes on as well: nothing drifts."""
    rate = Fraction(fps)
    sound = np.zeros(RATE * seconds)
    clicks = [round(t * RATE) for t in np.linspace(0.5, seconds - 1, 40)]
    sound[clicks] = 0.9
    with analysed(tmp_path / "features", sound, rate, block=RATE) as features:
        assert set(np.flatnonzero(features.level)) == {int(Fraction(click, RATE) * rate) for click in clicks}


def test_level_and_beat_stay_within_0_and_1(tmp_path: Path) -> None:
    """Quiet songs are brought to full scale; noise below hearing is not."""
    for loudness, lowest, highest in ((0.01, 0.95, 1.0), (1e-6, 0.0, 0.05), (0.0, 0.0, 0.0)):
        with analysed(tmp_path / "features", loudness * noise(2), Fraction(30)) as features:
            assert lowest <= features.level.max() <= highest
            assert 0 <= features.beat.min() <= features.beat.max() <= 1


def test_drums_are_beats(tmp_path: Path) -> None:
    """The beat peaks on each stroke, fades between them, and ignores a sound that goes on."""
    sound = 0.05 * np.sin(2 * np.pi * 440 * np.arange(5 * RATE) / RATE)
    for stroke in range(1, 9):
        sound[stroke * RATE // 2 : stroke * RATE // 2 + 2000] += noise(1)[:2000]
    with analysed(tmp_path / "features", sound, Fraction(30)) as features:
        beat = features.beat
    for stroke in range(1, 9):
        assert beat[stroke * 15 - 1 : stroke * 15 + 2].max() > 0.7
        assert beat[stroke * 15 - 4] < 0.4
    assert beat[3:13].max() < 0.2


def test_faint_high_notes_are_seen_beside_loud_low_ones(tmp_path: Path) -> None:
    """Each band is measured against what a song has there: 40 dB less at the top leave more than half of the height."""
    times = np.arange(4 * RATE) / RATE
    often = (times * 4 % 1) < 0.5
    sound = 0.5 * np.sin(2 * np.pi * 110 * times) + 0.005 * often * np.sin(2 * np.pi * 9_000 * times)
    with analysed(tmp_path / "features", sound, Fraction(30)) as features:
        bands = np.stack([frame.bands for frame in features])
    assert bands[:, :40].max() > 0.95
    high = bands[:, 85:].max(axis=1)
    assert high.max() > 0.5
    assert high.min() < 0.2


def test_all_bands_of_silence_are_0(tmp_path: Path) -> None:
    """However far the bands of a song are raised, silence is not."""
    with analysed(tmp_path / "features", np.zeros(RATE), Fraction(30)) as features:
        assert all(not frame.bands.any() for frame in features)
