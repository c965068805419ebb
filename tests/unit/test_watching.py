"""Views that are watched are made for a reason, once for all, and for no more watchers than there is room for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from commons.errors import Code, Refusal
from commons.records import Kind, fact
from governance import watching
from governance.bell import Bell
from governance.moments import Moments
from governance.watching import PAUSE_S, Answer, Answers, Room


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Maker:
    """Makes a view that is never the same twice."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return b"%d" % self.made


@pytest.fixture
def bells() -> tuple[Bell, Bell]:
    return Bell(), Bell()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(bells: tuple[Bell, Bell], clock: Clock) -> Answers:
    return Answers(Moments(*bells), clock)


def test_a_view_is_made_once_however_many_watch(answers: Answers) -> None:
    make, begin = Maker(), threading.Barrier(8)

    def watch(_: int) -> Answer | Refusal:
        begin.wait()
        return answers.newest("charter", "", "", make)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(watch, range(8))) == {Answer(b"1", fresh=True)}


def test_only_a_record_that_it_follows_from_makes_it_anew(
    answers: Answers, bells: tuple[Bell, Bell], clock: Clock
) -> None:
    make = Maker()
    answers.newest("charter", "", "", make)
    clock.now_s += PAUSE_S
    bells[1].apply(0, fact(Kind.TRANSFER, 1))
    bells[0].ring()
    assert answers.newest("charter", "", "", make) == Answer(b"1", fresh=True)
    bells[1].apply(1, fact(Kind.CHARTER, 1))
    assert answers.newest("charter", "", "", make) == Answer(b"2", fresh=True)


def test_what_changed_again_at_once_is_made_after_the_pause(
    answers: Answers, bells: tuple[Bell, Bell], clock: Clock
) -> None:
    make = Maker()
    answers.newest("now", "", "", make)
    bells[0].ring()
    assert answers.newest("now", "", "", make) == Answer(b"1", fresh=False)
    clock.now_s += PAUSE_S
    assert answers.newest("now", "", "", make) == Answer(b"2", fresh=True)


def test_what_one_may_see_is_not_shown_to_another_and_a_refusal_is_not_kept(answers: Answers) -> None:
    refusal = Refusal(Code.NO_RUN, "no run has been started")
    assert answers.newest("budgets", "", "member acme", lambda: b"acme's") == Answer(b"acme's", fresh=True)
    assert answers.newest("budgets", "", "member beta", lambda: b"beta's") == Answer(b"beta's", fresh=True)
    assert answers.newest("run", "", "", lambda: refusal) == refusal
    assert answers.newest("run", "", "", lambda: b"a run") == Answer(b"a run", fresh=True)


def test_nobody_takes_the_room_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WATCHERS_EACH", 1)
    monkeypatch.setattr(watching, "WATCHERS_MAX", 2)
    room = Room()
    with (
        room.seat("acme") as first,
        room.seat("acme") as again,
        room.seat("beta") as other,
        room.seat("coop") as late,
    ):
        assert (first, other) == ("", "")
        assert "acme watches 1 views already" in again and "2 watchers are here already" in late
    with room.seat("acme") as back:
        assert back == ""
