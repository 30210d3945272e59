"""Do messages keep their words on the wire, and their secrets to themselves?"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from renderdispatch.errors import InvalidRequestError, UnknownNameError
from renderdispatch.messages import (
    FOR_THE_RECORD,
    PRESETS,
    PROTOCOL,
    RENDER_EVENT,
    Action,
    AudioUrl,
    Callback,
    EventReply,
    FaultDomain,
    JobError,
    JobStatus,
    Limits,
    LocalAudio,
    Message,
    ObjectUrls,
    Output,
    PollError,
    PollResponse,
    PollResult,
    RemoteAudio,
    RenderOrder,
    RenderRequest,
    RenderWarning,
    SignedPut,
    Stage,
    StoredAudio,
    format_rate,
    parse_rate,
    read_output,
)
from renderdispatch.testing import make_artifact, make_request
from renderdispatch.testing.histories import checked_in, completed, failed, progressed, run_events

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_SECRETS = ("s3cret-token", "s3cret-url", "s3cret-key", "s3cret-header")


def _order() -> RenderOrder:
    put = SignedPut(url="https://r2/s3cret-url", headers={"x": "s3cret-header"})
    return RenderOrder(
        job_id="job",
        attempt=1,
        token="s3cret-token",
        audio_url="https://r2/s3cret-url",
        audio_size=44,
        video=ObjectUrls(key="video.mp4", put=put, get="https://r2/s3cret-url"),
        result=ObjectUrls(key="result.json", put=put, get="https://r2/s3cret-url"),
        scene="bars",
        params={"colour": "red"},
        output=PRESETS["flat-1080p-landscape"],
        start_by=_NOW,
        finish_by=_NOW,
        callback=Callback(url="https://app/hook", key="s3cret-key"),
    )


def _poll() -> PollResponse:
    artifact = make_artifact()
    return PollResponse(
        job_id="job",
        status=JobStatus.COMPLETE,
        stage=Stage.FINALIZING,
        progress=100,
        attempt=2,
        queue_position=1,
        result=PollResult(
            video_key=artifact.key, **artifact.model_dump(by_alias=False, include=set(PollResult.model_fields))
        ),
        error=PollError(code="x", message="y"),
        download_url="https://r2/s3cret-url",
        created_at=_NOW,
        updated_at=_NOW,
    )


# --- the wire -------------------------------------------------------------------------------------

_MESSAGES: list[Message] = [
    _order(),
    _poll(),
    make_request(params={"a": [1, None, "é"]}, metadata={"b": {}}, duration=1.5, limits=Limits(max_attempts=1)),
    make_request(audio=LocalAudio(path="/a", machine="m", size=1, mtime_ns=2)),
    make_request(audio=RemoteAudio.model_validate({"url": "https://example.com"})),
    EventReply(action=Action.STOP, reason="superseded"),
    checked_in(),
    progressed(Stage.RENDERING, 0.5),
    completed(),
    failed(),
    make_artifact(),
]


@pytest.mark.parametrize("message", _MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_round_trip(message: Message) -> None:
    """Any message, written and read again, is the same."""
    assert type(message).model_validate_json(message.model_dump_json(context=FOR_THE_RECORD)) == message


def test_a_url_is_revealed_to_the_record_alone() -> None:
    """Whoever answers with a request's JSON gives no signed URL away."""
    request = make_request(audio=RemoteAudio.model_validate({"url": "https://example.com/?s3cret"}))
    assert "s3cret" not in request.model_dump_json() + str(request.model_dump(mode="json")) + repr(request)
    assert "s3cret" in request.model_dump_json(context=FOR_THE_RECORD)


@given(run_events())
def test_events_are_read_as_what_they_are(event: Any) -> None:
    """An event is read back from its JSON as the same kind of event, by its type alone."""
    assert RENDER_EVENT.validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize("message", _MESSAGES, ids=lambda message: type(message).__name__)
def test_unknown_fields_are_ignored(message: Message) -> None:
    """A newer peer may send more than is known here."""
    document = {**json.loads(message.model_dump_json(context=FOR_THE_RECORD)), "fromTheFuture": 1}
    assert type(message).model_validate(document) == message


