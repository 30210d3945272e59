"""Render a song in ten lines: ``python ten_lines.py song.mp3 song.mp4``."""

import sys
from pathlib import Path

import renderdispatch

with renderdispatch.local() as service:
    handle = service.submit(Path(sys.argv[1]), scene="bars", output="flat-1080p-landscape")
    for job in handle.watch():
        print(f"{job.stage:17} {job.progress:5.1f} %")
    print(handle.save(sys.argv[2], overwrite=True))
