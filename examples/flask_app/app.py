"""Render over HTTP with Flask: run ``gunicorn --workers 2 --threads 8 app:app``."""

import atexit
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from flask import Flask, Response, redirect, request, send_file, url_for
from pydantic import BaseModel, Json, JsonValue, ValidationError
from werkzeug.exceptions import BadRequestKeyError, HTTPException

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
    title: str | None = None
    artist: str | None = None
    poster: bool = False


@app.post("/jobs")
def submit() -> tuple[dict[str, str], int]:
    """Submit a job; the response comes before anything is rendered."""
    form = Form.model_validate({name: value for name, value in request.form.items() if value})
    key = request.headers.get("Idempotency-Key")
    handle = service.submit(request.files["audio"].stream, **dict(form), idempotency_key=key)
    return {"jobId": handle.id, "status": "pending"}, 202


@app.get("/jobs/<job_id>")
def poll(job_id: str) -> Response:
    """Return the progress of the job, and the URLs of its video and poster once it is complete."""
    found = service.poll(job_id)
    for name, what in (("download_url", "video"), ("poster_url", "poster")):
        if (getattr(found, name) or "").startswith("file:"):  # a folder of this server
            found = found.model_copy(update={name: url_for("send", job_id=job_id, what=what, _external=True)})
    return Response(found.to_json(), mimetype="application/json")


@app.delete("/jobs/<job_id>")
def cancel(job_id: str) -> Response:
    """Cancel the job; it is ``cancelling`` until its render has stopped."""
    service.cancel(job_id)
    return poll(job_id)


@app.get("/jobs/<job_id>/<any(video, poster):what>")
def send(job_id: str, what: str) -> Any:
    """Send the finished video or its poster, or redirect there."""
    url = urlsplit(service.download_url(job_id) if what == "video" else service.poster_url(job_id))
    name = service.file_name(job_id).removesuffix("mp4") + url.path.rpartition(".")[2]
    return send_file(url2pathname(url.path), download_name=name) if url.scheme == "file" else redirect(url.geturl())


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
