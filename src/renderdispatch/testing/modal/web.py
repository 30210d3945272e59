"""How does a request to a deployed web endpoint reach its container, and the response the client?

As on Modal: the request is an input whose argument is the ASGI scope, its body a stream of messages to the container,
and the answer a stream of messages back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import pickle
from typing import Any, Final

from aiohttp import web
from modal_proto import api_pb2

from renderdispatch.testing.modal.blobs import HttpFront
from renderdispatch.testing.modal.calls import Call, Scheduler
from renderdispatch.testing.modal.deployments import Deployments

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})


class WebEndpoints:
    """Serves the endpoints that were deployed by ``modal.asgi_app``, ``modal.wsgi_app`` and ``modal.fastapi_endpoint``.

    Args:
        deployments: What was deployed.
        scheduler: Runs the inputs.
        http: Carries the messages.
    """

    def __init__(self, deployments: Deployments, scheduler: Scheduler, http: HttpFront) -> None:
        self._deployments = deployments
        self._scheduler = scheduler
        self._http = http
        self.proxy_token = ("wk-loopback", "ws-loopback")

    async def answer(self, function_id: str, request: web.Request) -> web.StreamResponse:
        """Carry one request to a container and its response back.

        An endpoint that requires proxy authentication answers 401 unless Modal-Key and Modal-Secret are right; one
        whose container fails answers 500.
        """
        function = self._deployments.function(function_id)
        if getattr(function.definition.webhook_config, "requires_proxy_auth", False) and not self._admitted(request):
            return web.Response(status=401, text="modal-http: missing or wrong credentials for proxy authorization\n")
        body = await request.read()
        args = pickle.dumps(((_scope(request),), {}))
        input = api_pb2.FunctionInput(args=args, data_format=api_pb2.DATA_FORMAT_PICKLE)
        call = self._scheduler.add(function, input, args, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC)
        message = api_pb2.Asgi(http_request=api_pb2.Asgi.HttpRequest(body=body, more_body=False))
        self._http.data_in(call.id).put(
            [api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=message.SerializeToString(), index=1)]
        )
        watcher = asyncio.create_task(self._end_with(call))
        try:
            return await self._carry(call, request)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            self._http.forget_data(call.id)

    async def _end_with(self, call: Call) -> None:
        await call.ended.wait()
        self._http.data_out(call.id).close()

    async def _carry(self, call: Call, request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        async for chunk in self._http.data_out(call.id).after(0):
            data = self._http.blob(chunk.data_blob_id) if chunk.data_blob_id else chunk.data
            message = api_pb2.Asgi.FromString(data)
            match message.WhichOneof("type"):
                case "http_response_start":
                    response = web.StreamResponse(status=message.http_response_start.status)
                    flat = message.http_response_start.headers
                    for name, value in zip(flat[::2], flat[1::2], strict=True):
                        if name.decode().lower() not in _HOP_BY_HOP:
                            response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
                    await response.prepare(request)
                case "http_response_body" if response is not None:
                    await response.write(message.http_response_body.body)
                    if not message.http_response_body.more_body:
                        await response.write_eof()
                        return response
                case _:
                    break
        if response is not None:
            return response
        return web.Response(status=500, text="modal-http: internal error: the function failed\n")

    def _admitted(self, request: web.Request) -> bool:
        key, secret = self.proxy_token
        return hmac.compare_digest(request.headers.get("Modal-Key", ""), key) and hmac.compare_digest(
            request.headers.get("Modal-Secret", ""), secret
        )


def _scope(request: web.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.rel_url.path,
        "query_string": request.rel_url.raw_query_string.encode(),
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": ("127.0.0.1", 0),
        "extensions": {},
    }
