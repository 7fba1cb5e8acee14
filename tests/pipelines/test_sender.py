import logging
import threading
from collections.abc import Callable, Sequence

import pytest
from mlflow.exceptions import MlflowException

from pipelines.tracking.sender import BATCH, Point, Sender

pytestmark = pytest.mark.timeout(30)


class Server:
    """What a sender talks to: keeps what it is sent, by turns dead, slow and refusing."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.works = True
        self.trouble: str | None = None
        self.got: list[object] = []
        self.asked = 0
        self.called = threading.Semaphore(0)
        self.sender = Sender("http://mlflow", self.say, clock=lambda: self.now_s)

    def say(self) -> str | None:
        self.asked += 1
        return self.trouble

    def take(self, what: object, error: Exception | None = None) -> None:
        self.called.release()
        if error is not None:
            raise error
        if not self.works:
            raise MlflowException("connection refused")
        self.got.append(what)

    def take_points(self, points: Sequence[Point]) -> None:
        self.take([point.step for point in points])

    def put(self, *steps: int) -> None:
        self.sender.put_points([Point("loss", 1.0, step, 0) for step in steps], self.take_points)

    def fail(self, *steps: int) -> None:
        """Put points that do not arrive; then a pause has begun."""
        self.works = False
        self.put(*steps)
        self.sender.drain()
        while self.called.acquire(blocking=False):
            continue


@pytest.fixture
def server() -> Server:
    return Server()


def test_calls_are_made_in_the_order_in_which_they_were_put(server: Server) -> None:
    server.put(1, 2)
    server.sender.put("note", lambda: server.take("note"))
    server.put(3)
    server.sender.drain()
    assert [part for got in server.got for part in (got if isinstance(got, list) else [got])] == [
        1,
        2,
        "note",
        3,
    ]
    assert server.sender.missing() is None


def test_many_points_go_in_batches(server: Server) -> None:
    server.put(*range(2 * BATCH + 500))
    server.sender.drain()
    assert sum(map(len, server.got)) == 2 * BATCH + 500
    assert max(map(len, server.got)) == BATCH


def test_failed_batch_is_sent_again_after_a_pause_and_never_before(server: Server) -> None:
    server.fail(1)
    server.works, server.now_s = True, 29.0
    server.put(2)
    server.now_s = 31.0
    server.put(3)
    assert server.called.acquire(timeout=20)
    server.sender.drain()
    assert server.got == [[1, 2, 3]]


def test_server_that_gave_no_answer_is_asked_cheaply_before_the_next_call(server: Server) -> None:
    server.trouble = "it takes the connection, but gave no answer"
    server.fail(1)
    for now_s in (40.0, 80.0, 120.0):
        server.now_s = now_s
        server.sender.drain()
    assert not server.called.acquire(blocking=False)
    assert server.asked >= 3
    assert server.sender.missing() == "1 metric value (it takes the connection, but gave no answer)"
    server.trouble, server.works = None, True
    server.sender.drain()
    assert server.got == [[1]]


def test_what_a_living_server_refuses_does_not_hold_up_the_rest(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = MlflowException("no such name", error_code=1000)  # INVALID_PARAMETER_VALUE
    server.sender.put("end the run", lambda: server.take("a", refusal), lasting=True)
    server.sender.put("log artifacts", lambda: server.take("b", ValueError("no credentials")))
    server.put(1)
    server.sender.drain()
    assert server.got == [[1]]
    assert server.sender.missing() == "2 other records (no credentials)"
    assert caplog.text.count("The work goes on.") == 1


def test_urgent_call_goes_before_those_that_wait(server: Server) -> None:
    server.trouble = "dead"
    server.fail(1)
    server.sender.put("end the run", lambda: server.take("end"), first=True)
    server.works, server.trouble = True, None
    server.sender.drain()
    assert server.got == ["end", [1]]


@pytest.mark.parametrize(
    ("limit_s", "reason"), [(120.0, "silent"), (1.5, "it did not take them within 1.5 s")]
)
def test_nobody_waits_for_a_call_that_hangs(limit_s: float, reason: str) -> None:
    released, now_s = threading.Event(), iter(range(0, 100000, 5))
    clock: Callable[[], float] = lambda: float(next(now_s))  # noqa: E731
    sender = Sender("http://mlflow", lambda: "silent", clock=clock)
    sender.put("set tags", released.wait)
    sender.put("set tags", lambda: None)
    sender.drain(limit_s)
    assert sender.missing() == f"2 other records ({reason})"
    released.set()


def test_a_short_end_gives_up_at_once_what_has_hung_for_long() -> None:
    released, now_s = threading.Event(), 0.0
    asked: list[None] = []
    sender = Sender("http://mlflow", lambda: asked.append(None), clock=lambda: now_s)
    sender.put("set tags", released.wait)
    while sender._busy_since_s is None:
        pass
    now_s = 12.0
    sender.drain(1.5)
    assert sender.missing() == "1 other record (it has not answered for 12 s)"
    assert not asked
    released.set()


@pytest.mark.parametrize(("limit_s", "call_s"), [(1.5, 0.6), (120.0, 9.0)])
def test_end_has_one_limit_for_all_calls_of_a_slow_server(limit_s: float, call_s: float) -> None:
    ending, now_s, turns = threading.current_thread(), 0.0, threading.Semaphore(0)

    def clock() -> float:
        """Whenever the end looks at it, one more call has taken its time and may return."""
        nonlocal now_s
        if threading.current_thread() is ending:
            now_s += call_s
            turns.release()
        return now_s

    sender = Sender("http://mlflow", lambda: None, clock=clock)
    for _ in range(100):
        sender.put("set tags", turns.acquire)
    sender.drain(limit_s)
    assert now_s <= limit_s + 2 * call_s
    assert str(sender.missing()).endswith(f"other records (it did not take them within {limit_s:g} s)")
    turns.release(100)


def test_no_points_make_no_record(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.sender._KEPT", 1)
    server.trouble = "dead"
    server.put()
    assert server.sender.missing() is None
    server.fail(1)
    server.sender.put("set tags", lambda: server.take("tags"))
    server.put(2)
    server.trouble, server.works = None, True
    server.sender.drain()
    assert server.got == [[1], "tags"]


def test_points_that_cannot_be_read_put_nothing(server: Server) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        server.sender.put_points((Point("loss", float(x), 0, 0) for x in ("1", "x")), server.take_points)
    server.sender.drain()
    assert server.got == []


def test_slow_call_of_a_living_server_is_waited_for() -> None:
    released, now_s, asked = threading.Event(), iter(range(0, 100000, 5)), threading.Semaphore(0)

    def lives() -> None:
        asked.release()
        released.set()

    sender = Sender("http://mlflow", lives, clock=lambda: float(next(now_s)))
    sender.put("log artifacts", released.wait)
    sender.drain()
    assert asked.acquire(blocking=False)
    assert sender.missing() is None


def test_memory_of_what_waits_is_bounded(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.tracking.sender._KEPT", 10)
    server.trouble = "dead"
    # Its pause has begun: no call is under way that would fail while the server comes back.
    server.fail(0)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 15):
            server.put(step)
    server.trouble, server.works = None, True
    server.sender.drain()
    assert [step for got in server.got for step in (got if isinstance(got, list) else [])] == list(range(10))
    assert str(server.sender.missing()).startswith("5 metric values")
    assert caplog.text.count("further metrics are dropped") == 1
