"""Print a digest of each of the first frames of shaders: ``python -m tests.support.draw_shaders FRAMES FILE...``."""

import hashlib
import sys
from pathlib import Path

from renderdispatch.render.gl.context import open_device
from tests.support.shaders import artist_of, bytes_of, draw_each

if __name__ == "__main__":
    with open_device() as device:
        for file in sys.argv[2:]:
            artist = artist_of(device, Path(file).read_text())
            for picture in draw_each(artist, range(int(sys.argv[1]))):
                print(hashlib.sha256(bytes_of(picture)).hexdigest())
