"""How does a test bring a job to its end, with or without a worker?"""

from __future__ import annotations

from renderdispatch.jobs import Job
from renderdispatch.service import RenderService
from renderdispatch.testing import eventually


def finished(service: RenderService, job_id: str) -> Job:
    """Take rounds until the job has ended."""

    def ended() -> Job | None:
        service.tick()
        job = service.get(job_id)
        return job if job.ended else None

    job = eventually(ended)
    assert job is not None
    return job
