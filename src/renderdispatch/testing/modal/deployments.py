"""What was deployed to the loopback Modal, and what do its containers need?"""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import define, evolve, field
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from renderdispatch.testing.modal.protos import copy_known, set_known
from renderdispatch.testing.modal.records import ImageLayer, ModalFunction

_LONGEST_S: Final = 86_400


def new_id(prefix: str) -> str:
    """Make an object id of a kind such as ``fc``."""
    return f"{prefix}-{secrets.token_hex(11)}"


def not_found(what: str) -> GRPCError:
    """Return the control plane's error for something that does not exist."""
    return GRPCError(Status.NOT_FOUND, f"{what} not found")


@define(eq=False)
class Deployed:
    """A function as a deployment made it, or a variant of one."""

    id: str
    app_id: str
    name: str
    metadata: api_pb2.FunctionHandleMetadata
    definition: api_pb2.Function = field(factory=api_pb2.Function)
    data: api_pb2.FunctionData | None = None
    version: int = 0
    options: api_pb2.FunctionOptions | None = None
    serialized_params: bytes = b""
    base_id: str = ""
    web_url: str = ""

    @property
    def gpus(self) -> tuple[str, ...]:
        """The requested GPUs, in order of preference."""
        ranked = self.data.ranked_functions if self.data is not None and self.options is None else ()
        definitions = [one.function for one in ranked] or [self.definition]
        return tuple(filter(None, (_gpu_name(one.resources.gpu_config) for one in definitions)))


@define(eq=False)
class App:
    """An app in an environment, with every version that was published."""

    id: str
    name: str
    environment: str
    versions: list[dict[str, Deployed]] = field(factory=list)  # by tag
    class_ids: dict[str, str] = field(factory=dict)
    stopped: bool = False

    @property
    def current(self) -> Mapping[str, Deployed]:
        return self.versions[-1] if self.versions else {}


