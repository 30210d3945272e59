"""Render over HTTP with FastAPI: run ``uvicorn app:app`` and open http://127.0.0.1:8000/."""

from pathlib import Path
from typing import Annotated
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
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, str]:
    """Submit a job; the response comes before anything is rendered."""
    handle = await renders.submit(
        audio.file, scene=scene, output=output, params=params, duration=duration, idempotency_key=idempotency_key
    )
    return {"jobId": handle.id, "status": "pending"}


@app.get("/jobs/{job_id}")
async def poll(job_id: str, request: Request) -> Response:
    """Return the progress of the job, and the URL of its video once it is complete."""
    found = await renders.poll(job_id)
    if found.download_url is not None and found.download_url.startswith("file:"):  # a folder of this server
        found = found.model_copy(update={"download_url": str(request.url_for("video", job_id=job_id))})
    return Response(found.to_json(), media_type="application/json")


@app.delete("/jobs/{job_id}")
async def cancel(job_id: str, request: Request) -> Response:
    """Cancel the job; it is ``cancelling`` until its render has stopped."""
    await renders.cancel(job_id)
    return await poll(job_id, request)


@app.get("/jobs/{job_id}/video")
async def video(job_id: str) -> Response:
    """Send the finished video, or redirect to it."""
    url = urlsplit(await renders.download_url(job_id))
    if url.scheme == "file":
        return FileResponse(url2pathname(url.path), media_type="video/mp4")
    return RedirectResponse(url.geturl())


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Name the wrong fields, in the format of the service's own errors."""
    wrong = "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors())
    return JSONResponse({"error": {"code": "request.invalid", "message": wrong}}, 422)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Show a page with a form, the progress and the video."""
    return FileResponse(Path(__file__).with_name("page.html"))
