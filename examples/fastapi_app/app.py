"""Render over HTTP with FastAPI: run ``uvicorn app:app`` and open http://127.0.0.1:8000/."""

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fastapi import FastAPI, Form, Header, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from pydantic import Json, JsonValue

import renderdispatch
from renderdispatch.web.fastapi import BodyLimit, install, lifespan

service = renderdispatch.from_settings()
renders = renderdispatch.AsyncRenderService(service)
app = FastAPI(title="Renders", lifespan=lifespan(service))
app.add_middleware(BodyLimit, max_bytes=512 << 20)
install(app, service, webhook="/webhook")


@app.post("/jobs", status_code=202)
async def submit(
    audio: UploadFile,
    *,
    scene: Annotated[str, Form()] = "bars",
    output: Annotated[str, Form()] = "flat-1080p-landscape",
    params: Annotated[Json[dict[str, JsonValue]] | None, Form()] = None,
    duration: Annotated[float | None, Form()] = None,
    title: Annotated[str | None, Form()] = None,
    artist: Annotated[str | None, Form()] = None,
    poster: Annotated[bool, Form()] = False,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, str]:
    """Submit a job; the response comes before anything is rendered."""
    song: dict[str, Any] = {"title": title, "artist": artist, "duration": duration, "idempotency_key": idempotency_key}
    handle = await renders.submit(audio.file, scene=scene, output=output, params=params, poster=poster, **song)
    return {"jobId": handle.id, "status": "pending"}


@app.get("/jobs/{job_id}")
async def poll(job_id: str, request: Request) -> Response:
    """Return the progress of the job, and the URLs of its video and poster once it is complete."""
    found = await renders.poll(job_id)
    for name, what in (("download_url", "video"), ("poster_url", "poster")):
        if (getattr(found, name) or "").startswith("file:"):  # a folder of this server
            found = found.model_copy(update={name: str(request.url_for("send", job_id=job_id, what=what))})
    return Response(found.to_json(), media_type="application/json")


@app.delete("/jobs/{job_id}")
async def cancel(job_id: str, request: Request) -> Response:
    """Cancel the job; it is ``cancelling`` until its render has stopped."""
    await renders.cancel(job_id)
    return await poll(job_id, request)


@app.get("/jobs/{job_id}/{what}")
async def send(job_id: str, what: Literal["video", "poster"]) -> Response:
    """Send the finished video or its poster, or redirect there."""
    url = urlsplit(await (renders.download_url(job_id) if what == "video" else renders.poster_url(job_id)))
    if url.scheme != "file":
        return RedirectResponse(url.geturl())
    name = Path(await renders.file_name(job_id)).stem + Path(url.path).suffix
    return FileResponse(url2pathname(url.path), filename=name, content_disposition_type="inline")


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Name the wrong fields, in the format of the service's own errors."""
    wrong = "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors())
    return JSONResponse({"error": {"code": "request.invalid", "message": wrong}}, 422)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Show a page with a form, the progress and the video."""
    return FileResponse(Path(__file__).with_name("page.html"))
