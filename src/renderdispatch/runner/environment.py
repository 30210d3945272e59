"""Which variables does a render process get?

It decodes strangers' audio and runs scenes, so it gets what drawing and decoding need and nothing else: no key of the
application is among it, whatever its name. ``RENDERDISPATCH_PASS_ENV`` names more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from renderdispatch.messages import RenderOrder

PASS_ENV: Final = "RENDERDISPATCH_PASS_ENV"  # noqa: S105 - no password
"""Names of further variables, separated by commas; one that ends with ``*`` is a beginning."""

_NAMES: Final = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TMP", "TEMP", "TZ", "LANG", "LANGUAGE", "NO_COLOR"),
        *("DISPLAY", "WAYLAND_DISPLAY", "VIRTUAL_ENV", "CONDA_PREFIX", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("SOURCE_DATE_EPOCH", "DONT_FAKE_MONOTONIC"),
        "RENDERDISPATCH_GPU",  # the GPU that it may draw on
        *("RENDERDISPATCH_HOME", "MODAL_TASK_ID"),  # whose process it is, for those who look for it in a list
    )
)
_BEGINNINGS: Final = (
    *("LC_", "XDG_", "PYTHON", "COVERAGE_", "FONTCONFIG_", "RENDERDISPATCH_TEST_"),
    *("LD_", "DYLD_", "MALLOC_", "GLIBC_", "FAKETIME"),
    *(
        "CUDA_",
        "NVIDIA_",
        "__NV",
        "ROCR_",
        "HIP_",
        "HSA_",
        "GPU_",
        "VK_",
        "VULKAN_",
        "METAL_",
        "MTL_",
        "TORCH",
        "TRITON_",
    ),
    *("EGL_", "__EGL_", "__GL", "GLX_", "LIBGL_", "MESA_", "GALLIUM_", "LP_", "DRI_", "LIBVA_", "VDPAU_", "PYOPENGL_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "NUMEXPR_", "NUMBA_", "NPY_"),
)
_SECRET: Final = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|AUTH|COOKIE|PRIVATE|(^|_)KEYS?($|_)|APIKEY", re.IGNORECASE
)


def of_renders(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a render process gets of an environment."""
    wanted = {name.strip() for name in environment.get(PASS_ENV, "").split(",") if name.strip()}
    names = {PASS_ENV, *_NAMES, *wanted}
    beginnings = tuple(name[:-1] for name in wanted if name.endswith("*"))

    def passes(name: str) -> bool:
        usual = name.startswith(_BEGINNINGS) and not _SECRET.search(name)
        return name in names or usual or name.startswith(beginnings)

    return {name: value for name, value in environment.items() if passes(name)}


def for_the_runner(
    order: RenderOrder, environment: Mapping[str, str], renderers: Mapping[str, str] | None = None
) -> str:
    """Return what a runner of this machine reads: an order as JSON, with further scenes, and with the proxies.

    They are how the runner reaches the network, and may hold a password; so they are not in its own environment, which
    the render process would inherit.
    """
    proxies = {name: value for name, value in environment.items() if name.lower().endswith("_proxy")}
    return json.dumps({**json.loads(order.model_dump_json()), "proxies": proxies, "renderers": dict(renderers or {})})


def proxies_of(line: bytes) -> dict[str, str]:
    """Return the proxies in what a runner read."""
    return {str(name): str(value) for name, value in json.loads(line).get("proxies", {}).items()}


def renderers_of(line: bytes) -> dict[str, str]:
    """Return the scenes, beside those that are registered, in what a runner read."""
    return {str(name): str(where) for name, where in json.loads(line).get("renderers", {}).items()}
