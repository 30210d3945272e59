"""Does an order give access to the plan and the segments of its own job alone?"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from attrs import define

from renderdispatch import RenderService, StorageKey
from renderdispatch.engine import layout
from renderdispatch.engine.orders import make_grants
from renderdispatch.errors import InvalidRequestError, JobNotFoundError, ObjectNotFoundError, StorageError
from renderdispatch.messages import Grants, RenderOrder
from renderdispatch.plumbing import pieces
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually

_http = httpx.Client(verify=False)  # loopback, and no certificates to load


class Declared:
    """A backend far away that declares what it draws with, and keeps the orders."""

    locality = Locality.WORLD
    slots = None
    device_class = "cpu-x86-64"

    def __init__(self) -> None:
        self.orders: list[RenderOrder] = []
        self.cancelled = False

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        self.orders.append(order)
        return BackendCall("call")

    def poll(self, call: BackendCall) -> CallState:
        return CallState(status=CallStatus.ENDED if self.cancelled else CallStatus.RUNNING)

    def cancel(self, call: BackendCall) -> None:
        self.cancelled = True

    def close(self) -> None:
        pass


@define
class Renting:
    """A tenant, with the order and the grants of a job of its own."""

    service: RenderService
    job_id: str
    order: RenderOrder
    grants: Grants

    @property
    def prefix(self) -> str:
        return layout.prefix_of(self.service.get(self.job_id))


@pytest.fixture
def backend() -> Declared:
    return Declared()


@pytest.fixture
def service(storage: R2Storage, backend: Declared) -> Iterator[RenderService]:
    with RenderService(MemoryJobStore(), storage, backend, worker=False) as service:
        yield service


def _renting(service: RenderService, backend: Declared, tenant: str) -> Renting:
    own = service.for_tenant(tenant)
    job_id = own.submit(b"RIFF" * 16_000, duration=61).id  # long enough for a minute
    service.tick()
    order = backend.orders[-1]
    assert order.job_id == job_id
    assert order.pieces is not None
    packed = _http.get(order.pieces.grants)
    assert packed.status_code == 200
    return Renting(own, job_id, order, Grants.model_validate_json(gzip.decompress(packed.content)))


@pytest.fixture
def acme(service: RenderService, backend: Declared) -> Renting:
    return _renting(service, backend, "acme")


@pytest.fixture
def other(service: RenderService, backend: Declared, acme: Renting) -> Renting:
    return _renting(service, backend, "other")


def _put(url: str, grants: Grants, body: bytes = b"a segment") -> int:
    return _http.put(url, content=body, headers=dict(grants.headers)).status_code


def test_grants_name_the_pieces_of_their_own_job(acme: Renting, other: Renting) -> None:
    """Each URL is of one key below the job's own prefix, and no two jobs share a key."""
    of_each = []
    for renting in (acme, other):
        urls = [*renting.grants.get.values(), *renting.grants.put.values(), *renting.grants.lent.values()]
        paths = {unquote(urlsplit(url).path) for url in urls}
        assert urls
        assert all(f"/renders/{renting.prefix}pieces/" in path for path in paths)
        of_each.append(paths)
    assert not of_each[0] & of_each[1]


def test_a_piece_is_written_once_and_read(acme: Renting) -> None:
    """By the URLs of the job's own grants."""
    name = pieces.segment_name(0, 0)
    assert _http.get(acme.grants.get[name]).status_code == 404
    assert _put(acme.grants.put[name], acme.grants) == 200
    assert _put(acme.grants.put[name], acme.grants, b"another") == 412
    assert _http.get(acme.grants.get[name]).content == b"a segment"


def test_a_url_opens_no_other_key(acme: Renting, other: Renting) -> None:
    """A URL of one tenant that is bent to a piece, a plan or the grants of another one is refused by storage."""
    name = pieces.segment_name(0, 0)
    assert _put(other.grants.put[name], other.grants) == 200
    assert other.order.pieces is not None
    for victim in (other.grants.get[name], other.grants.get[pieces.plan_name(0)], other.order.pieces.grants):
        path = urlsplit(victim).path
        bent = urlsplit(acme.grants.get[name])._replace(path=path).geturl()
        assert _http.get(bent).status_code == 403
        assert _http.get(urlsplit(victim)._replace(query="").geturl()).status_code in {400, 401, 403}
        bent = urlsplit(acme.grants.put[name])._replace(path=path).geturl()
        assert _put(bent, acme.grants) == 403
    assert _http.get(other.grants.get[name]).content == b"a segment"


def test_a_get_writes_nothing_and_a_put_reads_nothing(acme: Renting) -> None:
    """A URL is signed for one method."""
    name = pieces.segment_name(0, 0)
    assert _put(acme.grants.get[name], acme.grants) == 403
    assert _put(acme.grants.put[name], acme.grants) == 200
    assert _http.get(acme.grants.put[name], headers=dict(acme.grants.headers)).status_code == 403
    assert _http.delete(acme.grants.put[name], headers=dict(acme.grants.headers)).status_code == 403


