"""Is each piece of a video kept once, found again, and passed over if it is bad?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch.errors import RenderError, RenderStopped
from renderdispatch.messages import Pieces, SegmentCounts
from renderdispatch.plumbing.pieces import GENERATIONS_OF_HELPERS, HEAD_BYTES, segment_name
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import Slots, StorageAdapter
from renderdispatch.runner.piece_stores import GrantedPieces, Piece, Written, folder_of
from renderdispatch.runner.reporting import told_to_stop
from renderdispatch.runner.slots import KeptSlots, open_slots
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import make_order
from renderdispatch.testing.renderers import make_helper_order, make_pieces, make_plan, make_segment

DIGEST = "d" * 64
PREFIX = "job/pieces/x/"
HOUR = timedelta(hours=1)


class Shelf:
    """Slots of one video, as often as a test opens them, and the storage below."""

    def __init__(self, storage: StorageAdapter, pieces: Pieces, folder: Path, stack: ExitStack) -> None:
        self.storage = storage
        self.pieces = pieces
        self._folder = folder
        self._stack = stack

    def lead(self, *, stop: Stop | None = None) -> Slots:
        """Open the slots of a lead."""
        order = make_order(self.storage, pieces=self.pieces, parallel=3)
        return self._stack.enter_context(open_slots(order, stop=stop or Stop(error=told_to_stop)))

    def helper(self, share: int = 1) -> Slots:
        """Open the slots of a helper."""
        lead = make_order(self.storage, pieces=self.pieces, parallel=3)
        order = make_helper_order(lead, self.storage, share=share)
        return self._stack.enter_context(open_slots(order, stop=Stop(error=told_to_stop)))

    def file(self, content: bytes) -> Path:
        """Return a new file with this content."""
        path = self._folder / f"file-{len(list(self._folder.iterdir()))}"
        path.write_bytes(content)
        return path

    def put(self, name: str, content: bytes) -> None:
        """Store a piece, whoever wrote it."""
        self.storage.put(PREFIX + name, content)


@pytest.fixture(params=["folder", "file URLs", "memory URLs"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    """Slots in a folder of this machine, or behind grants."""
    storage: StorageAdapter = MemoryStorage() if request.param == "memory URLs" else FsspecStorage(tmp_path / "objects")
    pieces = Pieces(slots=8, folder=str(tmp_path / "objects" / PREFIX), lent=(str(tmp_path / "objects/lent"),))
    if request.param != "folder":
        get = {name: storage.sign_get(f"lent/{name}", expires_in=HOUR) for name in ("plan.0", "002.0")}
        pieces = make_pieces(storage, PREFIX, slots=8, lent=get)
    (tmp_path / "files").mkdir()
    with ExitStack() as stack:
        yield Shelf(storage, pieces, tmp_path / "files", stack)
    storage.close()


def segment(index: int = 2, body: bytes = b"a body", digest: str = DIGEST) -> bytes:
    """Return a good segment."""
    return make_segment(digest, index, body)


def test_a_segment_is_kept_once(shelf: Shelf) -> None:
    """The first commit counts; a second worker's is in vain, and finds the first one's bytes."""
    lead, helper = shelf.lead(), shelf.helper()
    assert not helper.is_drawn(DIGEST, 2)
    assert helper.commit(DIGEST, 2, shelf.file(segment())) == "committed"
    assert lead.commit(DIGEST, 2, shelf.file(segment(body=b"another"))) == "twice"
    assert lead.is_drawn(DIGEST, 2)
    assert lead.fetch(DIGEST, 2, into := shelf.file(b""))
    assert into.read_bytes() == segment()


def test_what_was_looked_for_is_found_once_it_is_there(shelf: Shelf) -> None:
    """A segment that was missing is found when another worker has committed it."""
    lead, helper = shelf.lead(), shelf.helper()
    assert not lead.is_drawn(DIGEST, 5)
    assert not lead.fetch(DIGEST, 5, shelf.file(b""))
    helper.commit(DIGEST, 5, shelf.file(segment(5)))
    assert lead.is_drawn(DIGEST, 5)


@pytest.mark.parametrize(
    "bad",
    [b"", b"nonsense", segment(3), segment(digest="e" * 64), b"x" * 5000],
    ids=["empty", "nonsense", "another index", "another plan", "long"],
)
def test_a_bad_segment_is_passed_over(shelf: Shelf, bad: bytes) -> None:
    """What is not this segment of this plan leaves the next generation to the next worker."""
    shelf.put(segment_name(2, 0), bad)
    lead, helper = shelf.lead(), shelf.helper()
    assert not lead.is_drawn(DIGEST, 2)
    assert helper.commit(DIGEST, 2, shelf.file(segment())) == "committed"
    assert lead.fetch(DIGEST, 2, into := shelf.file(b""))
    assert into.read_bytes() == segment()


@pytest.mark.parametrize(
    "cut", [segment()[:-1], segment()[:-1] + b"!", segment() + b"!"], ids=["short", "other", "long"]
)
def test_a_segment_that_is_bad_as_a_whole_counts_as_not_drawn(shelf: Shelf, cut: bytes) -> None:
    """A good head with a bad body is found out when it is fetched, and is drawn again."""
    shelf.put(segment_name(2, 0), cut)
    lead = shelf.lead()
    assert lead.is_drawn(DIGEST, 2)
    assert not lead.fetch(DIGEST, 2, into := shelf.file(b""))
    assert not into.exists()
    assert not lead.is_drawn(DIGEST, 2)
    assert lead.commit(DIGEST, 2, shelf.file(segment())) == "committed"
    assert lead.fetch(DIGEST, 2, into)


def test_no_more_is_copied_than_the_head_says(shelf: Shelf) -> None:
    """A segment that goes on and on does not fill the disk."""
    shelf.put(segment_name(2, 0), segment() + bytes(5 << 20))
    store = folder_of(shelf.pieces, local=True) or GrantedPieces(shelf.pieces.grants, local=True, stop=Stop())
    assert store.fetch(Piece(segment_name(2, 0)), into := shelf.file(b""), HEAD_BYTES + 3)
    assert into.read_bytes() == segment()[: HEAD_BYTES + 3]
    copied = _Copied()
    slots = KeptSlots(copied, count=8, stop=Stop())
    assert not slots.fetch(DIGEST, 2, shelf.file(b""))
    assert copied.most == len(segment()) + 1


class _Copied:
    """A store with a segment that is longer than its head says; remembers how much of it was asked for."""

    most = 0

    def read(self, piece: Piece, begin: int, size: int) -> bytes | None:
        return segment()[begin : begin + size] if piece == Piece(segment_name(2, 0)) else None

    def put(self, name: str, path: Path) -> Written:
        raise NotImplementedError

    def fetch(self, piece: Piece, into: Path, most: int) -> bool:
        assert piece == Piece(segment_name(2, 0))
        self.most = most
        into.write_bytes((segment() + bytes(100))[:most])
        return True


def test_helpers_cannot_use_up_all_generations(shelf: Shelf) -> None:
    """A helper writes the first generations alone; the lead writes the others too."""
    for generation in range(GENERATIONS_OF_HELPERS):
        shelf.put(segment_name(2, generation), b"nonsense")
    assert shelf.helper().commit(DIGEST, 2, shelf.file(segment())) == "kept"
    assert shelf.lead().commit(DIGEST, 2, shelf.file(segment())) == "committed"
    assert shelf.helper().is_drawn(DIGEST, 2)


def test_when_all_generations_are_bad_the_file_alone_has_the_segment(shelf: Shelf) -> None:
    """After four bad ones nothing can be kept, and the lead goes on."""
    for generation in range(4):
        shelf.put(segment_name(2, generation), b"nonsense")
    assert shelf.lead().commit(DIGEST, 2, shelf.file(segment())) == "kept"


def test_a_plan_is_kept_once(shelf: Shelf) -> None:
    """The first plan is kept; it is read by parts, and another one is not put in its place."""
    lead, plan = shelf.lead(), make_plan(DIGEST)
    assert lead.read_plan(0, 100) is None
    assert lead.put_plan(shelf.file(plan))
    helper = shelf.helper()
    assert helper.read_plan(0, 1 << 20) == plan
    assert helper.read_plan(1020, 10) == plan[1020:1030]
    assert not shelf.lead().put_plan(shelf.file(make_plan("e" * 64)))


def test_the_same_plan_is_kept_already(shelf: Shelf) -> None:
    """A run that made the plan that is kept has kept it; nothing is written."""
    assert shelf.lead().put_plan(shelf.file(make_plan(DIGEST)))
    before = {info.key for info in shelf.storage.list("")}
    assert shelf.lead().put_plan(shelf.file(make_plan(DIGEST)))
    assert {info.key for info in shelf.storage.list("") if "plan" in info.key} == {k for k in before if "plan" in k}


@pytest.mark.parametrize(
    "bad",
    [b"", b"nonsense", make_plan(DIGEST)[:-1], make_plan(DIGEST).replace(b"an index", b"AN INDEX")],
    ids=["empty", "nonsense", "short", "index"],
)
def test_a_bad_plan_is_passed_over(shelf: Shelf, bad: bytes) -> None:
    """A plan whose head, index or size is wrong is not read, and another one is written."""
    shelf.put("plan.0", bad)
    lead = shelf.lead()
    assert lead.read_plan(0, 10) is None
    assert lead.put_plan(shelf.file(make_plan(DIGEST)))
    assert shelf.helper().read_plan(0, 1 << 20) == make_plan(DIGEST)


def test_pieces_of_several_lenders_are_read(tmp_path: Path) -> None:
    """A job that repeats a repeated one finds what either of them drew."""
    storage, folders = FsspecStorage(tmp_path), [tmp_path / "first", tmp_path / "second"]
    for index, folder in enumerate(folders):
        storage.put(f"{folder.name}/{segment_name(index, 0)}", segment(index))
    pieces = Pieces(slots=8, folder=str(tmp_path / "own"), lent=tuple(map(str, folders)))
    with Stop() as stop, open_slots(make_order(storage, pieces=pieces), stop=stop) as slots:
        assert [index for index in range(8) if slots.is_drawn(DIGEST, index)] == [0, 1]


def test_lent_pieces_are_read(shelf: Shelf) -> None:
    """The pieces of the job that is repeated count as drawn; nothing is written there."""
    shelf.storage.put("lent/plan.0", make_plan(DIGEST))
    shelf.storage.put("lent/002.0", segment())
    lead = shelf.lead()
    assert lead.read_plan(0, 1 << 20) == make_plan(DIGEST)
    assert lead.is_drawn(DIGEST, 2)
    assert lead.fetch(DIGEST, 2, shelf.file(b""))
    assert not lead.is_drawn(DIGEST, 3)


def test_one_of_many_at_once_commits(shelf: Shelf) -> None:
    """Of eight workers that commit one segment at once, one commits it, and the others were not needed."""
    workers = [shelf.lead() for _ in range(8)]
    file, became = shelf.file(segment()), list[str]()
    start = threading.Barrier(len(workers))

    def commit(slots: Slots) -> None:
        start.wait(10)
        became.append(slots.commit(DIGEST, 2, file))

    threads = [threading.Thread(target=commit, args=(slots,)) for slots in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(became) == ["committed"] + ["twice"] * 7


def test_every_call_ends_once_the_render_is_to_stop(shelf: Shelf) -> None:
    """After a stop, each call raises."""
    stop = Stop(error=told_to_stop)
    slots = shelf.lead(stop=stop)
    stop.request("cancelled")
    calls: list[Callable[[], object]] = [
        lambda: slots.read_plan(0, 1),
        lambda: slots.put_plan(Path("none")),
        lambda: slots.is_drawn(DIGEST, 0),
        lambda: slots.commit(DIGEST, 0, Path("none")),
        lambda: slots.fetch(DIGEST, 0, Path("none")),
        lambda: slots.report(SegmentCounts(total=1, standing=0, own=0), planned=False),
    ]
    for call in calls:
        with pytest.raises(RenderStopped, match="cancelled"):
            call()


def test_an_order_from_afar_names_no_folder(tmp_path: Path) -> None:
    """A folder of this machine is refused, in an order that came over a network."""
    order = make_order(FsspecStorage(tmp_path), pieces=Pieces(slots=2, folder=str(tmp_path)), local=False)
    with pytest.raises(RenderError) as refused, open_slots(order, stop=Stop()):
        pass
    assert refused.value.code == "order.local-url"
