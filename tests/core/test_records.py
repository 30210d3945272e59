"""Does a job come back as it was written down, also from another version's record?"""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from pydantic import ValidationError

from renderdispatch.engine.records import dump_job, load_job
from renderdispatch.jobs import Attempt, Job, evolve
from renderdispatch.messages import PROTOCOL, JobStatus, RemoteAudio, Stage
from renderdispatch.testing import make_ended_job, make_job, make_request


def _document(job: Job) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(dump_job(job))
    return document


@pytest.mark.parametrize("make", [make_job, make_ended_job])
def test_a_job_comes_back(make: Any) -> None:
    """A new job and one with everything in it are read as they were written."""
    job = make()
    assert load_job(dump_job(job)) == load_job(dump_job(job).encode()) == job


def test_the_richest_job_leaves_no_field_at_its_default() -> None:
    """The job that the round trip is tested with holds something in every field, so that none can be forgotten."""
    job = make_ended_job(revision=1)
    empty = {field.name for field in attrs.fields(Job) if getattr(job, field.name) == field.default}
    assert empty == {"protocol", "ready_at"} - {
        field.name for field in attrs.fields(Job) if field.default is attrs.NOTHING
    }


def test_the_secret_url_is_in_the_record_and_nowhere_else() -> None:
    """A submitted URL survives the round trip as a secret."""
    audio = RemoteAudio.model_validate({"url": "https://example.com/?s3cret"})
    job = load_job(dump_job(make_job(request=make_request(audio=audio))))
    assert isinstance(job.request.audio, RemoteAudio)
    assert job.request.audio.url.get_secret_value() == "https://example.com/?s3cret"
    assert "s3cret" not in repr(job)


def test_a_record_says_its_protocol() -> None:
    """Each document carries the version that wrote it."""
    assert _document(make_job())["protocol"] == PROTOCOL


def test_a_newer_record_is_understood() -> None:
    """Fields that are not known here are ignored, at every depth."""
    job = make_ended_job()
    document = _document(job)
    for part in (document, document["request"], document["attempts"][0], document["artifact"], document["error"]):
        part["fromTheFuture"] = {"a": [1]}
    assert load_job(json.dumps(document)) == job


def test_a_record_with_a_stored_cover_is_understood() -> None:
    """The version before kept the stored copy of a cover in a field of its own."""
    job = make_ended_job()
    document = _document(job)
    document["cover"] = document.pop("attachments")["cover"]
    read = load_job(json.dumps(document))
    assert read.attachments == {"cover": job.attachments["cover"]}
    assert "cover" not in _document(read)
    assert load_job(dump_job(read)) == read


def test_an_older_record_is_understood() -> None:
    """Fields with a default may be missing, and take it."""
    document = _document(make_job(id="old", priority=3))
    needed = {field.name for field in attrs.fields(Job) if field.default is attrs.NOTHING}
    job = load_job(json.dumps({name: value for name, value in document.items() if name in needed}))
    assert (job.id, job.priority, job.status, job.stage, job.attempts) == (
        "old",
        0,
        JobStatus.PENDING,
        Stage.QUEUED,
        (),
    )


def test_an_older_attempt_is_understood() -> None:
    """The same for attempts."""
    job = make_ended_job()
    document = _document(job)
    needed = {field.name for field in attrs.fields(Attempt) if field.default is attrs.NOTHING}
    for attempt in document["attempts"]:
        for name in set(attempt) - needed:
            del attempt[name]
    attempts = load_job(json.dumps(document)).attempts
    assert attempts == tuple(Attempt(**{name: getattr(a, name) for name in needed}) for a in job.attempts)


@pytest.mark.parametrize("document", ["", "null", "[]", "{}", '{"id": "s3cret"}', "s3cret", "\ud800"])
def test_junk_is_refused_without_being_quoted(document: str) -> None:
    """What is no job raises, and the error does not hold the input."""
    with pytest.raises(ValidationError) as refusal:
        load_job(document)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize("record", [make_ended_job(), make_ended_job().attempts[0]])
def test_a_change_is_a_new_value(record: Job | Attempt) -> None:
    """A job and an attempt are changed as `attrs.evolve` does it; the old one stays, and unknown names are refused."""
    before = attrs.asdict(record, recurse=False)
    changed = evolve(record, ended_at=None)
    assert changed == attrs.evolve(record, ended_at=None) != record
    assert attrs.asdict(record, recurse=False) == before
    with pytest.raises(TypeError, match="has no field ended"):
        evolve(record, ended=None)  # type: ignore[call-arg]  # what is tested
