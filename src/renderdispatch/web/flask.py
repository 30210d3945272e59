"""How does a Flask application use the service?

::

    service = renderdispatch.from_settings()
    app = Flask(__name__)
    install(app, service)                           # errors become responses, POST /webhook, the service starts itself

The routes are the application's own: ``examples/flask_app`` has them in less than 80 lines.
"""

from __future__ import annotations

from renderdispatch.errors import MissingExtraError, RenderDispatchError
from renderdispatch.service import RenderService
from renderdispatch.web.answers import ANSWERED, answer
from renderdispatch.web.webhook import takes_webhooks, wsgi_app
from renderdispatch.web.wsgi import paced

try:
    from flask import Flask, Response
except ImportError as error:
    raise MissingExtraError.of("renderdispatch.web.flask", "flask") from error


def install(app: Flask, service: RenderService, *, webhook: str = "/webhook") -> None:
    """Answer the service's errors with fitting statuses, take webhooks, and start the service at the first request.

    It does not start earlier: servers that fork load the application before the fork, and threads do not survive one.
    Clients that send a body too slowly are cut off, whichever route takes it.

    Args:
        webhook: The path of the webhook, with which ``webhook_url`` ends. A service without secrets takes no webhooks.
    """
    app.before_request(service.start)
    app.wsgi_app = paced(app.wsgi_app)  # type: ignore[assignment,method-assign]
    for kind in ANSWERED:
        app.register_error_handler(kind, _refuse)
    if takes_webhooks(service):
        hook = wsgi_app(service)
        app.add_url_rule(webhook, "webhook", lambda: hook, methods=["POST"])


def _refuse(error: RenderDispatchError) -> Response:
    response = answer(error)
    return Response(response.content, response.status, response.all_headers)