class Deployments:
    """Apps, functions, images, files and secrets, by id; used by the server's own thread alone.

    Args:
        folder: Where local files that came with a deployment are kept.
        environments: Those that there are.
    """

    def __init__(self, folder: Path, environments: tuple[str, ...]) -> None:
        self._folder = folder
        self._environments = environments
        self._apps: dict[str, App] = {}
        self._functions: dict[str, Deployed] = {}
        self._staged: dict[str, Deployed] = {}  # created, not published yet
        self._images: dict[str, tuple[api_pb2.Image, str]] = {}
        self._mounts: dict[str, list[api_pb2.MountFile]] = {}
        self._secrets: dict[str, tuple[str, dict[str, str]]] = {}
        self.named_secrets: dict[str, dict[str, str]] = {}

    # Environments and apps

    def environment(self, name: str) -> str:
        """Return the name of an environment; "" is the default.

        Raises:
            GRPCError: The environment does not exist.
        """
        name = name or self._environments[0]
        if name not in self._environments:
            raise not_found(f"environment '{name}'")
        return name

    def find_app(self, name: str, environment: str) -> App | None:
        """Return the app that is deployed under this name, or None."""
        for app in self._apps.values():
            if (app.name, app.environment) == (name, environment or self._environments[0]) and not app.stopped:
                return app
        return None

    def create_app(self, name: str, environment: str) -> App:
        """Make an app without a version."""
        app = App(new_id("ap"), name, self.environment(environment))
        self._apps[app.id] = app
        return app

    def app(self, app_id: str) -> App:
        """Return an app.

        Raises:
            GRPCError: There is none with this id.
        """
        if app_id not in self._apps:
            raise not_found(f"app '{app_id}'")
        return self._apps[app_id]

    def publish(self, app: App, name: str, function_ids: Mapping[str, str], class_ids: Mapping[str, str]) -> None:
        """Make the functions that were created for an app its new version."""
        version = len(app.versions) + 1
        layout = {}
        for tag, function_id in function_ids.items():
            # A version keeps its own definitions, though the id stays with the function.
            staged = self._staged.pop(function_id, None) or self.function(function_id)
            layout[tag] = self._functions[function_id] = evolve(staged, version=version)
        for variant in [one for one in self._functions.values() if one.base_id in function_ids.values()]:
            base = self._functions[variant.base_id]
            self._functions[variant.id] = _variant(base, variant.id, variant.options, variant.serialized_params)
        app.name = name or app.name
        app.class_ids = dict(class_ids)
        app.versions.append(layout)

    def layout(self, app: App, function: Deployed | None = None) -> api_pb2.AppLayout:
        """Return the functions of an app's newest version, and the dependencies of one of them."""
        objects = [
            api_pb2.Object(object_id=one.id, function_handle_metadata=one.metadata) for one in app.current.values()
        ]
        if function is not None:
            objects += [api_pb2.Object(object_id=one.object_id) for one in function.definition.object_dependencies]
        function_ids = {tag: one.id for tag, one in app.current.items()}
        return api_pb2.AppLayout(objects=objects, function_ids=function_ids, class_ids=app.class_ids)

    # Functions

    def precreate(self, request: api_pb2.FunctionPrecreateRequest, web_url: str) -> Deployed:
        """Give a function that is about to be deployed its id."""
        function_id = request.existing_function_id or new_id("fu")
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            web_url=web_url,
            definition_id=new_id("de"),
        )
        copy_known(request, metadata, "function_schema", "supported_input_formats", "supported_output_formats")
        set_known(metadata, app_id=request.app_id)
        staged = Deployed(function_id, request.app_id, request.function_name, metadata, web_url=web_url)
        self._staged[function_id] = staged
        return staged

    def create(self, request: api_pb2.FunctionCreateRequest) -> Deployed:
        """Take the definition of a function that was precreated.

        Raises:
            GRPCError: It was not precreated, or its timeout is none that Modal takes.
        """
        deployed = self._staged.get(request.existing_function_id)
        if deployed is None:
            raise not_found(f"function '{request.existing_function_id}'")
        has_data = "function_data" in request.DESCRIPTOR.fields_by_name and request.HasField("function_data")
        data = request.function_data if has_data else None
        deployed.definition = data.ranked_functions[0].function if data is not None else request.function
        if not 1 <= deployed.definition.timeout_secs <= _LONGEST_S:
            raise GRPCError(
                Status.INVALID_ARGUMENT,
                f"the timeout of function '{deployed.name}' must be 1 to {_LONGEST_S} seconds, "
                f"not {deployed.definition.timeout_secs}",
            )
        deployed.data = data
        return deployed

    def function(self, function_id: str) -> Deployed:
        """Return a function or a variant.

        Raises:
            GRPCError: There is none with this id, or its app was stopped.
        """
        deployed = self._functions.get(function_id)
        if deployed is None or self._apps[deployed.app_id].stopped:
            raise not_found(f"function '{function_id}'")
        return deployed

    def find_function(self, app_name: str, tag: str, environment: str, version: int) -> Deployed:
        """Return a function by name, of the newest version when ``version`` is 0.

        Raises:
            GRPCError: The environment, app, version or function does not exist.
        """
        app = self.find_app(app_name, self.environment(environment))
        if app is None or not app.versions:
            raise not_found(f"app '{app_name}'")
        if version > len(app.versions):
            raise not_found(f"version {version} of app '{app_name}'")
        layout = app.versions[version - 1] if version else app.current
        if tag not in layout:
            raise not_found(f"function '{tag}'")
        deployed = layout[tag]
        if self._functions.get(deployed.id) is not deployed:  # an older version has an id of its own
            deployed.id = new_id("fu")
            self._functions[deployed.id] = deployed
        return deployed

    def bind(self, request: api_pb2.FunctionBindParamsRequest) -> Deployed:
        """Return the variant of a function with these options. The same request returns the same variant."""
        base = self.function(request.function_id)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:22]
        function_id = f"fu-{digest}"
        if function_id not in self._functions:
            options = request.function_options if request.HasField("function_options") else api_pb2.FunctionOptions()
            self._functions[function_id] = _variant(base, function_id, options, request.serialized_params)
        return self._functions[function_id]

    # Images, files, secrets

    def add_image(self, request: api_pb2.ImageGetOrCreateRequest) -> str:
        """Record an image as built. The same definition has the same id."""
        digest = hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:22]
        self._images.setdefault(f"im-{digest}", (request.image, request.builder_version))
        return f"im-{digest}"

    def missing_files(self, hashes: list[str]) -> list[str]:
        """Return the hashes of files that were never put."""
        return [one for one in hashes if not self._file(one).exists()]

    def put_file(self, sha256_hex: str, content: bytes) -> None:
        """Keep a file."""
        path = self._file(sha256_hex)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def add_mount(self, files: list[api_pb2.MountFile]) -> str:
        """Record a set of files that containers see. The same files have the same id."""
        names = [f"{file.filename} {file.sha256_hex}" for file in files]
        mount_id = f"mo-{hashlib.sha256('/'.join(sorted(names)).encode()).hexdigest()[:22]}"
        self._mounts.setdefault(mount_id, files)
        return mount_id

    def add_secret(self, name: str, values: Mapping[str, str]) -> str:
        """Record a secret that came with a deployment, or find one by name.

        Raises:
            GRPCError: No secret has this name.
        """
        if name and name not in self.named_secrets:
            raise not_found(f"secret '{name}'")
        secret_id = new_id("st")
        self._secrets[secret_id] = (name, dict(values))
        return secret_id

    # What containers need

    def container_environment(self, deployed: Deployed) -> dict[str, str]:
        """Return the variables that the image and the secrets of a function set."""
        found: dict[str, str] = {}
        for image, _ in self._image_chain(deployed.definition.image_id):
            for command in image.dockerfile_commands:
                if command.upper().startswith("ENV "):
                    found.update(_environment_line(command[4:]))
        for secret_id in deployed.definition.secret_ids:
            name, values = self._secrets[secret_id]
            found.update(self.named_secrets.get(name, {}) if name else values)
        return found

    def place_files(self, deployed: Deployed) -> Path:
        """Write the local files of a function as its containers see them; return the folder in the place of ``/``."""
        mounts = list(deployed.definition.mount_ids)
        mounts += [image.context_mount_id for image, _ in self._image_chain(deployed.definition.image_id)]
        mounts = [mount for mount in mounts if mount in self._mounts]
        root = self._folder / "roots" / hashlib.sha256("/".join(sorted(mounts)).encode()).hexdigest()[:22]
        if not root.exists():
            (root / "root").mkdir(parents=True)
            for file in (file for mount in mounts for file in self._mounts[mount]):
                path = root / PurePosixPath(file.filename).relative_to("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.hardlink_to(self._file(file.sha256_hex))
        return root

    # What tests see

    @property
    def image_layers(self) -> list[ImageLayer]:
        """Every layer, bases first."""
        return [
            ImageLayer(
                id=image_id,
                base_ids=tuple(base.image_id for base in image.base_images),
                commands=tuple(image.dockerfile_commands),
                context_files=tuple(file.filename for file in image.context_files),
                gpu=_gpu_name(image.gpu_config),
                builder_version=builder,
            )
            for image_id, (image, builder) in self._images.items()
        ]

    @property
    def functions(self) -> list[ModalFunction]:
        """Every published function of the newest versions, then the variants."""
        found = [one for app in self._apps.values() if not app.stopped for one in app.current.values()]
        found += [one for one in self._functions.values() if one.options is not None]
        return [self.describe(one) for one in found]

    def describe(self, deployed: Deployed) -> ModalFunction:
        """Return a function as a value."""
        app = self._apps[deployed.app_id]
        return ModalFunction(
            id=deployed.id,
            app=app.name,
            environment=app.environment,
            name=deployed.name,
            version=deployed.version,
            definition=deployed.definition,
            gpus=deployed.gpus,
            secrets=tuple(self._secrets[one][0] for one in deployed.definition.secret_ids),
            options=deployed.options,
            web_url=deployed.web_url,
        )

    def _file(self, sha256_hex: str) -> Path:
        return self._folder / "files" / sha256_hex

    def _image_chain(self, image_id: str) -> Iterator[tuple[api_pb2.Image, str]]:
        """Iterate over an image's layers, bases first."""
        if image_id in self._images:
            image, builder = self._images[image_id]
            for base in image.base_images:
                yield from self._image_chain(base.image_id)
            yield image, builder


def _variant(base: Deployed, id: str, options: api_pb2.FunctionOptions | None, params: bytes) -> Deployed:
    metadata = api_pb2.FunctionHandleMetadata()
    metadata.CopyFrom(base.metadata)
    set_known(metadata, base_function_id=base.id)
    definition = _with_options(base.definition, options) if options is not None else base.definition
    return evolve(
        base,
        id=id,
        base_id=base.id,
        metadata=metadata,
        definition=definition,
        options=options,
        serialized_params=params,
    )


def _with_options(definition: api_pb2.Function, options: api_pb2.FunctionOptions) -> api_pb2.Function:
    changed = api_pb2.Function()
    changed.CopyFrom(definition)
    for descriptor, value in options.ListFields():
        name = descriptor.name
        if name == "resources":
            _override_resources(changed.resources, value)
        elif name == "retry_policy":
            changed.retry_policy.CopyFrom(value)
        elif name in changed.DESCRIPTOR.fields_by_name and isinstance(value, (str, int, float)):
            setattr(changed, name, value)
    if options.replace_secret_ids:
        del changed.secret_ids[:]
    changed.secret_ids.extend(options.secret_ids)
    return changed


def _override_resources(resources: api_pb2.Resources, given: api_pb2.Resources) -> None:
    for descriptor, value in given.ListFields():
        if descriptor.name == "gpu_config":
            resources.gpu_config.CopyFrom(value)
        else:
            setattr(resources, descriptor.name, value)


def _gpu_name(config: api_pb2.GPUConfig) -> str:
    return f"{config.gpu_type}:{config.count}" if config.count > 1 else config.gpu_type


def _environment_line(line: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in shlex.split(line))
    return {name: value for name, separator, value in pairs if separator}
