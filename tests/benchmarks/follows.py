"""Do the pictures of the scenes in GLSL follow real songs?

``python -m tests.benchmarks.follows SONG...`` draws a part of each song with each scene and prints a table: the largest of
the correlations of brightness and motion with loudness and beat. It ends with 1 if one of them is not above 0.4.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from renderdispatch.errors import AudioError
from tests.support.following import LEAST, Followed, features_of, follow, shipped_gl_scenes


def arguments() -> argparse.Namespace:
    """Read the command line."""
    scenes = shipped_gl_scenes()
    parser = argparse.ArgumentParser(description="Measure how the pictures of the scenes follow songs.")
    parser.add_argument("songs", nargs="+", type=Path, metavar="SONG")
    parser.add_argument("--scene", action="append", choices=scenes, help="only this one; can be repeated")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="where in the songs to begin")
    parser.add_argument("--seconds", type=float, default=40.0, metavar="S", help="how much of each song is drawn")
    parser.add_argument("--fps", type=int, default=15, help="frames a second")
    return parser.parse_args()


def described(followed: Followed) -> str:
    """Return the largest correlation, which one it is, the mean luma and the part that is white."""
    which = max(followed.correlations, key=lambda name: followed.correlations[name])
    luma = followed.brightness
    return f"{followed.best:5.2f} {which:<17} {luma.min():3.0f}-{luma.max():<3.0f} {100 * followed.clipped:4.1f} %"


def main() -> int:
    """Print the table."""
    options = arguments()
    least = 1.0
    print(f"{'scene':<10}{'song':<28}{'best':>5} {'of':<17} {'luma':<7} white")
    for song in options.songs:
        try:
            with features_of(song, fps=options.fps, start=options.start, seconds=options.seconds) as features:
                for name, scene in shipped_gl_scenes().items():
                    if not options.scene or name in options.scene:
                        followed = follow(scene, song, features)
                        least = min(least, followed.best)
                        print(f"{name:<10}{song.stem[:27]:<28}{described(followed)}", flush=True)
        except AudioError as error:  # such as a song that ends before --start
            print(f"{'':<10}{song.stem[:27]:<28}{error}", flush=True)
    print(f"the least is {least:.2f}; {LEAST} is wanted")
    return 0 if least > LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
