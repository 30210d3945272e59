"""How does a Flask application hold the service?

::

    service = renderdispatch.from_settings()
    app = Flask(__name__)
    install(app, service)                           # errors as answers, POST /webhook, the service starts by itself

The routes are the application's own: ``examples/flask_app`` has them in less than 80 lines.
"""

from __future__ import annotations

from typing import Any

from renderdispatch.errors import MissingExtraError, RenderDispatchError
from renderdispatch.service import RenderService
from renderdispatch.web.answers import ANSWERED, answer
from renderdispatch.web.webhook import takes_webhooks, wsgi_app

try:
    from flask import Flask
except ImportError as error:
    raise MissingExtraError.of("renderdispatch.web.flask", "flask") from error


def install(app: Flask, service: RenderService, *, webhook: str = "/webhook") -> None:
    """Answer the service's errors with fitting statuses, take webhooks, and start the service with the first request.

    Not sooner, for servers that fork load applications before the fork, and threads do not live through one.

    Args:
        webhook: The path of the webhook: what ``webhook_url`` ends with. A service without secrets takes none.
    """
    app.before_request(service.start)
    for kind in ANSWERED:
        app.register_error_handler(kind, _refused)
    if takes_webhooks(service):
        hook = wsgi_app(service)
        app.add_url_rule(webhook, "webhook", lambda: hook, methods=["POST"])


def _refused(error: RenderDispatchError) -> tuple[dict[str, Any], int, dict[str, str]]:
    told = answer(error)
    return dict(told.body), told.status, dict(told.headers)