def test_orders_of_the_version_before_are_understood() -> None:
    """An order may still carry fields that are gone: `assets` and `trace`."""
    document = {**json.loads(_order().model_dump_json()), "assets": {"cover": "https://r2/s3cret-url"}, "trace": {}}
    assert RenderOrder.model_validate(document) == _order()


def test_requests_orders_and_artifacts_of_the_version_before_are_understood() -> None:
    """What an older version wrote has no track, no longest duration and no warnings."""
    for message, new in (
        (make_request(), ("audioTrack", "title", "artist", "cover", "poster")),
        (make_request().limits, ("maxDuration",)),
        (StoredAudio(key="song.wav", size=1), ("name",)),
        (_order(), ("audioTrack", "maxDuration", "title", "artist", "cover", "poster")),
        (make_artifact(), ("warnings", "posterKey")),
    ):
        document = json.loads(message.model_dump_json())
        for name in new:
            del document[name]
        assert type(message).model_validate(document) == message


def _run(script: str) -> None:
    """Run a script in a fresh interpreter, where no model is built yet."""
    code = textwrap.dedent(script)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_threads_may_use_messages_for_the_first_time_at_once() -> None:
    """Models are built at their first use, by one thread: the others wait for it."""
    _run("""
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from threading import Barrier
        from renderdispatch.messages import RENDER_EVENT, JobError, Output, PollError, RenderRequest
        from renderdispatch.testing import make_request
        barrier = Barrier(16)
        sys.setswitchinterval(1e-6)
        event = '{"type": "checked-in", "eventId": "e", "jobId": "j", "token": "t", "runId": "r"}'

        def first_use(_):
            barrier.wait()
            request = make_request()
            assert RenderRequest.model_validate_json(request.model_dump_json()) == request
            assert Output(width=64).width == 64
            assert RENDER_EVENT.validate_json(event).run_id == "r"
            assert PollError(code="c", message="m").model_dump() == {"code": "c", "message": "m"}
            return True

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(first_use, range(16)))
    """)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_a_model_is_built() -> None:
    """A fork waits until no thread builds a model, so that the child can build others."""
    _run("""
        import os, signal, threading
        from renderdispatch.messages import Message, Output
        building, forking = threading.Event(), threading.Event()
        os.register_at_fork(before=forking.set)

        class Slow(Message):
            @classmethod
            def __get_pydantic_core_schema__(cls, source, handler):
                building.set()
                assert forking.wait(30)
                return handler(source)

        thread = threading.Thread(target=Slow.model_rebuild)  # builds, and runs nothing of it: Rust has locks of its own
        thread.start()
        assert building.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            Output(width=64), Slow()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        thread.join()
    """)


def test_the_words_of_a_poll() -> None:
    """A poll answers with the names of the reference app, in camelCase."""
    answer = json.loads(_poll().to_json())
    assert set(answer) == {
        "jobId", "status", "stage", "progress", "attempt", "queuePosition", "result", "error", "downloadUrl",
        "createdAt", "updatedAt",
    }  # fmt: skip
    assert (answer["status"], answer["stage"]) == ("complete", "finalizing")
    assert answer["result"]["videoKey"] == "videos/video.mp4"
    assert (answer["result"]["durationS"], answer["result"]["fps"]) == (2.002, "30000/1001")


def test_a_poll_leaves_out_what_is_empty() -> None:
    """Fields that hold nothing are not sent."""
    poll = PollResponse(
        job_id="job",
        status=JobStatus.PENDING,
        stage=Stage.QUEUED,
        progress=0,
        attempt=0,
        created_at=_NOW,
        updated_at=_NOW,
    )
    assert set(json.loads(poll.to_json())) == {
        "jobId", "status", "stage", "progress", "attempt", "createdAt", "updatedAt",
    }  # fmt: skip


