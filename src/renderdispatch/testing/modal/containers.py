"""How does a container of the loopback Modal run?

As the real entry point, ``python -m modal._container_entrypoint``, in a process group of its own behind the
supervisor that renders have too: neither it nor what it starts outlives this process, however that ends. It talks to
the server over a Unix socket that is its own, by which the server knows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from modal_proto import api_pb2

from renderdispatch.plumbing import supervisor
from renderdispatch.plumbing.interpreter import interpreter

_LOG_BYTES: Final = 64 << 10
_MEMORY_LOOK_S: Final = 0.05
# The shell leaves its process id, which the entry point then has.
_BOOT: Final = ("/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"')


class ContainerProcess:
    """A container's process. It is made and used on the server's own thread.

    Args:
        arguments: What the entry point is given.
        environment: All that it gets, besides what it needs to start.
        root: The folder that takes the place of ``/`` for local files.
        folder: Where its log and its own files are kept.
        socket: Where the server listens for it.
        on_exit: Called on the server's thread with its exit status, 128 + n when signal n killed it.
    """

    def __init__(
        self,
        arguments: api_pb2.ContainerArguments,
        *,
        environment: Mapping[str, str],
        root: Path,
        folder: Path,
        socket: Path,
        on_exit: Callable[[int], None],
    ) -> None:
        home = folder / arguments.task_id  # the supervisor removes it
        (home / "tmp").mkdir(parents=True)
        (home / "arguments").write_bytes(arguments.SerializeToString())
        self._pid_file = folder / f"{arguments.task_id}.pid"
        self._log_file = folder / f"{arguments.task_id}.log"
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        paths = [str(root / "root"), environment.get("PYTHONPATH", "")]
        held, self._lifeline = os.pipe()
        try:
            with self._log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [
                        *(interpreter(), "-I", "-S", str(Path(supervisor.__file__))),
                        *(str(held), str(home)),
                        *(*_BOOT, str(self._pid_file)),
                        *(interpreter(), "-m", "modal._container_entrypoint"),
                    ],
                    cwd=root / "root",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(held,),
                    start_new_session=True,
                    env={
                        "PATH": os.environ.get("PATH", os.defpath),
                        "LANG": "C.UTF-8",
                        "HOME": str(home),
                        "TMPDIR": str(home / "tmp"),
                        "PYTHONUNBUFFERED": "1",
                        **environment,
                        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                        "MODAL_SERVER_URL": f"unix://{socket}",
                        "MODAL_TASK_ID": arguments.task_id,
                        "MODAL_IS_REMOTE": "1",
                        "MODAL_ENVIRONMENT": arguments.environment_name,
                        "MODAL_CONTAINER_ARGUMENTS_PATH": str(home / "arguments"),
                        "MODAL_DISABLE_API_PROXY": "1",
                    },
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(held)
        self._ended = False
        limit = arguments.function_def.resources.memory_mb_max
        self._limit = limit << 20 if limit else None
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{arguments.task_id}", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """The process id of the entry point; 0 until it runs."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._pid_file.read_text())
        return 0

    @property
    def log(self) -> str:
        """Its output, the last 64 KiB."""
        with contextlib.suppress(OSError), self._log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            return file.read().decode(errors="replace")
        return ""

    def signal(self, number: int) -> bool:
        """Send the entry point a signal; return whether it ran. It may not have started yet, or have ended."""
        if not self._ended and (pid := self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return True
        return False

    def end(self) -> None:
        """Have the supervisor end it and all its descendants. A second call does nothing."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def join(self) -> None:
        """Wait until all its processes have ended. Call it from any thread but the server's."""
        self._watcher.join()

    def _watch(self) -> None:
        status = self._wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._exited, status if status >= 0 else 128 - status)

    def _wait(self) -> int:
        """Wait for its end, and kill it if it takes more memory than its function's limit (Linux)."""
        while self._limit is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(_MEMORY_LOOK_S)
            if (pid := self.pid) and _resident(pid) > self._limit:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return self._process.wait()

    def _exited(self, status: int) -> None:
        self._ended = True
        self.end()
        self._on_exit(status)


def _resident(pid: int) -> int:
    """Return how much memory a process and its children have, in bytes; 0 if that is not known."""
    size = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        size = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        size += sum(_resident(int(child)) for child in children)
    return size
