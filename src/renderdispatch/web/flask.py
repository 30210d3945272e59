"""How does a Flask application use the service?

::

    service = renderdispatch.from_settings()
    app = Flask(__name__)
    install(app, service)                           # errors become responses, POST /webhook, the service starts itself

The routes are the application's own: ``examples/flask_app`` has them in less than 80 lines.
"""

from __future__ import annotations

from collections.abc import Callable

from renderdispatch.errors import MissingExtraError, RenderDispatchError
from renderdispatch.service import RenderService
from renderdispatch.web.answers import ANSWERED, answer
from renderdispatch.web.clients import Pace
from renderdispatch.web.http import IncompleteBodyError, SlowBodyError
from renderdispatch.web.webhook import takes_webhooks, wsgi_app
from renderdispatch.web.wsgi import paced

try:
    from flask import Flask, Response
    from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestTimeout
except ImportError as error:
    raise MissingExtraError.of("renderdispatch.web.flask", "flask") from error


def install(app: Flask, service: RenderService, *, webhook: str = "/webhook", sends: Callable[[], Pace] = Pace) -> None:
    """Answer the service's errors with fitting statuses, take webhooks, and start the service at the first request.

    It does not start earlier: servers that fork load the application before the fork, and threads do not survive one.
    Whichever route takes a body: a client that sends it too slowly is cut off, with 408. A part of a body is never
    taken for the whole.

    Args:
        webhook: The path of the webhook, with which ``webhook_url`` ends. A service without secrets takes no webhooks.
        sends: Makes the pace of a client: by default 30 s without a byte are too slow, and less than 1 KiB a second.
    """
    app.before_request(service.start)
    # Flask's own way to wrap an application.
    app.wsgi_app = paced(app.wsgi_app, sends=sends, raises=_cut_off)  # type: ignore[assignment,method-assign]
    for kind in ANSWERED:
        app.register_error_handler(kind, _refuse)
    if takes_webhooks(service):
        hook = wsgi_app(service)
        app.add_url_rule(webhook, "webhook", lambda: hook, methods=["POST"])


def _refuse(error: RenderDispatchError) -> Response:
    response = answer(error)
    return Response(response.content, response.status, response.all_headers)


def _cut_off(error: IncompleteBodyError) -> HTTPException:
    return RequestTimeout() if isinstance(error, SlowBodyError) else ClientDisconnected()