def test_the_words_of_a_warning() -> None:
    """What a video lacks is a list of codes and messages, at the top of a poll."""
    poll = _poll().model_copy(update={"warnings": (RenderWarning(code="audio.damaged", message="silent"),)})
    assert json.loads(poll.to_json())["warnings"] == [{"code": "audio.damaged", "message": "silent"}]


def test_warnings_stay_small() -> None:
    """A renderer may warn as often as it likes: the first 20 are kept, each of a readable length."""
    many = [{"code": "scene.odd", "message": "x" * 10_000}] * 1000
    kept = make_artifact(warnings=many).warnings
    assert (len(kept), len(kept[0].message), kept[0].message[-3:]) == (20, 400, "...")


def test_the_words_of_events() -> None:
    """Events carry protocol, type and ids in camelCase."""
    event = json.loads(progressed(Stage.RENDERING, 0.5).model_dump_json())
    assert event == {
        "protocol": PROTOCOL,
        "type": "progressed",
        "eventId": "progress-run-1-rendering-0.5",
        "jobId": "job",
        "token": "token-1",
        "runId": "run-1",
        "stage": "rendering",
        "fraction": 0.5,
        "frames": None,
        "framesTotal": None,
        "planned": False,
        "segments": None,
    }
    assert json.loads(completed().model_dump_json())["artifact"]["renderedBy"] == "numpy"


def test_names_are_read_in_both_spellings() -> None:
    """Python's names and the wire's are understood alike."""
    assert EventReply.model_validate({"action": "stop"}) == EventReply(action=Action.STOP)
    one = StoredAudio.model_validate_json('{"kind": "stored", "key": "a", "size": 1}')
    assert one == StoredAudio(key="a", size=1)
    assert Limits.model_validate({"maxAttempts": 2}) == Limits.model_validate({"max_attempts": 2})


def test_an_order_is_small() -> None:
    """An ordinary order is far below what a remote call may carry."""
    assert len(_order().model_dump_json().encode()) < 2048


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [_order(), _poll(), _order().video, AudioUrl("https://x/s3cret-url")], ids=repr)
def test_no_secret_is_in_a_repr(message: object) -> None:
    """Tokens, keys, URLs and headers are in no repr and no str."""
    assert not [secret for secret in _SECRETS if secret in repr(message) + str(message)]


def test_renderers_get_no_secret() -> None:
    """`without_secrets` leaves what a renderer needs, and nothing that opens a door."""
    order = _order().without_secrets()
    assert "s3cret" not in order.model_dump_json()
    assert (order.scene, order.params, order.output) == (_order().scene, _order().params, _order().output)


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (RenderOrder, {"token": ["s3cret"]}),
        (RenderRequest, {"audio": {"kind": "remote", "url": ["s3cret"]}}),
        (RenderRequest, {"audio": {"kind": "unknown", "url": "s3cret"}}),
        (RenderRequest, {"params": {"s3cret": math.nan}}),
        (RenderRequest, {"params": "s3cret" * 1000}),
        (Output, {"fps": "s3cret"}),
        (Output, {"width": "s3cret"}),
    ],
)
def test_validation_errors_quote_no_input(model: type[Message], document: dict[str, Any]) -> None:
    """What is refused is not repeated."""
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(document)
    assert "s3cret" not in str(refusal.value) + repr(refusal.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b'{"type": "unknown", "token": "s3cret"}',
        b"[" * 10_000,
        b'{"type": "failed", "token": "s3cret"}',
    ],
)
def test_junk_is_no_event(body: bytes) -> None:
    """Any bytes that are no event are a `ValidationError` that does not quote them."""
    with pytest.raises(ValidationError) as refusal:
        RENDER_EVENT.validate_json(body)
    assert "s3cret" not in str(refusal.value)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    """Nothing that a stranger sends raises anything but `ValidationError`."""
    with pytest.raises(ValidationError):
        RENDER_EVENT.validate_json(body)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (30, Fraction(30)),
        ("30", Fraction(30)),
        (" 25 ", Fraction(25)),
        (29.97, Fraction(2997, 100)),
        (30000 / 1001, Fraction(30000, 1001)),
        (23.976023976023978, Fraction(24000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(2997, 100)),
        (Fraction(60000, 1001), Fraction(60000, 1001)),
        (0.5, Fraction(1, 2)),
        (240, Fraction(240)),
    ],
)
def test_frame_rates(value: object, rate: Fraction) -> None:
    """A frame rate is any number, exactly: integers, fractions, decimals."""
    assert parse_rate(value) == rate
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(
    "value",
    [0, -1, "0", "-30", 241, 0.01, "1000001/10000019", "1/0", "1e999", "1e-999", math.nan, math.inf, "nan", "inf"],
)
def test_numbers_that_are_no_frame_rate(value: object) -> None:
    """Zero, negative, endless, tiny and above 240 are refused."""
    with pytest.raises(ValueError, match="a frame rate must be"):
        parse_rate(value)


