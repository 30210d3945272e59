"""Which secrets does a container get? None: an order brings signed URLs, and the key of its own attempt."""

from __future__ import annotations

from pathlib import Path

from renderdispatch.messages import Stage
from tests.support.mishaps import Rig, processes_in


def test_no_credential_reaches_a_container(rig: Rig) -> None:
    """Neither the environment of a container or its render, nor what was deployed, holds a credential.

    This holds when all of them are in the environment of the deployment.
    """
    secrets = {
        "RENDERDISPATCH_R2_ACCESS_KEY_ID": rig.r2.access_key_id,
        "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": rig.r2.secret_access_key,
        "RENDERDISPATCH_SECRETS": rig.secret,
    }
    rig.modal.deploy("renderdispatch.modal_app", env=secrets)
    render = rig.submit(hold=True)
    render.wait_for_renders(1)
    render.wait_for_stage(Stage.RENDERING)
    (start,) = render.call.starts
    pids = [start.pid, *processes_in(rig.modal, {start.container_id})]
    assert len(pids) > 1, "the render has a process of its own"
    held = [Path(f"/proc/{pid}/{what}").read_bytes() for pid in pids for what in ("environ", "cmdline")]
    function = rig.modal.function("render", app="renderdispatch")
    deployed = [function.definition.SerializeToString(), repr(rig.modal.image_layers).encode()]
    for secret in (*secrets.values(), rig.modal.token_secret):
        assert not [found for found in (*held, *deployed) if secret.encode() in found]
    names = {entry.partition(b"=")[0] for found in held[::2] for entry in found.split(b"\0")}
    assert not [name for name in names if name.startswith((b"RENDERDISPATCH_R2", b"RENDERDISPATCH_SEC", b"AWS_"))]
    assert function.secrets == ()
    for secret in (rig.r2.secret_access_key, rig.secret, rig.secret.removeprefix("whsec_")):
        assert secret.encode() not in render.call.args
    render.go()
    render.assert_delivered_once()
