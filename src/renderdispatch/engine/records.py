"""How is a job stored as text?

As JSON. The pydantic models are derived from the attrs classes of `renderdispatch.jobs`, so each field is listed once.
Unknown fields are ignored and missing ones take their defaults, so that this version reads records of the previous one.
"""

from __future__ import annotations

from typing import Any, Final, get_type_hints

import attrs
from pydantic import BaseModel, ConfigDict, Field, create_model

from renderdispatch.errors import JobUnreadableError
from renderdispatch.jobs import Attempt, Job
from renderdispatch.messages import FOR_THE_RECORD, PROTOCOL, Model, StoredAudio


class _Record(Model):
    model_config = ConfigDict(from_attributes=True)


def _record_of(cls: type[attrs.AttrsInstance], replaced: dict[Any, Any]) -> type[_Record]:
    hints = get_type_hints(cls)
    fields: dict[str, Any] = {}
    for attribute in attrs.fields(cls):
        hint = replaced.get(hints[attribute.name], hints[attribute.name])
        default: Any = attribute.default
        if default is attrs.NOTHING:
            fields[attribute.name] = (hint, ...)
        # Attrs types it as a function, and it is a class.
        elif isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            fields[attribute.name] = (hint, Field(default_factory=default.factory))
        else:
            fields[attribute.name] = (hint, default)
    return create_model(f"{cls.__name__}Record", __base__=_Record, **fields)


_AttemptRecord: Final[Any] = _record_of(Attempt, {})
_JobRecord: Final[Any] = create_model(
    "JobRecord",
    __base__=_record_of(Job, {tuple[Attempt, ...]: tuple[_AttemptRecord, ...]}),
    cover=(StoredAudio | None, Field(default=None, exclude=True)),  # of the version before, now one of `attachments`
)


def dump_job(job: Job) -> str:
    """Return the job as a JSON document. The only secret that it may hold is the URL of a `RemoteAudio` (rule J10)."""
    document: str = _JobRecord.model_validate(job, from_attributes=True).model_dump_json(
        by_alias=True, context=FOR_THE_RECORD
    )
    return document


def load_job(document: str | bytes) -> Job:
    """Read a job that `dump_job` wrote.

    Raises:
        pydantic.ValidationError: The document is not a job. The error does not quote the document.
    """
    record = _JobRecord.model_validate_json(document)
    attempts = tuple(Attempt(**_fields(a, Attempt)) for a in record.attempts)
    older = {} if record.cover is None else {"cover": record.cover}
    return Job(**{**_fields(record, Job), "attempts": attempts, "attachments": {**older, **record.attachments}})


def check_protocol(job: Job) -> Job:
    """Return the job.

    Raises:
        JobUnreadableError: A newer version wrote its record. Writing it again would lose what only that version knows.
    """
    if job.protocol > PROTOCOL:
        raise unreadable(job.id)
    return job


def unreadable(job_id: str) -> JobUnreadableError:
    """Return the error for a record that this version cannot read."""
    return JobUnreadableError(
        f"job {job_id} was written by a newer version, and this one cannot read it; update this process"
    )


def _fields(record: BaseModel, cls: type[attrs.AttrsInstance]) -> dict[str, Any]:
    return {a.name: getattr(record, a.name) for a in attrs.fields(cls)}
