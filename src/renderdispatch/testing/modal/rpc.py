"""How does the loopback Modal respond to each request?

Each method is named after the RPC that it answers. An RPC that has no method here is answered with UNIMPLEMENTED, and
one that this version of modal lacks is never asked: the table of RPCs is the client's own.
"""

# ruff: noqa: N802 - methods are named as their RPCs are

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]  # protobuf has no types
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

from renderdispatch.testing.modal.blobs import HttpFront
from renderdispatch.testing.modal.calls import Call, Container, Scheduler, Start
from renderdispatch.testing.modal.deployments import Deployed, Deployments, new_id, not_found
from renderdispatch.testing.modal.faults import ModalFaults
from renderdispatch.testing.modal.protos import copy_known, set_known

_BUILDER_VERSION: Final = "2025.06"
_UNARY: Final = (api_pb2.FUNCTION_CALL_TYPE_UNARY,)
_HELD_S: Final = 55.0
"""The longest time that a request for results is held."""


async def _unimplemented(_self: object, _stream: Any) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "the loopback Modal does not answer this")


_Nothing: Final = type(
    "_Nothing", (ModalClientBase,), dict.fromkeys(ModalClientBase.__abstractmethods__, _unimplemented)
)


class ControlPlane:
    """The requests of clients, and of containers that call functions themselves.

    Args:
        deployments: What was deployed.
        scheduler: Runs calls.
        http: Holds blobs and serves web endpoints.
        faults: What goes wrong.
        token: The id and the secret that clients have to show; None where the connection says who asks.
    """

    def __init__(
        self,
        deployments: Deployments,
        scheduler: Scheduler,
        http: HttpFront,
        faults: ModalFaults,
        *,
        token: tuple[str, str] | None,
    ) -> None:
        self._deployments = deployments
        self._scheduler = scheduler
        self._http = http
        self._faults = faults
        self._token = token
        self._spawned: dict[str, tuple[api_pb2.FunctionMapResponse, bool]] = {}

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handler of each RPC, for grpclib."""
        handlers = dict(_Nothing().__mapping__())
        for path, handler in handlers.items():
            method = getattr(self, path.rpartition("/")[2], None)
            if method is not None:
                handlers[path] = handler._replace(func=self._handle(method))
        return handlers

    def _handle(self, method: Callable[..., Any]) -> Callable[[Any], Awaitable[None]]:
        streams = inspect.isasyncgenfunction(method)
        wants_metadata = len(inspect.signature(method).parameters) == 2

        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            await self._admit(stream.metadata)
            answer = method(request, stream.metadata) if wants_metadata else method(request)
            if streams:
                async for message in answer:
                    await stream.send_message(message)
            else:
                await stream.send_message(await answer)

        return handle

    async def _admit(self, _metadata: Mapping[str, Any]) -> None:
        if self._token is not None:
            shown = (_metadata.get("x-modal-token-id"), _metadata.get("x-modal-token-secret"))
            if shown != self._token:
                raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed or unknown")
        if self._faults.slow_s:
            await asyncio.sleep(self._faults.slow_s)
        if self._faults.happens("unavailable"):
            raise GRPCError(Status.UNAVAILABLE, "the loopback Modal was told to be away")

    # Clients, environments, apps

    async def ClientHello(self, _: Empty) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse()

    async def AuthTokenGet(self, _: api_pb2.AuthTokenGetRequest) -> api_pb2.AuthTokenGetResponse:
        parts: list[dict[str, Any]] = [{"alg": "none"}, {"exp": int(time.time()) + 3600}]
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return api_pb2.AuthTokenGetResponse(token=".".join([*encoded, ""]))

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name = self._deployments.environment(request.deployment_name)
        settings = api_pb2.EnvironmentSettings(image_builder_version=_BUILDER_VERSION)
        metadata = api_pb2.EnvironmentMetadata(name=name, settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id=f"en-{name}", metadata=metadata)

    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        app = self._deployments.find_app(request.name, self._deployments.environment(request.environment_name))
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app.id if app is not None else "")

    async def AppGetOrCreate(self, request: api_pb2.AppGetOrCreateRequest) -> api_pb2.AppGetOrCreateResponse:
        app = self._deployments.find_app(request.app_name, self._deployments.environment(request.environment_name))
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise not_found(f"app '{request.app_name}'")
            app = self._deployments.create_app(request.app_name, request.environment_name)
        return api_pb2.AppGetOrCreateResponse(app_id=app.id)

    async def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = self._deployments.create_app(request.description, request.environment_name)
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"{self._http.url}/apps/{app.id}")

    async def AppGetLayout(self, request: api_pb2.AppGetLayoutRequest) -> api_pb2.AppGetLayoutResponse:
        app = self._deployments.app(request.app_id)
        return api_pb2.AppGetLayoutResponse(app_layout=self._deployments.layout(app))

    async def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self._deployments.app(request.app_id)
        self._deployments.publish(app, request.name, request.function_ids, request.class_ids)
        response = api_pb2.AppPublishResponse(url=f"{self._http.url}/apps/{app.id}")
        set_known(response, deployed_at=time.time())
        return response

    async def AppHeartbeat(self, _: api_pb2.AppHeartbeatRequest) -> Empty:
        return Empty()

    async def AppClientDisconnect(self, _: api_pb2.AppClientDisconnectRequest) -> Empty:
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest) -> Empty:
        self._deployments.app(request.app_id).stopped = True
        for container in self._scheduler.containers.values():
            if container.function.app_id == request.app_id and container.alive:
                self._scheduler.stop(container)
        return Empty()

    async def TaskList(self, _: api_pb2.TaskListRequest) -> api_pb2.TaskListResponse:
        return api_pb2.TaskListResponse()

    # What a deployment brings

    async def ImageGetOrCreate(self, request: api_pb2.ImageGetOrCreateRequest) -> api_pb2.ImageGetOrCreateResponse:
        return api_pb2.ImageGetOrCreateResponse(
            image_id=self._deployments.add_image(request),
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(image_builder_version=request.builder_version),
        )

    async def ImageJoinStreaming(
        self, _: api_pb2.ImageJoinStreamingRequest
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        yield api_pb2.ImageJoinStreamingResponse(result=result)

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = self._deployments.missing_files(list(request.sha256_hex_hashes))
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: api_pb2.MountPutFileRequest) -> api_pb2.MountPutFileResponse:
        content = self._http.blob(request.data_blob_id) if request.data_blob_id else request.data
        if content or request.data_blob_id or request.WhichOneof("data_oneof") == "data":
            self._deployments.put_file(request.sha256_hex, content)
        return api_pb2.MountPutFileResponse(exists=not self._deployments.missing_files([request.sha256_hex]))

    async def MountGetOrCreate(self, request: api_pb2.MountGetOrCreateRequest) -> api_pb2.MountGetOrCreateResponse:
        mount_id = self._deployments.add_mount(list(request.files))
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id,
            handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount_id.removeprefix("mo-")),
        )

    async def SecretGetOrCreate(self, request: api_pb2.SecretGetOrCreateRequest) -> api_pb2.SecretGetOrCreateResponse:
        secret_id = self._deployments.add_secret(request.deployment_name, request.env_dict)
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id)

    async def FunctionPrecreate(self, request: api_pb2.FunctionPrecreateRequest) -> api_pb2.FunctionPrecreateResponse:
        function_id = request.existing_function_id or new_id("fu")
        request.existing_function_id = function_id
        served = request.webhook_config.type != api_pb2.WEBHOOK_TYPE_UNSPECIFIED
        web_url = await self._http.web_url(function_id) if served else ""
        deployed = self._deployments.precreate(request, web_url)
        return api_pb2.FunctionPrecreateResponse(function_id=deployed.id, handle_metadata=deployed.metadata)

    async def FunctionCreate(self, request: api_pb2.FunctionCreateRequest) -> api_pb2.FunctionCreateResponse:
        deployed = self._deployments.create(request)
        response = api_pb2.FunctionCreateResponse(
            function_id=deployed.id, function=deployed.definition, handle_metadata=deployed.metadata
        )
        response.function.web_url = deployed.web_url
        set_known(response, function_data=_function_data(deployed))
        return response

    # Functions and calls

    async def FunctionGet(self, request: api_pb2.FunctionGetRequest) -> api_pb2.FunctionGetResponse:
        deployed = self._deployments.find_function(
            request.app_name, request.object_tag, request.environment_name, getattr(request, "app_version", 0)
        )
        response = api_pb2.FunctionGetResponse(function_id=deployed.id, handle_metadata=deployed.metadata)
        set_known(response, function=_function_data(deployed))
        return response

    async def FunctionGetById(self, request: api_pb2.FunctionGetByIdRequest) -> api_pb2.FunctionGetByIdResponse:
        deployed = self._deployments.function(request.function_id)
        response = api_pb2.FunctionGetByIdResponse(handle_metadata=deployed.metadata)
        set_known(response, function=_function_data(deployed))
        return response

    async def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest
    ) -> api_pb2.FunctionBindParamsResponse:
        deployed = self._deployments.bind(request)
        return api_pb2.FunctionBindParamsResponse(bound_function_id=deployed.id, handle_metadata=deployed.metadata)

    async def FunctionMap(
        self, request: api_pb2.FunctionMapRequest, metadata: Mapping[str, Any]
    ) -> api_pb2.FunctionMapResponse:
        if request.function_call_type not in _UNARY or len(request.pipelined_inputs) != 1:
            raise GRPCError(Status.UNIMPLEMENTED, "the loopback Modal takes calls of one input: spawn and remote")
        key = str(metadata.get("x-idempotency-key", new_id("key")))
        if key not in self._spawned or (self._spawned[key][1] and self._faults.forget_idempotency_keys):
            function = self._deployments.function(request.function_id)
            input = request.pipelined_inputs[0].input
            args = self._http.blob(input.args_blob_id) if input.args_blob_id else input.args
            call = self._scheduler.add(function, input, args, request.function_call_invocation_type)
            lost = self._spawned[key][1] if key in self._spawned else self._faults.happens("lose_spawn_answers")
            self._spawned[key] = (_mapped(call), lost)
        response, lost = self._spawned[key]
        if lost:
            raise GRPCError(Status.UNAVAILABLE, "the answer to this call was lost")
        return response

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self._scheduler.call(request.function_call_id)
        if request.timeout > 0 and not call.status.ended:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.ended.wait(), min(request.timeout, _HELD_S))
        response = api_pb2.FunctionGetOutputsResponse(last_entry_id="0-0")
        if not call.status.ended:
            response.num_unfinished_inputs = 1
        elif not call.expired and call.result is not None:
            response.outputs.append(call.result)
            response.idxs.append(0)
        return response

    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest) -> Empty:
        call = self._scheduler.call(request.function_call_id)
        self._scheduler.cancel(call, terminate=request.terminate_containers)
        return Empty()

    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self._scheduler.call(request.function_call_id)
        response = api_pb2.FunctionCallFromIdResponse(function_call_id=call.id)
        set_known(response, num_inputs=1)
        return response

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest
    ) -> AsyncIterator[api_pb2.DataChunk]:
        async for chunk in self._http.data_out(request.function_call_id).after(request.last_index):
            yield chunk

    # Blobs

    async def BlobCreate(self, _: api_pb2.BlobCreateRequest) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        url = self._http.blob_url(blob_id)
        response = api_pb2.BlobCreateResponse()
        if "upload_urls" in response.DESCRIPTOR.fields_by_name:
            response.blob_ids.append(blob_id)
            response.upload_urls.items.append(url)
        else:
            response.blob_id, response.upload_url = blob_id, url
        return response

    async def BlobGet(self, request: api_pb2.BlobGetRequest) -> api_pb2.BlobGetResponse:
        return api_pb2.BlobGetResponse(download_url=self._http.blob_url(request.blob_id))


class ContainerPlane(ControlPlane):
    """The requests of one container, in addition to those of clients.

    Args:
        container: Who asks.
        heartbeat_s: How long its heartbeats are held.
    """

    def __init__(
        self,
        deployments: Deployments,
        scheduler: Scheduler,
        http: HttpFront,
        faults: ModalFaults,
        *,
        container: Container,
        heartbeat_s: float,
    ) -> None:
        super().__init__(deployments, scheduler, http, faults, token=None)
        self._container = container
        self._heartbeat_s = heartbeat_s

    async def _admit(self, _metadata: Mapping[str, Any]) -> None:
        if self._faults.happens("container_unavailable"):
            raise GRPCError(Status.UNAVAILABLE, "the loopback Modal was told to be away")

    async def ContainerHello(self, _: Empty) -> Empty:
        return Empty()

    async def ContainerHeartbeat(self, _: api_pb2.ContainerHeartbeatRequest) -> api_pb2.ContainerHeartbeatResponse:
        response = api_pb2.ContainerHeartbeatResponse()
        with contextlib.suppress(TimeoutError):
            start = await asyncio.wait_for(self._stopped(), self._heartbeat_s)
            response.cancel_input_event.input_ids.append(start.call.input_id)
        return response

    async def _stopped(self) -> Start:
        """Wait until the container's input is to stop: an answer without one would make it sleep for 15 s."""
        while True:
            await self._container.told.wait()
            start = self._container.start
            if start is not None and start.stopping is not None:
                return start
            self._container.told.clear()

    async def FunctionGetInputs(self, _: api_pb2.FunctionGetInputsRequest) -> api_pb2.FunctionGetInputsResponse:
        item = await self._scheduler.next_input(self._container)
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest) -> Empty:
        for item in request.outputs:
            self._scheduler.take_output(self._container, item)
        return Empty()

    async def FunctionCallGetDataIn(
        self, request: api_pb2.FunctionCallGetDataRequest
    ) -> AsyncIterator[api_pb2.DataChunk]:
        async for chunk in self._http.data_in(request.function_call_id).after(request.last_index):
            yield chunk

    async def FunctionCallPutDataOut(self, request: api_pb2.FunctionCallPutDataRequest) -> Empty:
        self._http.data_out(request.function_call_id).put(list(request.data_chunks))
        return Empty()

    async def TaskResult(self, request: api_pb2.TaskResultRequest) -> Empty:
        self._container.failure = request.result
        return Empty()

    async def ContainerStop(self, _: api_pb2.ContainerStopRequest) -> api_pb2.ContainerStopResponse:
        self._scheduler.stop(self._container)
        return api_pb2.ContainerStopResponse()


def _function_data(deployed: Deployed) -> api_pb2.FunctionData:
    """Return a function's definition for a client, or one for each GPU of a fallback list."""
    if deployed.data is not None and deployed.options is None:
        data = api_pb2.FunctionData()
        data.CopyFrom(deployed.data)
    else:
        data = api_pb2.FunctionData()
        names = ("module_name", "function_name", "function_type", "timeout_secs", "webhook_config")
        copy_known(deployed.definition, data, *names)
        data.ranked_functions.add(rank=0, function=deployed.definition)
    data.web_url = deployed.web_url
    return data


def _mapped(call: Call) -> api_pb2.FunctionMapResponse:
    return api_pb2.FunctionMapResponse(
        function_call_id=call.id,
        pipelined_inputs=[api_pb2.FunctionPutInputsResponseItem(idx=0, input_id=call.input_id, input_jwt="")],
        retry_policy=call.function.definition.retry_policy,
        sync_client_retries_enabled=False,
    )
