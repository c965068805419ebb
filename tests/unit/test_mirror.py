"""MLflow shows what the journal says: all of it, once, however often the mirror is killed."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from commons.records import Record
from governance.ledger import Charge, decide_release, decide_settle
from governance.tracking import Mirror, feed
from governance.tracking.cursor import CURSOR, Cursor, CursorFile
from governance.tracking.items import File, Item, Log, Point, Start
from governance.tracking.papers import Papers
from governance.tracking.picture import Picture
from governance.tracking.trouble import explain
from tests.support.chamber import LOG
from tests.support.mirrored import START_MS, mirror_all, mirrored, shown, uri, values
from tests.support.story import RUN, Story

mlflow_store = pytest.importorskip("governance.tracking.mlflow_store")


def test_a_run_is_a_parent_with_a_child_per_partner_and_a_step_per_round(told: tuple[Path, int]) -> None:
    runs = shown(told[0])
    parent = runs[f"run/{RUN}"]
    assert (parent["experiment"], parent["name"], parent["status"]) == (
        "demo/training",
        "run first",
        "FINISHED",
    )
    assert parent["params"]["learning.inner_steps"] == "10"
    assert values(parent, "charter/version") == [(1, 1), (2, 2)]
    assert values(parent, "comm/bytes_up") == [(1, 10_000), (2, 10_000)]
    assert values(parent, "charge/micro") == [(1, 1_400), (2, 700)]
    assert values(parent, "eval/law") == [(0, 2.5), (1, 1.5), (2, 0.5)]
    assert values(parent, "eval/held_out_loss") == [(0, 2.5), (1, 1.5), (2, 0.5)]
    assert parent["tags"]["hansa.charter.2"] == "P-0001"
    assert parent["tags"]["hansa.rejected.2.turin"] == "exceeds_budget: coop needs 1000 micro and has 300"
    assert set(parent["files"]) == {"charter/1.json", "charter/2.json"}
    acme, beta, coop = (runs[f"run/{RUN}/partner/{p}"] for p in ("acme", "beta", "coop"))
    assert {r["parent"] for r in (acme, beta, coop)} == {f"run/{RUN}"}
    assert [r["name"] for r in (acme, beta, coop)] == ["acme", "beta", "coop"]
    assert values(acme, "train/loss") == [(1, 2.0), (2, 1.0)]
    assert values(acme, "usage/gflop") == [(1, 12), (2, 12)]
    assert values(acme, "budget/available_micro") == [(1, 999_300), (2, 998_600)]
    assert values(beta, "charge/micro") == [(1, 0), (2, 0)]
    assert values(beta, "budget/contributed_micro") == [(1, 700), (2, 700)]
    assert values(coop, "charge/micro") == [(1, 700), (2, 0)]
    assert "train/loss" not in coop["points"]


def test_an_experts_load_is_its_tokens_over_the_mean_of_all(story: Story) -> None:
    story.found()
    story.open_run()
    story.open_round(1)
    story.admit(1, "berlin", routed="code-0=100,law-0=500")
    story.admit(1, "turin")
    story.close_round(1)
    points = {key: value for key, value in folded(story.consortium.journal.records()) if "load" in key[1]}
    of = f"run/{RUN}/partner"
    assert points == {
        (f"{of}/acme", "expert/law-0/load", 1): 500 * 2 / 600,
        (f"{of}/beta", "expert/code-0/load", 1): 100 * 2 / 600,
    }


def folded(records: Iterable[Record]) -> Iterator[tuple[tuple[str, str, int], float]]:
    """(run, key, step) and value of every point that these records give, without an MLflow."""
    picture = Picture()
    for index, record in enumerate(records):
        for item in picture.apply(index, record):
            if isinstance(item, Log):
                yield from (((item.run, p.key, p.step), float(p.value)) for p in item.points)


def test_times_are_those_of_the_journal(told: tuple[Path, int]) -> None:
    for run in shown(told[0]).values():
        times = [t for points in run["points"].values() for _, t, _ in points]
        began, ended = run["times"]
        assert START_MS < began <= min(times) <= max(times) <= (ended or told[1]) <= told[1]


def test_a_proposal_is_a_run_with_its_ballots_and_tally(told: tuple[Path, int]) -> None:
    executed, defeated = sorted(
        (r for r in shown(told[0]).values() if r["experiment"] == "demo/governance"), key=lambda r: r["name"]
    )
    assert executed["name"] == "P-0001 Twice the steps"
    assert (executed["status"], defeated["status"]) == ("FINISHED", "FAILED")
    assert values(executed, "votes/for") == [(1, 1), (2, 1), (3, 2)]
    assert values(executed, "votes/against") == [(1, 0), (2, 1), (3, 1)]
    assert executed["tags"]["proposal.state"] == "executed"
    assert executed["tags"]["proposal.executed_round"] == "2"
    assert defeated["tags"]["proposal.state"] == "defeated"
    assert executed["tags"]["proposal.ballot.beta"] == "against"
    assert set(executed["files"]) == {
        "proposal.note",
        "proposal.tlog-proof",
        *(f"ballots/{name}.{kind}" for name in ("acme", "beta", "coop") for kind in ("note", "tlog-proof")),
        "tally.json",
        "tally.tlog-proof",
        "execution.json",
        "execution.tlog-proof",
    }
    assert executed["files"]["ballots/acme.note"].startswith("hansa-ballot/v1\n")


def test_an_mlflow_user_finds_a_partner_by_its_budget(told: tuple[Path, int]) -> None:
    client = mlflow_store.MlflowClient(uri(told[0]))
    training = client.get_experiment_by_name("demo/training").experiment_id
    query = "tags.`hansa.partner` = 'acme' and metrics.`budget/available_micro` < 999000"
    assert [r.info.run_name for r in client.search_runs([training], query)] == ["acme"]


def test_a_run_stopped_in_a_round_still_shows_what_was_paid(story: Story, home: Path) -> None:
    story.found()
    story.open_run()
    story.open_round(1)
    story.admit(1, "berlin")
    ledger = story.consortium.ledger
    charge = Charge(amount_micro=400, usage="usage")
    paid = decide_settle(ledger, f"hold/{RUN}/1/berlin", charge, story.now)
    unpaid = decide_release(ledger, f"hold/{RUN}/1/turin", "the run was stopped", story.now)
    assert isinstance(paid, list)
    assert isinstance(unpaid, list)
    now = story.now
    story.take(*(replace(r, at_ms=now) for r in [*paid, *unpaid]))
    story.finish("stopped", "the operator stopped it")
    mirror_all(story.consortium, home)
    runs = shown(home)
    assert (runs[f"run/{RUN}"]["status"], runs[f"run/{RUN}"]["tags"]["hansa.phase"]) == ("KILLED", "stopped")
    assert values(runs[f"run/{RUN}/partner/acme"], "charge/micro") == [(1, 400)]
    assert values(runs[f"run/{RUN}/partner/coop"], "budget/available_micro") == [(1, 1_000_000)]


class Killed(BaseException):
    """No handler of the mirror sees it: to the mirror's files it is a kill -9."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("after", ["before the call", "after the call"])