@pytest.mark.parametrize("value", ["", "fast", None, True, [], b"30", "1" * 40])
def test_what_is_no_number(value: object) -> None:
    """Words, nothing, booleans and endless digits are refused."""
    with pytest.raises(ValueError, match="a frame rate must be"):
        parse_rate(value)


@pytest.mark.parametrize("value", ["1e2", "1E5", "1e99999999", "-1e-99999999", "1.5E+99999999"])
def test_a_frame_rate_has_no_exponent(value: str) -> None:
    """An exponent is refused before it is written out, which may take minutes and all memory."""
    with pytest.raises(InvalidRequestError, match="a frame rate must be a number, such as"):
        Output(fps=value)  # type: ignore[arg-type]


@given(st.fractions(min_value=Fraction(1, 10), max_value=240, max_denominator=1_000_000))
def test_every_frame_rate_survives_the_wire(rate: Fraction) -> None:
    """A rate is written so that the same one is read."""
    assert Output.model_validate_json(Output(fps=rate).model_dump_json()).fps == rate


@given(st.text(max_size=40) | st.floats() | st.integers() | st.none())
def test_a_frame_rate_or_a_value_error(value: object) -> None:
    """Nothing raises anything but `ValueError`."""
    try:
        assert 0 < parse_rate(value) <= 240
    except ValueError as error:
        assert str(error).startswith("a frame rate must be")  # noqa: PT017


def test_presets() -> None:
    """The presets of the reference app keep their names and sizes, 30 frames a second."""
    assert {name: (preset.width, preset.height, preset.projection) for name, preset in PRESETS.items()} == {
        "flat-720p-landscape": (1280, 720, "flat"),
        "flat-1080p-landscape": (1920, 1080, "flat"),
        "flat-1080p-portrait": (1080, 1920, "flat"),
        "flat-1080p-square": (1080, 1080, "flat"),
        "flat-4k-landscape": (3840, 2160, "flat"),
        "flat-4k-portrait": (2160, 3840, "flat"),
        "360-mono-4k": (4096, 2048, "360-mono"),
        "360-mono-6k": (6144, 3072, "360-mono"),
        "360-mono-8k": (8192, 4096, "360-mono"),
        "360-stereo-8k": (8192, 8192, "360-stereo"),
    }
    assert {preset.fps for preset in PRESETS.values()} == {30}
    assert all(Output.model_validate(preset.model_dump()) == preset for preset in PRESETS.values())


def test_an_output_by_name_or_value() -> None:
    """A preset is found by its name, a value is itself, and an unknown name meets the near ones."""
    assert read_output("360-mono-4k") is PRESETS["360-mono-4k"]
    mine = Output(width=640, height=360)
    assert read_output(mine) is mine
    with pytest.raises(UnknownNameError, match="flat-1080p-square") as refusal:
        read_output("flat-1080p-sqare")
    assert refusal.value.code == "preset.unknown"


@pytest.mark.parametrize("field", ["width", "height"])
@pytest.mark.parametrize("pixels", [0, -2, 14, 15, 641, 16386, 10**30, 640.5, "wide", None])
def test_odd_sizes(field: str, pixels: object) -> None:
    """Sizes are even, 16 to 16384."""
    with pytest.raises(ValidationError):
        Output.model_validate({field: pixels})


