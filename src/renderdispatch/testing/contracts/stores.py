"""What must every job store do?

Each test is a sentence of `renderdispatch.protocols.JobStore` or of one of its optional powers::

    class TestMyStore(JobStoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path)
            yield store
            store.close()

        def raw_get(self, store, job_id):  # past the store: straight from where it keeps its records
            return store.folder.joinpath(job_id).read_text()

        def raw_set(self, store, job_id, document):
            store.folder.joinpath(job_id).write_text(document)
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from attrs import evolve

from renderdispatch.engine.records import dump_job, load_job
from renderdispatch.errors import (
    InvalidRequestError,
    JobExistsError,
    JobNotFoundError,
    JobUnreadableError,
    RevisionConflictError,
)
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.messages import PROTOCOL, JobStatus, RemoteAudio
from renderdispatch.protocols import JobQuery, JobStore, SupportsClaim
from renderdispatch.stores.pages import Place, write_cursor
from renderdispatch.testing.builders import in_threads, make_ended_job, make_job, make_request
from renderdispatch.testing.contracts.queues import SECOND, THREADS, QueueContract, claimed_ids


def _walk(store: JobStore, query: JobQuery) -> list[Job]:
    found: list[Job] = []
    while True:
        page = store.query(query)
        assert len(page.items) <= query.limit
        found += page.items
        if page.cursor is None:
            return found
        query = evolve(query, cursor=page.cursor)


def _ids(store: JobStore, query: JobQuery) -> list[str]:
    return [job.id for job in _walk(store, query)]


def _delete(store: JobStore, job: Job) -> bool:
    return store.delete(job.id, expected_revision=job.revision)


class JobStoreContract(QueueContract):
    """Subclass it, override `store`, and every promise of `JobStore` is tested.

    Tests of optional powers (`SupportsClaim`, `SupportsLooks`, `SupportsCounts`, `SupportsCreateMany`) and of several
    instances are skipped for a store that has none. Override `raw_get` and `raw_set` too: without them, the tests of
    what is really stored are skipped.
    """

    def raw_get(self, store: Any, job_id: str) -> str | None:  # noqa: ARG002 - overrides need them
        """Return the document that is stored for a job, without a call of the store; None if there is none."""
        pytest.skip("override `raw_get` and `raw_set` to test what is really stored")

    def raw_set(self, store: Any, job_id: str, document: str) -> None:  # noqa: ARG002 - overrides need them
        """Overwrite the document of a stored job, without a call of the store, as another version would write it.

        A protocol that is kept beside the document changes with it; everything else stays as it is.
        """
        pytest.skip("override `raw_get` and `raw_set` to test what is really stored")

    # --- create

    def test_create_returns_the_job_as_stored(self, store: JobStore) -> None:
        """`create` returns the job with its revision set, and `get` returns the same."""
        job = make_job()
        stored = store.create(job)
        assert stored == evolve(job, revision=stored.revision)
        assert store.get(job.id) == stored

    def test_every_field_survives(self, store: JobStore) -> None:
        """Every field of a job comes back as it was: attempts, times to the microsecond, any script."""
        stored = store.create(make_ended_job(id="ünï-çødé-🎵"))
        assert store.get("ünï-çødé-🎵") == stored

    def test_a_secret_url_survives(self, store: JobStore) -> None:
        """A submitted audio URL is kept in the record until the audio is stored."""
        audio = RemoteAudio.model_validate({"url": "https://example.com/a.wav?signature=s3cret"})
        stored = store.create(make_job(request=make_request(audio=audio)))
        assert store.get(stored.id).request.audio == audio

    def test_create_refuses_an_existing_id(self, store: JobStore) -> None:
        """A second `create` of an id raises `JobExistsError` and changes nothing."""
        stored = store.create(make_job(priority=1))
        with pytest.raises(JobExistsError):
            store.create(make_job(id=stored.id, priority=2))
        assert store.get(stored.id) == stored

    def test_of_concurrent_creates_one_succeeds(self, store: JobStore) -> None:
        """Of eight threads that create one id at once, one succeeds, and its job is the one that is stored."""

        def create(number: int) -> Job | None:
            try:
                return store.create(make_job(id="contended", priority=number))
            except JobExistsError:
                return None

        (winner,) = [job for job in in_threads(THREADS, create) if job is not None]
        assert store.get("contended") == winner

    def test_an_id_may_be_created_again_after_delete(self, store: JobStore) -> None:
        """After `delete`, the id starts again at a revision above any that the deleted job had."""
        first = store.create(make_job())
        first = store.replace(first, expected_revision=first.revision)
        _delete(store, first)
        second = store.create(make_job(id=first.id, priority=5))
        assert second.revision > first.revision
        assert store.get(first.id) == second

    def test_a_writer_of_the_deleted_job_is_refused(self, store: JobStore) -> None:
        """A writer that still holds a revision of the deleted job cannot overwrite the new one."""
        old = store.create(make_job())
        _delete(store, old)
        new = store.create(make_job(id=old.id, priority=5))
        with pytest.raises(RevisionConflictError):
            store.replace(old, expected_revision=old.revision)
        assert store.get(old.id) == new

    def test_of_concurrent_creates_over_a_deleted_job_one_succeeds(self, store: JobStore) -> None:
        """Of eight threads that create a deleted id at once, one succeeds."""
        old = store.create(make_job(id="contended"))
        _delete(store, old)

        def create(number: int) -> Job | None:
            try:
                return store.create(make_job(id="contended", priority=number))
            except JobExistsError:
                return None

        (winner,) = [job for job in in_threads(THREADS, create) if job is not None]
        assert winner.revision > old.revision
        assert store.get("contended") == winner

    def test_an_id_may_be_deleted_and_created_often(self, store: JobStore) -> None:
        """The revision rises over any number of lives of an id."""
        revisions = []
        for _ in range(3):
            revisions.append(store.create(make_job(id="phoenix")).revision)
            assert store.delete("phoenix", expected_revision=revisions[-1])
        assert revisions == sorted(set(revisions))

    # --- get

    def test_get_raises_for_an_unknown_id(self, store: JobStore) -> None:
        """`get` raises `JobNotFoundError` if the job does not exist."""
        with pytest.raises(JobNotFoundError):
            store.get("unknown")

    def test_get_raises_for_a_deleted_job(self, store: JobStore) -> None:
        """`get` raises `JobNotFoundError` after `delete`."""
        job = store.create(make_job())
        _delete(store, job)
        with pytest.raises(JobNotFoundError):
            store.get(job.id)

    # --- replace

    def test_replace_stores_and_raises_the_revision_by_one(self, store: JobStore) -> None:
        """`replace` returns the job with a revision one higher, and stores exactly that."""
        job = store.create(make_job())
        stored = store.replace(evolve(job, priority=9), expected_revision=job.revision)
        assert stored == evolve(job, priority=9, revision=job.revision + 1)
        assert store.get(job.id) == stored

    def test_replace_goes_by_the_expected_revision_alone(self, store: JobStore) -> None:
        """The revision that the given job holds does not matter."""
        job = store.create(make_job())
        assert store.replace(evolve(job, revision=77), expected_revision=job.revision).revision == job.revision + 1

    def test_replace_refuses_another_revision(self, store: JobStore) -> None:
        """`replace` over an older or newer revision raises `RevisionConflictError` and changes nothing."""
        job = store.create(make_job())
        stored = store.replace(job, expected_revision=job.revision)
        for wrong in (job.revision, stored.revision + 1, 0):
            with pytest.raises(RevisionConflictError):
                store.replace(evolve(job, priority=9), expected_revision=wrong)
        assert store.get(job.id) == stored

    def test_replace_raises_for_an_unknown_job(self, store: JobStore) -> None:
        """`replace` creates no job: it raises `JobNotFoundError`."""
        with pytest.raises(JobNotFoundError):
            store.replace(make_job(id="unknown"), expected_revision=0)
        with pytest.raises(JobNotFoundError):
            store.get("unknown")

    def test_replace_raises_for_a_deleted_job(self, store: JobStore) -> None:
        """`replace` brings no deleted job back, whichever revision is expected."""
        job = store.create(make_job())
        _delete(store, job)
        for revision in range(job.revision, job.revision + 3):
            with pytest.raises(JobNotFoundError):
                store.replace(job, expected_revision=revision)

    def test_of_concurrent_replaces_one_succeeds(self, store: JobStore) -> None:
        """Of eight threads that replace one revision at once, one succeeds."""
        job = store.create(make_job())

        def replace(number: int) -> Job | None:
            try:
                return store.replace(evolve(job, priority=number), expected_revision=job.revision)
            except RevisionConflictError:
                return None

        (winner,) = [stored for stored in in_threads(THREADS, replace) if stored is not None]
        assert store.get(job.id) == winner

    def test_compare_and_swap_loses_no_update(self, store: JobStore) -> None:
        """Eight threads that each add to a number ten times, by get and replace, add eighty in all."""
        job_id = store.create(make_job(priority=0)).id

        def add(_: int) -> None:
            done = 0
            while done < 10:
                job = store.get(job_id)
                try:
                    store.replace(evolve(job, priority=job.priority + 1), expected_revision=job.revision)
                except RevisionConflictError:
                    continue
                done += 1

        first = store.get(job_id).revision
        in_threads(THREADS, add)
        assert store.get(job_id).priority == 10 * THREADS
        assert store.get(job_id).revision == first + 10 * THREADS

    # --- delete, now, close

    def test_delete_forgets_the_job(self, store: JobStore) -> None:
        """`delete` returns True, and no query shows the job."""
        job = store.create(make_job())
        assert store.delete(job.id, expected_revision=job.revision) is True
        for query in (JobQuery(), JobQuery(order="ready"), JobQuery(order="due")):
            assert store.query(query).items == ()

    def test_a_second_delete_returns_false(self, store: JobStore) -> None:
        """`delete` of a deleted or unknown job returns False."""
        job = store.create(make_job())
        _delete(store, job)
        assert _delete(store, job) is False
        assert store.delete("unknown", expected_revision=1) is False

    def test_delete_refuses_another_revision(self, store: JobStore) -> None:
        """`delete` of an older or newer revision raises `RevisionConflictError` and changes nothing."""
        job = store.create(make_job())
        stored = store.replace(job, expected_revision=job.revision)
        for wrong in (job.revision, stored.revision + 1, 0):
            with pytest.raises(RevisionConflictError):
                store.delete(job.id, expected_revision=wrong)
        assert store.get(job.id) == stored

    def test_a_late_delete_leaves_a_later_job_of_the_id_alone(self, store: JobStore) -> None:
        """A `delete` that is repeated after the id was created again does not touch the new job."""
        old = store.create(make_job())
        _delete(store, old)
        new = store.create(make_job(id=old.id, priority=5))
        with pytest.raises(RevisionConflictError):
            _delete(store, old)
        assert store.get(old.id) == new

    def test_of_a_concurrent_delete_and_replace_one_succeeds(self, store: JobStore) -> None:
        """Of deletes and replaces of one revision at once, one succeeds."""
        job = store.create(make_job())

        def change(number: int) -> bool:
            try:
                if number % 2:
                    return _delete(store, job)
                return store.replace(job, expected_revision=job.revision) is not None
            except (RevisionConflictError, JobNotFoundError):
                return False

        assert sum(in_threads(THREADS, change)) == 1

    def test_of_concurrent_deletes_one_returns_true(self, store: JobStore) -> None:
        """Of eight threads that delete one job at once, one gets True."""
        job = store.create(make_job())
        assert sum(in_threads(THREADS, lambda _: _delete(store, job))) == 1

    def test_now_is_aware_and_in_utc(self, store: JobStore) -> None:
        """`now` is aware, in UTC, and does not go back."""
        first, second = store.now(), store.now()
        assert first.utcoffset() == timedelta(0)
        assert first <= second

    def test_close_twice(self, store: JobStore) -> None:
        """A second `close` does nothing."""
        store.create(make_job())
        store.close()
        store.close()

    # --- query

    def test_newest_first(self, store: JobStore, now: datetime) -> None:
        """``newest`` sorts by creation, newest first, ties by id, and holds all jobs."""
        for job_id, age in (("d", 3), ("b", 1), ("c", 1), ("a", 2)):
            store.create(make_job(id=job_id, created_at=now - age * SECOND))
        store.create(make_ended_job(id="e", created_at=now))
        assert _ids(store, JobQuery()) == ["e", "b", "c", "a", "d"]

    def test_ready_first_by_priority_then_by_age(self, store: JobStore, now: datetime) -> None:
        """``ready`` sorts by priority, highest first, then longest ready, then id."""
        for job_id, priority, age in (("a", 0, 9), ("b", 5, 1), ("c", 5, 1), ("d", 5, 3), ("e", -5, 99)):
            store.create(make_job(id=job_id, priority=priority, ready_at=now - age * SECOND))
        assert _ids(store, JobQuery(order="ready", ready_by=now)) == ["d", "b", "c", "a", "e"]

    def test_ready_leaves_out_what_is_not_ready(self, store: JobStore, now: datetime) -> None:
        """``ready`` shows jobs whose ``ready_at`` is at or before ``ready_by``, and none that cannot be claimed."""
        store.create(make_job(id="exactly", ready_at=now))
        store.create(make_job(id="later", ready_at=now + timedelta(microseconds=1)))
        store.create(make_ended_job(id="ended"))
        assert _ids(store, JobQuery(order="ready", ready_by=now)) == ["exactly"]
        assert _ids(store, JobQuery(order="ready")) == ["exactly", "later"]

    def test_ready_goes_by_machine(self, store: JobStore, now: datetime) -> None:
        """``ready`` shows jobs that any machine may claim, and those of the one that is named."""
        store.create(make_job(id="any", ready_at=now))
        store.create(make_job(id="here", machine="here", ready_at=now))
        store.create(make_job(id="there", machine="there", ready_at=now))
        assert _ids(store, JobQuery(order="ready", ready_by=now)) == ["any"]
        assert _ids(store, JobQuery(order="ready", ready_by=now, machine="here")) == ["any", "here"]

    def test_due_goes_by_when_it_was_due(self, store: JobStore, now: datetime) -> None:
        """``due`` shows jobs whose ``due_at`` is at or before ``due_by``, longest due first, ties by id."""
        for job_id, age in (("c", 1), ("b", 1), ("d", 2), ("later", -1)):
            store.create(make_job(id=job_id, finish_by=now - age * SECOND))
        store.create(make_ended_job(id="owes", updated_at=now - 9 * SECOND))
        store.create(
            make_ended_job(
                id="settled", attempts=(), audio_clean_up=CleanUp.NONE, pieces_clean_up=CleanUp.NONE, expired_at=None
            )
        )
        assert _ids(store, JobQuery(order="due", due_by=now)) == ["owes", "d", "b", "c"]
        assert _ids(store, JobQuery(order="due")) == ["owes", "d", "b", "c", "later"]

    def test_ended_goes_by_when_it_ended(self, store: JobStore, now: datetime) -> None:
        """``ended`` shows jobs that were created and ended at or before ``due_by`` and are kept, the oldest first."""

        def ended(job_id: str, began: int, lasted: int, **fields: Any) -> None:
            created_at = now - began * SECOND
            times = {"created_at": created_at, "ended_at": created_at + lasted * SECOND}
            store.create(make_ended_job(id=job_id, **{**times, "expired_at": None, **fields}))

        for job_id, began, lasted in (("c", 5, 1), ("b", 5, 5), ("d", 7, 7), ("later", 8, 9)):
            ended(job_id, began, lasted)
        ended("other", 9, 1, status=JobStatus.CANCELLED)
        ended("expired", 9, 1, expired_at=now)
        ended("set-back", -1, -2)
        store.create(make_job(id="running"))
        assert _ids(store, JobQuery(order="ended", due_by=now)) == ["other", "d", "b", "c"]
        complete = frozenset({JobStatus.COMPLETE})
        assert _ids(store, JobQuery(order="ended", due_by=now, statuses=complete)) == ["d", "b", "c"]
        job = store.get("d")
        store.replace(evolve(job, expired_at=now), expected_revision=job.revision)
        assert _ids(store, JobQuery(order="ended", statuses=complete)) == ["later", "b", "c", "set-back"]

    def test_query_by_tenant_status_and_backend(self, store: JobStore, now: datetime) -> None:
        """Conditions narrow a query, each alone and all together; an empty set matches nothing."""
        for number, (job_id, tenant, status, backend) in enumerate(
            (
                ("a", "acme", JobStatus.PENDING, "modal"),
                ("b", "acme", JobStatus.FAILED, "modal"),
                ("c", "acme", JobStatus.FAILED, "inline"),
                ("d", None, JobStatus.FAILED, "modal"),
                ("e", "other", JobStatus.COMPLETE, "inline"),
            )
        ):
            created_at = now - number * SECOND
            store.create(make_job(id=job_id, tenant=tenant, status=status, backend=backend, created_at=created_at))
        failed = frozenset({JobStatus.FAILED})
        assert _ids(store, JobQuery(tenant="acme")) == ["a", "b", "c"]
        assert _ids(store, JobQuery(statuses=failed)) == ["b", "c", "d"]
        assert _ids(store, JobQuery(statuses=failed | {JobStatus.COMPLETE})) == ["b", "c", "d", "e"]
        assert _ids(store, JobQuery(backends=frozenset({"inline"}))) == ["c", "e"]
        assert _ids(store, JobQuery(tenant="acme", statuses=failed, backends=frozenset({"modal"}))) == ["b"]
        assert _ids(store, JobQuery(statuses=frozenset())) == []
        assert _ids(store, JobQuery(backends=frozenset())) == []
        assert _ids(store, JobQuery(tenant="nobody")) == []

    def test_a_query_sees_the_newest_revision(self, store: JobStore, now: datetime) -> None:
        """A query goes by the current record, not by older ones."""
        job = store.create(make_job(priority=1, ready_at=now))
        stored = store.replace(evolve(job, status=JobStatus.FAILED, ready_at=None), expected_revision=job.revision)
        assert store.query(JobQuery(statuses=frozenset({JobStatus.FAILED}))).items == (stored,)
        assert store.query(JobQuery(statuses=frozenset({JobStatus.PENDING}))).items == ()
        assert store.query(JobQuery(order="ready")).items == ()

    @pytest.mark.parametrize("order", ["newest", "ready", "due"])
    def test_pages_show_every_job_once(self, store: JobStore, now: datetime, order: str) -> None:
        """Pages of any size hold every job once, in order; the last page has no cursor."""
        for number in range(23):
            store.create(
                make_job(
                    priority=number % 3,
                    created_at=now - (number % 5) * SECOND,
                    ready_at=now - (number % 4) * SECOND,
                    finish_by=now + (number % 5) * SECOND,
                )
            )
        query = JobQuery(order=order, limit=1000)  # type: ignore[arg-type]  # any order is tested
        whole = _walk(store, query)
        assert len({job.id for job in whole}) == 23
        for limit in (1, 7, 22, 23, 24):
            assert _walk(store, evolve(query, limit=limit)) == whole

    def test_pages_hold_while_others_write(self, store: JobStore, now: datetime) -> None:
        """Jobs that match all the time are seen exactly once, while others are created, deleted and changed."""
        standing = [store.create(make_job(created_at=now - n * SECOND)) for n in range(12)]
        fleeting = [store.create(make_job(created_at=now - n * SECOND)) for n in range(12)]
        query = JobQuery(limit=3)
        seen: list[str] = []
        for turn in range(100):
            page = store.query(query)
            seen += [job.id for job in page.items]
            if page.cursor is None:
                break
            query = evolve(query, cursor=page.cursor)
            if fleeting:
                _delete(store, fleeting.pop())
            store.create(make_job(created_at=now + (turn - 6) * SECOND))
            changed = store.get(standing[turn % 12].id)
            store.replace(evolve(changed, progress=50.0), expected_revision=changed.revision)
        assert [seen.count(job.id) for job in standing] == [1] * 12
        assert len(seen) == len(set(seen))

    @pytest.mark.parametrize("limit", [0, -1, 1001])
    def test_a_page_has_1_to_1000_items(self, store: JobStore, limit: int) -> None:
        """Another limit raises `InvalidRequestError`."""
        with pytest.raises(InvalidRequestError):
            store.query(JobQuery(limit=limit))

    @pytest.mark.parametrize("cursor", ["", "x", "é", "AAAA", "bnVsbA", "W10", "WzEsMiwzXQ", "e30", "[" * 5000])
    def test_junk_is_no_cursor(self, store: JobStore, cursor: str) -> None:
        """A cursor that no page gave raises `InvalidRequestError`."""
        with pytest.raises(InvalidRequestError):
            store.query(JobQuery(cursor=cursor))

    @pytest.mark.parametrize(
        "place",
        [(10**30, "id"), (-(10**30), "id"), (1 << 63, "id"), (-(1 << 63) - 1, "id"), (0, "\ud800")],
        ids=ascii,
    )
    def test_a_forged_cursor_is_no_cursor(self, store: JobStore, place: Place) -> None:
        """A well-formed cursor to a place that no job can have raises `InvalidRequestError`, as junk does."""
        store.create(make_job())
        query = JobQuery(limit=1)
        with pytest.raises(InvalidRequestError):
            store.query(evolve(query, cursor=write_cursor(query, place)))

    @pytest.mark.parametrize("place", [(10**30, 0, "id"), (0, 10**30, "id"), (0, 0, "\udfff")], ids=ascii)
    def test_a_forged_cursor_is_no_cursor_of_the_queue(self, store: JobStore, place: Place) -> None:
        """A cursor to such a place in the order of claims raises `InvalidRequestError` too."""
        store.create(make_job())
        query = JobQuery(order="ready", limit=1)
        with pytest.raises(InvalidRequestError):
            store.query(evolve(query, cursor=write_cursor(query, place)))

    def test_a_cursor_belongs_to_its_query(self, store: JobStore, now: datetime) -> None:
        """A cursor of another query raises `InvalidRequestError`."""
        for _ in range(2):
            store.create(make_job(tenant="acme"))
        cursor = store.query(JobQuery(tenant="acme", limit=1)).cursor
        assert cursor is not None
        for other in (
            JobQuery(),
            JobQuery(tenant="other"),
            JobQuery(tenant="acme", statuses=frozenset({JobStatus.PENDING})),
            JobQuery(tenant="acme", backends=frozenset({"inline"})),
            JobQuery(tenant="acme", order="due"),
            JobQuery(tenant="acme", order="ready", ready_by=now),
        ):
            with pytest.raises(InvalidRequestError):
                store.query(evolve(other, cursor=cursor))

    # --- the records

    def test_the_document_is_the_job(self, store: JobStore) -> None:
        """`load_job` reads what a write stored as the job; only the revision may be kept beside the document."""
        job = store.create(make_ended_job())
        assert self._stored(store, job) == job
        job = store.replace(evolve(job, progress=50.0), expected_revision=job.revision)
        assert self._stored(store, job) == job

    def _stored(self, store: JobStore, job: Job) -> Job:
        document = self.raw_get(store, job.id)
        assert document is not None
        return evolve(load_job(document), revision=job.revision)

    def test_a_refused_write_stores_nothing(self, store: JobStore) -> None:
        """A create or replace that raises leaves the document as it was."""
        job = store.create(make_job())
        before = self.raw_get(store, job.id)
        with pytest.raises(JobExistsError):
            store.create(make_job(id=job.id, priority=5))
        with pytest.raises(RevisionConflictError):
            store.replace(evolve(job, priority=5), expected_revision=job.revision + 1)
        assert self.raw_get(store, job.id) == before

    def test_delete_removes_the_document(self, store: JobStore) -> None:
        """Nothing of a deleted job's record is kept, such as the URL of its audio."""
        job = store.create(make_job())
        _delete(store, job)
        assert self.raw_get(store, job.id) is None

    def test_the_job_is_the_document(self, store: JobStore) -> None:
        """What is stored is what `get` and `query` return, also if another instance or version wrote it."""
        job = store.create(make_job())
        written = evolve(job, fingerprint="f" * 64, progress=12.5)
        self.raw_set(store, job.id, json.dumps({**json.loads(dump_job(written)), "fromTheFuture": [1]}))
        assert store.get(job.id) == written
        assert store.query(JobQuery()).items == (written,)

    def test_a_record_of_an_older_version(self, store: JobStore) -> None:
        """Fields that an older version did not write take their defaults; the next write has this protocol."""
        job = store.create(make_job())
        fields = json.loads(dump_job(job))
        needed = {field.name for field in attrs.fields(Job) if field.default is attrs.NOTHING}
        old = {name: value for name, value in fields.items() if name in needed}
        self.raw_set(store, job.id, json.dumps({**old, "protocol": 0}))
        found = store.get(job.id)
        assert found == evolve(job, protocol=0)
        assert store.replace(found, expected_revision=found.revision).protocol == PROTOCOL
        assert self._stored(store, job).protocol == PROTOCOL

    def _make_newer(self, store: JobStore, job: Job) -> str | None:
        """Store the job as a newer version would; return the document that is stored then."""
        document = json.dumps({**json.loads(dump_job(job)), "protocol": PROTOCOL + 1})
        self.raw_set(store, job.id, document)
        return self.raw_get(store, job.id)

    def test_a_record_of_a_newer_version_is_left_alone(self, store: JobStore) -> None:
        """`get`, `replace`, `delete` raise `JobUnreadableError`, queries leave the job out, its document stays."""
        job, other = store.create(make_job()), store.create(make_job())
        document = self._make_newer(store, job)
        with pytest.raises(JobUnreadableError, match=job.id):
            store.get(job.id)
        with pytest.raises(JobUnreadableError):
            store.replace(job, expected_revision=job.revision)
        with pytest.raises(JobUnreadableError):
            store.delete(job.id, expected_revision=job.revision)
        for query in (JobQuery(), JobQuery(order="ready"), JobQuery(order="due")):
            assert store.query(query).items == (other,)
        assert self.raw_get(store, job.id) == document

    def test_a_job_of_a_newer_version_is_not_claimed(
        self, store: JobStore, claiming: SupportsClaim, now: datetime
    ) -> None:
        """`claim` neither returns nor changes it, and hands out the jobs behind it, also of the same tenant."""
        for tenant in (None, "acme"):
            job = store.create(make_job(tenant=tenant, ready_at=now, priority=9))
            other = store.create(make_job(tenant=tenant, ready_at=now))
            document = self._make_newer(store, job)
            assert claimed_ids(claiming, limit=1) == [other.id]
            assert claimed_ids(claiming) == []
            assert document == self.raw_get(store, job.id)
            self.raw_set(store, job.id, dump_job(job))
            assert store.get(job.id) == job
            assert claimed_ids(claiming) == [job.id]

    # --- several instances

    def test_another_instance_sees_what_was_written(self, store: JobStore, other: JobStore) -> None:
        """Every later call of another instance sees what a call returned."""
        job = store.create(make_job())
        assert other.get(job.id) == job
        stored = other.replace(evolve(job, priority=3), expected_revision=job.revision)
        assert store.query(JobQuery()).items == (stored,)
        assert _delete(store, stored)
        with pytest.raises(JobNotFoundError):
            other.get(job.id)

    def test_instances_exclude_each_other(self, store: JobStore, other: JobStore) -> None:
        """A create or replace that one instance won is refused to the other."""
        job = store.create(make_job())
        with pytest.raises(JobExistsError):
            other.create(make_job(id=job.id))
        store.replace(job, expected_revision=job.revision)
        with pytest.raises(RevisionConflictError):
            other.replace(job, expected_revision=job.revision)

    def test_what_was_written_outlives_the_instance(self, store: JobStore, other: JobStore) -> None:
        """A job outlives the closing of the instance that wrote it."""
        job = store.create(make_job())
        store.close()
        assert other.get(job.id) == job
