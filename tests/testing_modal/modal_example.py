"""An app that tests deploy: each function does one thing that a container can do."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import modal

image = modal.Image.debian_slim().apt_install("ffmpeg").pip_install("httpx").env({"FROM_IMAGE": "it is so"})
app = modal.App("example", image=image)


def _mark(folder: str, what: str) -> None:
    with Path(folder, "marks").open("a") as file:
        file.write(f"{what}\n")


@app.function(cpu=2.0, memory=1024, timeout=300, startup_timeout=120, gpu=["L4", "A10"], retries=0)
def shout(text: str) -> str:
    """Answer at once."""
    return text.upper()


@app.function(timeout=300)
def ids(_order: str) -> str:
    """Say who runs what."""
    return json.dumps([os.getpid(), modal.current_function_call_id(), modal.current_input_id()])


@app.function(timeout=300)
def wait(folder: str) -> str:
    """Work until the file ``go`` is there, and leave marks of what happened."""
    try:
        _mark(folder, "started")  # from here on it may be told to stop
        while not Path(folder, "go").exists():
            time.sleep(0.01)
    except modal.exception.InputCancellation:
        _mark(folder, "cancelled")
        raise
    except KeyboardInterrupt:
        _mark(folder, "interrupted")
        raise
    _mark(folder, "finished")
    return "waited"


@app.function(timeout=300)
def swallow(folder: str) -> str:
    """Take a cancel for the end of the work."""
    try:
        _mark(folder, "started")
        time.sleep(60)
    except modal.exception.InputCancellation:
        _mark(folder, "cancelled")
    return "swallowed"


@app.function(timeout=300)
def deaf(folder: str) -> str:
    """Never stop, and keep a child."""
    child = subprocess.Popen(["/bin/sleep", "120"])
    begun = False
    while True:
        try:
            if not begun:
                begun = True
                _mark(folder, f"started {child.pid}")
            time.sleep(60)
        except BaseException as error:  # noqa: BLE001 - that is what this is about
            _mark(folder, type(error).__name__)


@app.function(timeout=300, memory=(64, 256))
def eat(folder: str) -> str:
    """Take more memory than there is, the first time."""
    _mark(folder, "started")
    if len(Path(folder, "marks").read_text().splitlines()) == 1:
        held = [bytearray(os.urandom(1 << 20)) for _ in range(512)]
        time.sleep(60)
        return str(len(held))
    return "enough"


@app.function(timeout=300)
def fail(what: str) -> str:
    """Raise what is asked for."""
    if what == "unpicklable":
        error = ValueError("this cannot be pickled")
        error.held = threading.Lock()  # type: ignore[attr-defined]
        raise error
    raise {"value": ValueError, "timeout": TimeoutError}[what](f"a remote {what}")


@app.function(timeout=300, retries=modal.Retries(max_retries=2, initial_delay=1.0))
def flaky(folder: str) -> str:
    """Fail twice."""
    _mark(folder, "started")
    if Path(folder, "marks").read_text().count("started") < 3:
        raise ValueError("not yet")
    return "at last"


@app.function(timeout=300, secrets=[modal.Secret.from_name("keys"), modal.Secret.from_dict({"INLINE": "one"})])
def environment(_order: str) -> str:
    """Return the environment."""
    return json.dumps(dict(os.environ))


@app.function(timeout=300)
def nested(text: str) -> str:
    """Call another function from a container."""
    answer: str = modal.Function.from_name("example", "shout").remote(text)
    return answer


@app.function(schedule=modal.Period(minutes=1))
def tick() -> str:
    """Do what a schedule asks for."""
    return "ticked"


async def _endpoint(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = json.dumps({"method": scope["method"], "path": scope["path"], "body": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-from", b"container")]})
    await send({"type": "http.response.body", "body": answer})


@app.function()
@modal.asgi_app()
def web() -> Any:
    """Serve HTTP."""
    return _endpoint


@app.function()
@modal.asgi_app(requires_proxy_auth=True)
def private() -> Any:
    """Serve HTTP to those who know the proxy's token."""
    return _endpoint
