"""Which variables does a render process get?

It decodes strangers' audio and runs scenes, so it gets what drawing and decoding need and nothing else: no key of the
application is among it, whatever its name. ``RENDERDISPATCH_PASS_ENV`` names more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

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
