"""Your own image and renderer on Modal: ``modal deploy examples/modal_own_image.py``.

A template: our image with your packages on top, and your scenes beside ours. The contract is `render`: an order comes
in and an answer goes out, both as JSON, and `carry_out` does what lies between. The application says which app it is:
``RENDERDISPATCH_BACKENDS=modal`` and ``RENDERDISPATCH_MODAL_APP=my-renderer``.

The scene is the one of ``own_scene.py``, which lies beside this file.
"""

from __future__ import annotations

from datetime import timedelta

import modal

from renderdispatch.modal_image import base_image, with_source
from renderdispatch.runner.container import carry_out

image = with_source(
    base_image("render", "gl").pip_install("pillow>=10"),  # what your renderer needs; or .apt_install()
    "own_scene",  # your modules, importable where you deploy
)

RENDERERS = {"square": "own_scene:square"}  # a scene's name, and where its renderer stands

app = modal.App("my-renderer")


@app.function(
    image=image,
    gpu=["L4", "A10", "T4"],  # in order of preference; leave it out for a renderer that draws on the CPU
    cpu=4.0,
    memory=8192,
    timeout=24 * 3600,  # each call is given a shorter one, by its order's deadline
    startup_timeout=600,
    scaledown_window=15,
    retries=0,  # the service tries again, and knows when that makes sense
    restrict_modal_access=True,
)  # no secrets: an order brings signed URLs
def render(order: str) -> str:
    """Carry out one order."""
    longest = timedelta(hours=24)  # Modal lets no call run for longer; the run gives up a minute before that
    return carry_out(order, call_id=modal.current_function_call_id(), renderers=RENDERERS, timeout=longest)
