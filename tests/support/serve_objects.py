"""Serves a folder's signed URLs: ``python serve_objects.py uvicorn|gunicorn FD BASE SECRET FOLDER``."""

from __future__ import annotations

import socket
import sys
from typing import Any

from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.web.objects import asgi_app, wsgi_app


def main(kind: str, descriptor: str, base: str, secret: str, folder: str) -> None:
    urls = SignedUrls(base, secret)
    storage = FsspecStorage(folder, urls=urls)
    if kind == "uvicorn":
        import uvicorn
        from starlette.applications import Starlette
        from starlette.routing import Mount

        app = Starlette(routes=[Mount("/objects", asgi_app(storage, urls))])
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])
        return
    from gunicorn.app.base import BaseApplication
    from werkzeug.exceptions import NotFound
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    class Gunicorn(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for name, value in {
                "bind": f"fd://{descriptor}",
                "worker_class": "gthread",
                "threads": 8,
                "workers": 1,
                "loglevel": "warning",
            }.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return DispatcherMiddleware(NotFound(), {"/objects": wsgi_app(storage, urls)})

    Gunicorn().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
