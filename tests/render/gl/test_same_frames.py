"""Are frames of a shader the same bytes in every process, and from any frame on?"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from renderdispatch.render.artist import picture_at
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.gl.context import GlDevice
from tests.support.shaders import artist_of, bytes_of, draw_each

PLAIN = """
uint pcg(uint n)
{
    n = n * 747796405u + 2891336453u;
    n = ((n >> ((n >> 28u) + 4u)) ^ n) * 277803737u;
    return (n >> 22u) ^ n;
}
float hash(ivec2 p) { return float(pcg(uint(p.x) + pcg(uint(p.y)))) / 4294967295.0; }
float noise(vec2 p)
{
    ivec2 i = ivec2(floor(p));
    vec2 f = smoothstep(0.0, 1.0, fract(p));
    return mix(mix(hash(i), hash(i + ivec2(1, 0)), f.x), mix(hash(i + ivec2(0, 1)), hash(i + 1), f.x), f.y);
}
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 uv = fragCoord / iResolution.y + vec2(3.0 * iEnergy, 0.1 * iTime);
    float sum = 0.0, scale = 0.5;
    for (int i = 0; i < 6; i++, scale *= 0.5, uv *= mat2(1.6, 1.2, -1.2, 1.6)) sum += scale * noise(8.0 * uv);
    float sound = texture(iChannel0, vec2(fragCoord.x / iResolution.x, 0.25)).x;
    vec3 picture = textureLod(iChannel1, uv, 2.0 * iBeat).rgb;
    fragColor = vec4(0.5 + 0.5 * cos(6.2831 * (sum + sound + vec3(0.0, 0.33, 0.67))) * picture, 1.0);
}
"""

TRAILS = """
//! run-up: 9
//! Buffer A
//! iChannel0: Buffer A
//! iChannel1: Buffer B
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    // Each trail fades by a ninth of full light in a frame: after nine frames nothing is left of it.
    vec4 last = texelFetch(iChannel0, ivec2(fragCoord), 0), moved = texelFetch(iChannel1, ivec2(fragCoord), 0);
    float far = abs(fragCoord.x - 32.0 - 25.0 * sin(float(iFrame)));
    fragColor = max(max(last, moved) - 1.0 / 9.0, vec4(step(far, 4.0 * iLevel), iBeat, 0.3 * exp(-far), 1.0));
}
//! Buffer B
//! iChannel0: Buffer A, linear, repeat
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = texelFetch(iChannel0, ivec2(fragCoord) / 2, 0);
}
//! Image
//! iChannel0: Buffer A
//! iChannel1: Buffer B
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = texelFetch(iChannel0, ivec2(fragCoord), 0) + 0.5 * texture(iChannel1, fragCoord / iResolution.xy);
}
"""

FRAMES = 24


@pytest.fixture
def features(tmp_path: Path) -> Iterator[Features]:
    """Return features of noise that swells and stops."""
    samples = FRAMES * 44_100 // 30
    draw, time_s = np.random.default_rng(7), np.arange(samples) / 44_100
    sound = draw.normal(0, 0.2, samples) * np.abs(np.sin(6 * np.pi * time_s)) + 0.3 * np.sin(600 * time_s)
    with Analyser(tmp_path / "features", rate=44_100, fps=Fraction(30)) as analyser:
        analyser.feed(sound.astype(np.float32)[None])
        with analyser.finish(FRAMES) as found:
            yield found


def in_order(device: GlDevice, text: str, features: Features) -> list[bytes]:
    """Return the frames, drawn one after the other."""
    artist = artist_of(device, text)
    state, pictures = artist.start(), []
    for frame in features:
        state = artist.step(state, frame)
        pictures.append(bytes_of(artist.draw(state, frame)))
    return pictures


def test_two_processes(device: GlDevice, tmp_path: Path) -> None:
    """Processes draw the same bytes, with any number of llvmpipe's threads."""
    here = []
    for name, text in (("plain", PLAIN), ("trails", TRAILS)):
        (tmp_path / name).write_text(text)
        artist = artist_of(device, text)
        here += [hashlib.sha256(bytes_of(picture)).hexdigest() for picture in draw_each(artist, range(4))]
    command = [
        sys.executable,
        "-m",
        "tests.support.draw_shaders",
        "4",
        *map(str, (tmp_path / "plain", tmp_path / "trails")),
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "LP_NUM_THREADS": threads})
        for threads in ("0", "3")
    ]
    digests = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert digests == [here, here]
    assert len(set(here)) == 8


@pytest.mark.parametrize("text", [PLAIN, TRAILS], ids=["plain", "feedback"])
def test_any_frame(device: GlDevice, text: str, features: Features) -> None:
    """A frame drawn alone, after its run-up, is that of a whole video; a new artist draws it so, and a used one."""
    whole = in_order(device, text, features)
    assert len(set(whole)) == FRAMES
    used = artist_of(device, text)
    for index in (17, 3, 23, 22, 0, 9, 10):
        assert bytes_of(picture_at(used, features, index)) == whole[index]
        new = artist_of(device, text)
        assert bytes_of(picture_at(new, features, index)) == whole[index]


def test_any_frame_of_a_scene_that_states_no_run_up(device: GlDevice, features: Features) -> None:
    """It is drawn from its first frame on."""
    text = TRAILS.replace("//! run-up: 9\n", "")
    whole = in_order(device, text, features)
    artist = artist_of(device, text)
    assert artist.run_up is None
    assert bytes_of(picture_at(artist, features, 20)) == whole[20]


@pytest.mark.parametrize("frames", [0, 2])
def test_a_run_up_that_is_too_short(device: GlDevice, features: Features, frames: int) -> None:
    """A file's word is taken: its frames are drawn after so many others, though they differ from a whole video's."""
    text = TRAILS.replace("run-up: 9", f"run-up: {frames}")
    artist = artist_of(device, text)
    assert artist.run_up == frames
    assert bytes_of(picture_at(artist, features, 20)) != in_order(device, text, features)[20]


def test_buffers_begin_black(device: GlDevice, features: Features) -> None:
    """After a gap nothing is left of what was drawn before it, whatever that was."""
    used, new = artist_of(device, TRAILS), artist_of(device, TRAILS)
    state = used.start()
    for index in (4, 5, 6):
        used.draw(state, features.frame(index))
    for index in (20, 21):
        frame = features.frame(index)
        assert bytes_of(used.draw(state, frame)) == bytes_of(new.draw(state, frame))
    again = bytes_of(used.draw(state, features.frame(21)))
    assert again != bytes_of(new.draw(state, features.frame(22)))
    new.draw(state, features.frame(3))
    assert bytes_of(new.draw(state, features.frame(21))) == again
