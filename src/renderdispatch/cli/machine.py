"""What does a machine draw and encode with, for people to read?"""

from __future__ import annotations

from renderdispatch.cli.finding import Finding, Verdict
from renderdispatch.runner.probe import Probe


def examine_probe(tried: Probe) -> list[Finding]:
    """Return what was found about OpenGL, Vulkan, the encoders and the GPUs of a machine."""
    return [
        Finding("gpu", *_gpus(tried)),
        Finding("opengl", *_opengl(tried)),
        Finding("vulkan", *_vulkan(tried)),
        Finding("encoder", *_encoders(tried)),
    ]


def _gpus(tried: Probe) -> Verdict:
    if tried.gpus:
        return "ok", "; ".join(f"{gpu.name}, driver {gpu.driver}" for gpu in tried.gpus)
    return "note", "NVIDIA's driver lists none"


def _opengl(tried: Probe) -> Verdict:
    opengl = tried.opengl
    if opengl.error is not None:
        return "note", opengl.error
    if opengl.on_gpu:
        return "ok", f"a GPU draws: {opengl.renderer}"
    more = ", though there is one" if tried.gpus else ""
    return "note", f"the CPU draws: {opengl.renderer}{more}"


def _vulkan(tried: Probe) -> Verdict:
    devices = ", ".join(f"{device.name} ({device.type})" for device in tried.vulkan.devices)
    return ("ok", devices) if devices else ("note", f"for programs that draw with it: {tried.vulkan.error}")


def _encoders(tried: Probe) -> Verdict:
    failed = [f"{name}: {reason}" for name, reason in tried.encoders.items() if reason is not None]
    works = ", ".join(tried.encodes_with)
    said = "; ".join(filter(None, (works, *failed)))
    return ("ok", said) if works else ("note", said)
