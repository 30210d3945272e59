"""How is a job stored as text?

As JSON. Its schema is derived from the attrs classes of `renderdispatch.jobs`, so each field is listed once. Unknown
fields are ignored and missing ones take their defaults, so that this version reads records of the previous one.

Every step of a job reads and writes a record. So little is copied on the way: what is written are the fields of the job
as they are, without those that few jobs set, and what is read are the arguments of `Job`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, NotRequired, get_args, get_origin, get_type_hints

import attrs
from pydantic import TypeAdapter
from pydantic_core import CoreConfig, SchemaSerializer, SchemaValidator
from typing_extensions import TypedDict

from renderdispatch.errors import JobUnreadableError
from renderdispatch.jobs import Attempt, Helper, Job
from renderdispatch.messages import BUILDING, FOR_THE_RECORD, PROTOCOL, StoredAudio


def _seldom(cls: type[attrs.AttrsInstance], *names: str) -> list[tuple[str, object]]:
    return [(name, getattr(attrs.fields(cls), name).default) for name in names]


_OF_JOBS: Final = _seldom(
    Job, "parallel", "pieces_clean_up", "pieces_swept_at", "pieces_kept_until", "borrows", "lent_to"
)
_OF_ATTEMPTS: Final = _seldom(
    Attempt,
    *("pieces", "planned", "helpers", "runs_advanced", "cancelled"),
    *("segments", "segments_standing", "segments_own", "segments_before", "segments_then"),
)
"""Fields that are not written while they hold these values, their defaults."""


class _Codec(NamedTuple):
    read: Callable[[str | bytes], dict[str, Any]]
    write: Callable[..., bytes]


def _record_of(cls: type[attrs.AttrsInstance], **replaced: Any) -> Any:
    hints = get_type_hints(cls)
    fields: dict[str, Any] = {}
    for attribute in attrs.fields(cls):
        hint = replaced.get(attribute.name, hints[attribute.name])
        if get_origin(hint) is Mapping:  # as a plain dict it is read and written without a call of Python
            hint = dict.__class_getitem__(get_args(hint))
        fields[attribute.name] = hint if attribute.default is attrs.NOTHING else NotRequired[hint]
    make: Any = TypedDict
    return make(f"{cls.__name__}Record", fields)


@cache
def _codec() -> _Codec:
    """Return what reads and writes a record; made at its first use, to keep imports quick."""
    with BUILDING:
        attempt = _record_of(Attempt, helpers=tuple.__class_getitem__((_record_of(Helper), ...)))
        job = _record_of(Job, attempts=tuple.__class_getitem__((attempt, ...)))
        job.__annotations__["cover"] = NotRequired[StoredAudio | None]
        schema = TypeAdapter(job).core_schema
        reader = SchemaValidator(schema, CoreConfig(hide_input_in_errors=True))
        return _Codec(reader.validate_json, SchemaSerializer(schema).to_json)


def dump_job(job: Job) -> str:
    """Return the job as a JSON document. The only secret that it may hold is the URL of a `RemoteAudio` (rule J10)."""
    fields = _written(job, _OF_JOBS)
    fields["attempts"] = tuple([_written_attempt(attempt) for attempt in job.attempts])
    return str(_codec().write(fields, by_alias=True, context=FOR_THE_RECORD), "utf-8")


def _written(record: Job | Attempt, seldom: list[tuple[str, object]]) -> dict[str, Any]:
    fields = vars(record).copy()
    for name, default in seldom:
        if fields[name] == default:
            del fields[name]
    return fields


def _written_attempt(attempt: Attempt) -> dict[str, Any]:
    fields = _written(attempt, _OF_ATTEMPTS)
    if attempt.helpers:
        fields["helpers"] = tuple([vars(helper) for helper in attempt.helpers])
    return fields


def load_job(document: str | bytes) -> Job:
    """Read a job that `dump_job` wrote.

    Raises:
        pydantic.ValidationError: The document is not a job. The error does not quote the document.
    """
    fields = _codec().read(document)
    if attempts := fields.get("attempts"):
        fields["attempts"] = tuple([_attempt(attempt) for attempt in attempts])
    if "cover" in fields:  # of the version before, now one of `attachments`
        cover = fields.pop("cover")
        older = {} if cover is None else {"cover": cover}
        fields["attachments"] = {**older, **fields.get("attachments", {})}
    return Job(**fields)


def _attempt(fields: dict[str, Any]) -> Attempt:
    if helpers := fields.get("helpers"):
        fields["helpers"] = tuple([Helper(**helper) for helper in helpers])
    return Attempt(**fields)


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
