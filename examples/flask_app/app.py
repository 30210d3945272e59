"""Render over HTTP with Flask: run ``gunicorn --workers 2 --threads 8 app:app``."""

import atexit
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from flask import Flask, Response, redirect, request, send_file, url_for
from pydantic import BaseModel, Json, JsonValue, ValidationError
from werkzeug.exceptions import BadRequestKeyError, HTTPException
from werkzeug.wrappers import Response as AnyResponse

import renderdispatch
from renderdispatch.web.flask import install

service = renderdispatch.from_settings()
atexit.register(service.close)
app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 512 << 20
install(app, service, webhook="/webhook")


class Form(BaseModel):
    """The fields beside the audio."""

    scene: str = "bars"
    output: str = "flat-1080p-landscape"
    params: Json[dict[str, JsonValue]] | None = None
    duration: float | None = None
    audio_track: int | None = None


@app.post("/jobs")
def submit() -> tuple[dict[str, str], int]:
    """Submit a job; the response comes before anything is rendered."""
    form = Form.model_validate({name: value for name, value in request.form.items() if value})
    audio = request.files["audio"].stream
    key = request.headers.get("Idempotency-Key")
    handle = service.submit(audio, **dict(form), idempotency_key=key)
    return {"jobId": handle.id, "status": "pending"}, 202


@app.get("/jobs/<job_id>")
def poll(job_id: str) -> Response:
    """Return the progress of the job, and the URL of its video once it is complete."""
    found = service.poll(job_id)
    if found.download_url is not None and found.download_url.startswith("file:"):  # a folder of this server
        found = found.model_copy(update={"download_url": url_for("video", job_id=job_id, _external=True)})
    return Response(found.to_json(), mimetype="application/json")


@app.delete("/jobs/<job_id>")
def cancel(job_id: str) -> Response:
    """Cancel the job; it is ``cancelling`` until its render has stopped."""
    service.cancel(job_id)
    return poll(job_id)


@app.get("/jobs/<job_id>/video")
def video(job_id: str) -> AnyResponse:
    """Send the finished video, or redirect to it."""
    url = urlsplit(service.download_url(job_id))
    return send_file(url2pathname(url.path)) if url.scheme == "file" else redirect(url.geturl())


@app.errorhandler(ValidationError)
def invalid(error: ValidationError) -> tuple[dict[str, Any], int]:
    """Name the wrong fields."""
    wrong = "; ".join(f"{found['loc'][0]}: {found['msg']}" for found in error.errors())
    return {"error": {"code": "request.invalid", "message": wrong}}, 422


@app.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[dict[str, Any], int]:
    """Answer Flask's own errors as JSON, too: no such page, no audio, too large."""
    said = f"{error.args[0]}: a file is needed" if isinstance(error, BadRequestKeyError) else error.description
    return {"error": {"code": f"http.{error.code}", "message": said}}, error.code or 500