def test_helpers_write_no_plan_and_leave_generations_to_the_lead(service: RenderService, acme: Renting) -> None:
    """However wrong they are, the lead can still write."""
    parts = service._engine.parts
    job = acme.service.get(acme.job_id)
    prefix = layout.pieces_prefix(acme.prefix, "cpu")
    grants = make_grants(job, prefix, signer=parts.storage, now=parts.store.now(), helpers=True)
    assert grants.put
    assert {name.rpartition(".")[2] for name in grants.put} == {"0", "1"}
    assert not any(name.startswith("plan") for name in grants.put)
    assert pieces.plan_name(0) in grants.get


@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_no_submitted_key_names_what_a_render_keeps(acme: Renting, other: Renting, whose: str, tmp_path: Path) -> None:
    """Neither as audio nor as a picture or a scene file: grants are as secret as the URLs in them."""
    victim = acme if whose == "its own" else other
    token = victim.order.token
    name = pieces.segment_name(0, 0)
    assert _put(victim.grants.put[name], victim.grants) == 200
    kept = [unquote(urlsplit(victim.grants.get[each]).path).partition("/renders/")[2] for each in (name, "plan.0")]
    grants = layout.grants_key(victim.prefix, token, helpers=False)
    helpers, stop = layout.grants_key(victim.prefix, token, helpers=True), layout.stop_key(victim.prefix, token)
    song = tmp_path / "song.wav"
    song.write_bytes(b"RIFF")
    for key in (*kept, grants, helpers, stop):
        with pytest.raises(InvalidRequestError) as audio:
            acme.service.submit(StorageKey(key))
        with pytest.raises(InvalidRequestError) as cover:
            acme.service.submit(song, cover=StorageKey(key))
        assert (audio.value.code, cover.value.code) == ("audio.denied", "cover.denied")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/pieces/", "//pieces/"),
        ("/pieces/", "/./pieces/"),
        ("/pieces/", "/x/../pieces/"),
        ("/jobs/", "//jobs/"),
        ("/jobs/", "/x/../jobs/"),
        ("/jobs/", "/../acme/jobs/"),
        ("/pieces/", "/PIECES/"),
        ("/pieces/", "/piece%73/"),
        ("/pieces/", "%2fpieces/"),
    ],
)
@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_no_other_spelling_of_a_key_names_it(
    storage: R2Storage, acme: Renting, other: Renting, whose: str, old: str, new: str
) -> None:
    """Keys are refused, or name nothing."""
    victim, name = acme if whose == "its own" else other, pieces.segment_name(0, 0)
    assert _put(victim.grants.put[name], victim.grants) == 200
    key = unquote(urlsplit(victim.grants.get[name]).path).partition("/renders/")[2]
    with storage.open(key) as kept:
        assert kept.read() == b"a segment"
    spelt = key.replace(old, new, 1)
    if whose == "another's":
        spelt = spelt.replace("tenants/other/", "tenants/acme/../other/", 1)
    with pytest.raises((InvalidRequestError, ObjectNotFoundError, StorageError)):
        acme.service.submit(StorageKey(spelt))


def test_a_tenant_borrows_no_pieces_of_another(acme: Renting, other: Renting) -> None:
    """Another's job cannot be repeated, which would lend what was drawn of it."""
    with pytest.raises(JobNotFoundError):
        acme.service.retry(other.job_id)


def test_the_service_without_tenants_is_held_to_it_too(service: RenderService, acme: Renting) -> None:
    """It reads no pieces either, whoever they belong to."""
    key = layout.grants_key(acme.prefix, acme.order.token, helpers=False)
    with pytest.raises(InvalidRequestError):
        service.submit(StorageKey(key))


def test_a_deleted_job_leaves_no_pieces(service: RenderService, storage: R2Storage, acme: Renting) -> None:
    """Its grants open nothing any more; what they still write goes later, by the tombstone that names the prefix."""
    assert _put(acme.grants.put[pieces.segment_name(0, 0)], acme.grants) == 200
    acme.service.cancel(acme.job_id)
    eventually(lambda: (service.tick(), acme.service.get(acme.job_id).ended)[1])
    acme.service.delete(acme.job_id)
    assert acme.order.pieces is not None
    assert _http.get(acme.order.pieces.grants).status_code == 404
    assert _http.get(acme.grants.get[pieces.segment_name(0, 0)]).status_code == 404
    left = [info.key for info in storage.list("")]
    assert [found[1] for key in left if (found := layout.read_tombstone(key)) is not None] == [
        layout.job_prefix("acme", acme.job_id, acme.order.video.key.split("/")[4])
    ]