def test_a_mirror_killed_again_and_again_shows_the_same_as_one_that_never_was(
    story: Story, home: Path, told: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    story.tell()
    monkeypatch.setattr(feed, "BATCH_RECORDS", 9)
    lives = 0
    for calls in (1, 2, 3, 4, 6, 8, 11, 13, 16, 21, 26, 31, 10_000):
        with monkeypatch.context() as patched:
            kill_after(calls, patched, late=after == "after the call")
            found = mirrored(story.consortium, home)
            while found._thread.is_alive() and found.behind:
                time.sleep(0.01)
            lives += 1
            done = not found.behind
            found.close()
        if done:
            break
    assert lives > 5
    assert shown(home) == shown(told[0])


def kill_after(calls: int, patched: pytest.MonkeyPatch, *, late: bool) -> None:
    left = [calls]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0 and not late:
                raise Killed
            answer = method(*args, **named)
            if left[0] < 0:
                raise Killed
            return answer

        return call

    for name in ("create_experiment", "create_run", "log_batch", "log_text", "set_terminated"):
        patched.setattr(mlflow_store.MlflowClient, name, counted(getattr(mlflow_store.MlflowClient, name)))


def test_a_mirror_that_starts_again_goes_on_where_it_was(story: Story, home: Path) -> None:
    story.found()
    story.open_run()
    mirror_all(story.consortium, home)
    story.open_round(1)
    story.admit(1, "berlin")
    mirror_all(story.consortium, home)
    assert values(shown(home)[f"run/{RUN}/partner/acme"], "train/loss") == [(1, 2.0)]
    assert shown(home)[f"run/{RUN}"]["status"] == "RUNNING"


def test_a_lost_mlflow_is_written_anew_although_the_cursor_says_all_was_written(
    story: Story, home: Path, told: tuple[Path, int]
) -> None:
    story.tell()
    size = story.consortium.size
    CursorFile(home / CURSOR).write(Cursor(uri(home), size, size))
    mirror_all(story.consortium, home)
    assert shown(home) == shown(told[0])


def test_a_database_whose_making_was_killed_is_made_anew(
    story: Story, home: Path, told: tuple[Path, int]
) -> None:
    story.tell()
    half = "create table alembic_version (version_num varchar(32)); create table runs (run_uuid varchar(32))"
    (home / "mlflow.db").unlink()
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.executescript(half)
    (home / "mlflow.db.unfinished").touch()
    mirror_all(story.consortium, home)
    assert shown(home) == shown(told[0])
    assert not (home / "mlflow.db.unfinished").exists()


def test_records_after_the_start_arrive_while_the_mirror_runs(story: Story, home: Path) -> None:
    found = mirrored(story.consortium, home)
    story.tell()
    assert found.drain(60), found.trouble
    assert found.behind == 0
    found.close()
    assert shown(home)[f"run/{RUN}"]["status"] == "FINISHED"


def test_runs_link_to_their_pages_in_the_dashboard(story: Story, home: Path) -> None:
    story.found()
    story.open_run()
    story.propose("Twice the steps", 20)
    found = Mirror(story.consortium, LOG, uri(home), home / CURSOR, "https://hansa.example/")
    found.start()
    assert found.drain(60), found.trouble
    found.close()
    links = {run["name"]: run["tags"].get("hansa.url") for run in shown(home).values()}
    assert links["run first"] == "https://hansa.example/rounds"
    assert links["P-0001 Twice the steps"] == "https://hansa.example/proposals/P-0001"
    assert links["acme 2023-11"] == "https://hansa.example/budgets/acme/2023-11"


def test_nobody_waits_for_an_mlflow_that_is_down(
    story: Story, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = Mirror(story.consortium, LOG, "http://hansa:secret@127.0.0.1:9", home / CURSOR)
    found.start()
    began = time.monotonic()
    story.tell()
    assert time.monotonic() - began < 5
    assert not found.drain(0.1)
    deadline = time.monotonic() + 30
    while not found.trouble and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "127.0.0.1:9 cannot be reached" in found.trouble
    found.close()
    assert [r.message for r in caplog.records if r.name == "hansa.mirror"] == [
        f"{found.trouble}. Training goes on; the mirror tries again"
    ]
    assert "secret" not in caplog.text
    mirror_all(story.consortium, home)
    assert f"run/{RUN}" in shown(home)


class Answering(BaseHTTPRequestHandler):
    """Whatever is asked, the answer is the server's one status."""

    def do_GET(self) -> None:
        self.send_error(self.server.status)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            401,
            "does not let the mirror in (401): start the coordinator with the right MLFLOW_TRACKING_USERNAME",
        ),
        (403, "lets the mirror read and not write (403)"),
        (500, "answers with an error of its own (500)"),
        (503, "answers with an error of its own (503)"),
    ],
)
def test_what_an_mlflow_answers_becomes_a_sentence(story: Story, status: int, said: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.status = status  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(Exception) as raised:
            mlflow_store.MlflowStore(uri, "demo", Papers(story.consortium, LOG))
        server.shutdown()
    assert said in explain(raised.value, uri)


def test_a_value_mlflow_never_takes_does_not_hold_up_the_others(
    story: Story, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = mlflow_store.MlflowStore(uri(home), "demo", Papers(story.consortium, LOG))
    store.prepare()
    good, bad = Point("good", 1.0, 1, START_MS), Point("bad?*", 1.0, 1, START_MS)
    items: list[Item] = [
        Start("a", "training", "a", START_MS),
        Start("b", "training", "b", START_MS),
        Log("a", (bad,)),
        Log("b", (good,)),
        Log("b", params={"p": "1"}),
        File("b", "note.txt", "text"),
    ]
    store.write(items)
    assert values(shown(home)["b"], "good") == [(1, 1.0)]
    assert "bad?*" in caplog.text


def test_a_run_that_a_person_deleted_stays_deleted(story: Story, home: Path) -> None:
    story.found()
    story.open_run()
    mirror_all(story.consortium, home)
    client = mlflow_store.MlflowClient(uri(home))
    training = client.get_experiment_by_name("demo/training").experiment_id
    (acme,) = client.search_runs([training], "tags.`hansa.partner` = 'acme'")
    client.delete_run(acme.info.run_id)
    story.open_round(1)
    story.admit(1, "berlin")
    mirror_all(story.consortium, home)
    assert client.search_runs([training], "tags.`hansa.partner` = 'acme'") == []


def test_mlflow_says_nothing_even_when_it_makes_its_database(first_words: tuple[Path, str]) -> None:
    assert first_words[1] == ""