@pytest.mark.parametrize(
    "limits",
    [
        {"max_attempts": 0},
        {"max_attempts": 21},
        {"start_timeout": timedelta(0)},
        {"total_timeout": timedelta(days=6, seconds=1)},
        {"total_timeout": None},
        {"total_timeout": "endless"},
    ],
)
def test_limits_are_finite(limits: dict[str, Any]) -> None:
    """No job may wait or try without end."""
    with pytest.raises(ValidationError):
        Limits.model_validate(limits)


@pytest.mark.parametrize("name", ["params", "metadata"])
def test_params_and_metadata_are_small_json(name: str) -> None:
    """Parameters hold at most 2 KiB of finite JSON, metadata 4 KiB."""
    limit = {"params": 2048, "metadata": 4096}[name]
    make_request(**{name: {"a": "x" * (limit - 8)}})
    for value in ({"a": "x" * (limit - 7)}, {"a": math.inf}, {"a": object()}, {"a": "é" * limit}, [1], "text"):
        with pytest.raises(ValidationError):
            make_request(**{name: value})


def _nested(levels: int) -> Any:
    """Return JSON with so many levels of objects and arrays."""
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize("name", ["params", "metadata"])
def test_params_and_metadata_are_nested_at_most_64_deep(name: str) -> None:
    """What is taken is also read back; deeper JSON is refused, however deep it is."""
    request = make_request(**{name: _nested(64)})
    assert RenderRequest.model_validate_json(request.model_dump_json()) == request
    for levels in (65, 210, 999, 1900):
        with pytest.raises(ValidationError):
            make_request(**{name: _nested(levels)})


@pytest.mark.parametrize("name", ["params", "metadata"])
@pytest.mark.parametrize("value", [{"a": "\ud800"}, {"\ud800": 1}, {"a": [{"b": "\udfff"}]}], ids=ascii)
def test_half_a_surrogate_pair_is_no_text(name: str, value: dict[str, Any]) -> None:
    """Parameters and metadata hold text that UTF-8 can hold, as records are."""
    with pytest.raises(ValidationError):
        make_request(**{name: value})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("A  B ", "A B"),
        ("A\r\n\tB\0", "A B"),
        ("A\u2028B\x85", "A B"),
        ("é🎵", "é🎵"),
        (" \n", None),
        ("", None),
        (None, None),
    ],
)
def test_titles_are_one_line(given: str | None, kept: str | None) -> None:
    """Control characters of a title or an artist become spaces, and a blank one is none."""
    request = make_request(title=given, artist=given)
    assert (request.title, request.artist) == (kept, kept)


@pytest.mark.parametrize("value", ["x" * 201, "\ud800", 7, b"A"])
@pytest.mark.parametrize("name", ["title", "artist"])
def test_what_is_no_title(name: str, value: object) -> None:
    """A title has at most 200 characters, all of them text."""
    with pytest.raises(ValidationError):
        make_request(**{name: value})
    make_request(**{name: f" {'x' * 200}\n"})


@pytest.mark.parametrize(
    "change", [{"start": -1}, {"start": math.nan}, {"duration": 0}, {"duration": math.inf}, {"scene": ""}]
)
def test_ranges_of_a_request(change: dict[str, Any]) -> None:
    """A range begins at 0 or later and lasts; a scene has a name."""
    with pytest.raises(ValidationError):
        make_request(**change)


def test_messages_are_values() -> None:
    """A message does not change once it is made."""
    with pytest.raises(ValidationError):
        make_request().scene = "wave"


def test_a_long_error_message_is_shortened() -> None:
    """However long a failure's text is, it fits the record."""
    error = JobError(code="x", message="y" * 5000, fault=FaultDomain.SCENE)
    assert len(error.message) == 2000
    assert error.message.endswith("...")


def test_terminal_statuses() -> None:
    """Complete, failed and cancelled are ends."""
    assert {status for status in JobStatus if status.terminal} == {"complete", "failed", "cancelled"}
