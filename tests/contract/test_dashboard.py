"""The dashboard over a real chamber, without a browser: pages, live parts, downloads, and what it does with bad input."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from commons.errors import Refused
from commons.log import open_proof_file
from commons.notes import Verifier
from commons.records import Record
from commons.roll_views import RECORDS_SHOWN, MembersView, RecordsView, ReleasesView
from commons.views import RunView
from governance.budgets import budgets_view
from governance.dashboard import live
from governance.dashboard.app import dashboard
from governance.dashboard.page import Hall, Page, Settings
from governance.dashboard.pages import PAGES, budgets
from governance.dashboard.viewer import Role, Viewer
from governance.moments import FOLLOWS
from hansa.chamber import Chamber
from hansa.dashboard import ChamberOffice
from orchestrator.experts import experts_view
from orchestrator.roll import releases_view
from orchestrator.run_views import curves_view, rounds_view
from tests.contract.test_services import eventually
from tests.support.consortium import signer
from tests.support.lively import Lively, lively_charter

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \" ' & done"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
BIRCH = Viewer("birch", "birch", frozenset({Role.READER, Role.VOTER, Role.ACCOUNTANT}))
OPERATOR = Viewer("operator", None, frozenset({Role.READER, Role.OPERATOR}))
LISTED = [page.path for page in PAGES if page.listed]


class OpenDoor:
    """Lets everybody in as one viewer."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    def routes(self) -> list[BaseRoute]:
        return []

    def middleware(self) -> list[Middleware]:
        return [Middleware(_Enter, viewer=self._viewer)]


class _Enter:
    def __init__(self, app: ASGIApp, viewer: Viewer) -> None:
        self._app, self._viewer = app, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["viewer"] = self._viewer
        await self._app(scope, receive, send)


def app_of(chamber: Chamber, viewer: Viewer = OPERATOR, **settings: Any) -> Starlette:
    return dashboard(ChamberOffice(chamber), OpenDoor(viewer), Settings(**settings))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lively]:
    """A run of four rounds is over; every free text in it is hostile."""
    of = lively_charter(learning__rounds=4)
    sites = tuple(s.model_dump() | {"data_statement": f"{s.name}: {HOSTILE}"} for s in of.sites)
    found = Lively(
        tmp_path_factory.mktemp("lively"), of.model_copy(update={"sites": lively_charter(sites=sites).sites})
    )
    found.live_through(why=HOSTILE)
    found.propose_as("alder", f"Title {HOSTILE}", "inner-steps", steps=12)
    yield found
    found.close()


@pytest.fixture(scope="module")
def chamber(stage: Lively) -> Iterator[Chamber]:
    with Chamber.at(stage.home / "operator") as found:
        yield found


@pytest.fixture(scope="module")
def client(chamber: Chamber) -> Iterator[TestClient]:
    with TestClient(app_of(chamber), raise_server_exceptions=False) as found:
        yield found


class _Strict(HTMLParser):
    """Collects what the content policy would not let work."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.wrong += [f"<{tag} {name}>" for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.wrong.append(f"inline <{tag}>")
        for name in ("src", "action"):
            if not (given.get(name) or "/").startswith("/"):
                self.wrong.append(f"<{tag} {name}={given[name]}>")


def read(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[-600:]}"
    return answer.text


def test_the_norm_of_each_sites_last_update_stands_beside_it(chamber: Chamber, client: TestClient) -> None:
    norms = {site.site: site.update_norm for site in chamber.read(RunView).sites}
    page = read(client, "/rounds")
    assert len(set(norms.values())) == len(norms) > 1
    assert all(norm and f'<td class="num">{norm:.3g}</td>' in page for norm in norms.values()), norms


@pytest.mark.parametrize(
    "path",
    [
        *LISTED,
        "/journal/5",
        "/journal?kind=update&text=cedar",
        "/rounds?to=2",
        "/runs/run-1",
        "/budgets/birch/current",
    ],
)
def test_every_page_shows_a_real_run_within_the_content_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    parser = _Strict()
    parser.feed(answer.text)
    assert parser.wrong == []
    assert len(answer.content) < 100_000
    assert "<script>alert" not in answer.text and "onerror=alert(2)>" not in answer.text.replace("&gt;", "")


@pytest.mark.parametrize("path", ["/", "/budgets", "/members", "/releases", "/proposals"])
def test_hostile_text_is_shown_and_does_nothing(client: TestClient, path: str) -> None:
    html = read(client, path)
    assert "<script>alert" not in html and "49" not in html.partition("{{ 7 * ")[2][:4]
    assert ESCAPED in html


def test_a_hostile_record_is_shown_and_does_nothing(client: TestClient, chamber: Chamber) -> None:
    (found,) = chamber.read(RecordsView, "kind=dispute").records
    html = read(client, f"/journal/{found.index}")
    assert ESCAPED in html and "<script>alert" not in html


def test_pages_say_what_happened(client: TestClient) -> None:
    said = {path: read(client, path) for path in LISTED}
    assert "run-1" in said["/"] and "finished" in said["/"]
    assert "holds NaN" in said["/rounds"] and '<svg class="timeline"' in said["/rounds"]
    assert "only birch may propose" in said["/experts"] and "shade8" in said["/experts"]
    assert "birch-text to birch-0" in said["/experts"]
    assert "data-plot" in said["/learning"] and "cedar-text" in said["/learning"]
    assert "pays for site cedar of cedar" in said["/budgets"] and "hardware_fault" in said["/budgets"]
    assert "safety officer" in said["/members"]
    assert "Nobody witnesses this journal." in said["/journal"]
    assert "rejected the update of birch" in said["/alerts"]


def test_what_is_not_there_yet_says_what_to_do_next(tmp_path: Path) -> None:
    stage = Lively(tmp_path)
    try:
        with Chamber.at(stage.home / "operator") as chamber, TestClient(app_of(chamber)) as client:
            for path in (
                "/",
                "/rounds",
                "/experts",
                "/learning",
                "/budgets",
                "/releases",
                "/proposals",
                "/roadmap",
            ):
                assert 'class="empty"' in read(client, path), path
            stage.work(fails_in=0)
            stage.start_run()
            eventually(lambda: "No run was started yet." not in read(client, "/"), 30)
    finally:
        stage.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/static/0/style.css", 404),
        ("/static/VERSION/../app.py", 404),
        ("/static/VERSION/..%2f..%2fapp.py", 404),
        ("/static/VERSION/%2e%2e/page.py", 404),
        ("/static/VERSION//etc/passwd", 404),
        ("/static/VERSION/uplot", 404),
        ("/budgets/..%2f..%2fetc/passwd/json", 404),
        ("/budgets/birch/../alder", 404),
        ("/budgets/birch/2026-13x", 404),
        ("/budgets/birch/current/exe", 404),
        ("/budgets/nobody/current", 404),
        ("/journal/999999", 400),
        ("/journal/99999999999999999999999999", 400),
        ("/journal/-1", 404),
        ("/journal?kind=nonsense", 400),
        ("/journal?before=x", 400),
        ("/journal?text=" + "x" * 101, 400),
        ("/journal/find?index=x", 400),
        ("/rounds?to=x", 400),
        ("/runs/nothing", 404),
        ("/runs/..%2f..%2fetc", 404),
        ("/rounds?to=" + "9" * 400, 400),
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(client: TestClient, path: str, status: int) -> None:
    version = client.app.state.hall.version  # type: ignore[attr-defined]
    answer = client.get(path.replace("VERSION", version))
    assert answer.status_code == status, answer.text[-500:]
    assert "Back to the overview" in answer.text and "content-security-policy" in answer.headers
    assert "Traceback" not in answer.text


def test_a_method_that_makes_no_sense_is_refused_and_head_is_a_get_without_a_body(client: TestClient) -> None:
    assert client.post("/rounds").status_code == 405
    assert client.delete("/").status_code == 405
    head = client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    plain = client.get("/nothing", headers={"accept": "application/json"})
    assert plain.headers["content-type"].startswith("text/plain")


def test_static_files_are_kept_for_ever_under_their_version(client: TestClient) -> None:
    answer = client.get(client.app.state.hall.static("style.css"))  # type: ignore[attr-defined]
    assert "immutable" in answer.headers["cache-control"] and answer.headers["content-type"].startswith(
        "text/css"
    )


def test_a_partner_sees_its_own_bill_only(chamber: Chamber) -> None:
    with TestClient(app_of(chamber, BIRCH)) as client:
        own = read(client, "/budgets")
        assert "/budgets/birch/current" in own and "/budgets/alder/current" not in own
        assert client.get("/budgets/alder/current").status_code == 403
        assert client.get("/budgets/alder/current/json").status_code == 403
        assert "opening" in read(client, "/budgets/birch/current")


def test_a_statement_is_taken_away_and_checked_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client.get("/budgets/birch/current/json")
    assert 'filename="birch-' in answer.headers["content-disposition"]
    assert "BilledCost" in read(client, "/budgets/birch/current/focus")
    checked = client.post("/budgets/verify", content=answer.content).json()
    assert checked["verified"] and checked["about"].startswith("birch, ")
    wrong = answer.content.replace(b"granted-micro 3000000", b"granted-micro 3000001")
    assert wrong != answer.content and not client.post("/budgets/verify", content=wrong).json()["verified"]
    assert "no statement" in client.post("/budgets/verify", content=b"{}").json()["problem"]
    monkeypatch.setattr(budgets, "FILE_BYTES_MAX", 1000)
    assert client.post("/budgets/verify", content=answer.content).status_code == 413


def test_a_record_is_shown_with_its_bytes_and_a_proof_that_holds(
    client: TestClient, chamber: Chamber
) -> None:
    found = client.get("/journal/5/proof.json").json()
    assert set(found) >= {"leaf", "path", "checkpoint", "log_key", "index"}
    verifier = Verifier.from_vkey(found["log_key"])
    proof, leaf = open_proof_file(client.get("/journal/5/tlog-proof").text, verifier)
    assert proof.index == 5 and leaf.startswith(b"transfer ")
    assert client.get("/journal/find?index=5", follow_redirects=False).headers["location"] == "/journal/5"


def test_records_are_found_by_kind_and_text_in_bounded_answers(chamber: Chamber) -> None:
    newest = chamber.read(RecordsView)
    assert len(newest.records) == RECORDS_SHOWN and newest.records[0].index == newest.size - 1
    updates = chamber.read(RecordsView, "kind=update&text=site+CEDAR").records
    assert updates and all(r.kind == "update" and "site cedar" in r.head for r in updates)
    older = chamber.read(RecordsView, f"kind=update&text=site+cedar&before={updates[0].index}").records
    assert [r.index for r in older] == [r.index for r in updates[1:]]
    assert chamber.read(RecordsView, "text=nowhere-at-all") == RecordsView(
        records=(), searched_from=0, size=newest.size
    )
    for key in ("kind=nonsense", "before=-1", "colour=red", "kind", "x" * 700):
        with pytest.raises(Refused):
            chamber.read(RecordsView, key)


def test_members_are_shown_with_what_they_hold(stage: Lively, chamber: Chamber) -> None:
    stage.seat("alder")
    held = {(a.partner, a.site): a for a in chamber.read(MembersView).access}
    assert held["alder", ""].joined and held["alder", ""].certificate_until_ms > 0
    assert not held["cedar", ""].joined and held["cedar", ""].invite_until_ms > 0
    assert held["cedar", "cedar"].joined and not held["cedar", "cedar"].invite_until_ms


def test_a_release_is_shown_with_its_manifest_and_its_parent(
    stage: Lively, chamber: Chamber, tmp_path: Path
) -> None:
    _, manifest = chamber.make_release(tmp_path / "release")
    (made,) = chamber.read(ReleasesView).made
    assert made.manifest == manifest and made.parent == stage.office.run().history[0].base
    with TestClient(app_of(chamber)) as client:
        assert manifest.removeprefix("sha256:")[:12] in read(client, "/releases")


class _Watchman:
    """Looks at the views after each record, and at what the record was."""

    def __init__(self, stage: Lively) -> None:
        desk = stage.coordinator.desk
        consortium = desk.consortium
        self._views: dict[str, Callable[[], object]] = {
            "budgets": lambda: budgets_view(consortium.ledger, "EUR"),
            "proposals": lambda: list(consortium.proposals.views(0)),
            "charter": lambda: consortium.charter,
            "rounds": lambda: rounds_view(desk, ""),
            "curves": lambda: curves_view(desk, ""),
            "experts": lambda: experts_view(desk),
            "releases": lambda: releases_view(desk),
        }
        self._shown: dict[str, object] = {}
        self.wrong: set[str] = set()
        self.changes: Counter[str] = Counter()

    def apply(self, index: int, record: Record) -> None:
        for name, view in self._views.items():
            now = view()
            if name in self._shown and now != self._shown[name]:
                self.changes[name] += 1
                if record.kind not in FOLLOWS[name]:
                    self.wrong.add(f"{name} changed with a {record.kind} record")
            self._shown[name] = now


def test_every_view_follows_from_the_kinds_of_records_that_it_is_watched_by(tmp_path: Path) -> None:
    stage = Lively(tmp_path, lively_charter(learning__rounds=3))
    try:
        watchman = _Watchman(stage)
        stage.coordinator.desk.consortium.follow(watchman)
        stage.live_through()
        assert watchman.wrong == set()
        assert set(watchman.changes) == set(FOLLOWS) - {"members", "proposal", "releases", "disputes"}
    finally:
        stage.close()


class _Browser:
    """One open page, spoken to in ASGI: what it was sent, in order."""

    def __init__(self, app: ASGIApp, path: str, *, reads: bool = True) -> None:
        self._app, self._path, self._reads = app, path, reads
        self.status = 0
        self.parts: dict[str, str] = {}
        self.ended = anyio.Event()
        self.gone = anyio.Event()
        self.told = anyio.Event()

    async def look(self) -> None:
        scope: dict[str, Any] = {
            "type": "http", "method": "GET", "path": self._path, "raw_path": self._path.encode(), "query_string": b"",
            "headers": [(b"accept", b"text/event-stream"), (b"host", b"localhost")], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "scheme": "http", "http_version": "1.1", "root_path": "", "app": self._app,
        }  # fmt: skip
        try:
            await self._app(scope, self._receive, self._send)
        finally:
            self.ended.set()

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if not self._reads:
            await anyio.sleep_forever()
        for line in message["body"].decode().splitlines():
            if line.startswith("data: "):
                self.parts |= json.loads(line.removeprefix("data: "))
                self.told.set()
                self.told = anyio.Event()

    async def until(self, part: str, text: str) -> None:
        with anyio.fail_after(20):
            while text not in self.parts.get(part, ""):
                await self.told.wait()


def alive(app: Starlette) -> Any:
    return app.router.lifespan_context(app)


def test_an_open_page_is_told_of_a_record_and_one_that_never_reads_is_let_go(
    stage: Lively, chamber: Chamber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SEND_S", 0.2)

    async def scene() -> None:
        app = app_of(chamber)
        async with alive(app), anyio.create_task_group() as group:
            reader, stalled = _Browser(app, "/"), _Browser(app, "/", reads=False)
            for browser in (reader, stalled):
                group.start_soon(browser.look)
            await reader.until("part_votes", "Longer rounds")
            await anyio.to_thread.run_sync(
                lambda: stage.propose_as("alder", "News at eleven", "inner-steps", steps=5)
            )
            await reader.until("part_votes", "News at eleven")
            assert "csrf" not in json.dumps(reader.parts)
            with anyio.fail_after(20):
                await stalled.ended.wait()
            reader.gone.set()

    anyio.run(scene)


def test_a_search_is_not_made_again_with_every_record(client: TestClient) -> None:
    assert "data-live" in read(client, "/journal") and "data-live" not in read(client, "/journal?text=cedar")
    asked = {"accept": "text/event-stream"}
    assert client.get("/journal?text=cedar", headers=asked).status_code == 400


def test_a_mistake_in_one_page_does_not_end_the_others(
    stage: Lively, chamber: Chamber, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = next(page for page in PAGES if page.path == "/alerts")

    def parts(hall: Hall, page: Page, request: Request) -> dict[str, str]:
        if page is wrong:
            raise KeyError("a mistake")
        return made(hall, page, request)

    made = Hall.parts
    monkeypatch.setattr(Hall, "parts", parts)

    async def scene() -> None:
        app = app_of(chamber)
        async with alive(app), anyio.create_task_group() as group:
            broken, sound = _Browser(app, "/alerts"), _Browser(app, "/")
            for browser in (broken, sound):
                group.start_soon(browser.look)
            await sound.until("part_votes", "Longer rounds")
            await anyio.to_thread.run_sync(
                lambda: stage.propose_as("birch", "And so on", "inner-steps", steps=6)
            )
            await sound.until("part_votes", "And so on")
            assert broken.parts == {} and not broken.ended.is_set()
            for browser in (broken, sound):
                browser.gone.set()

    anyio.run(scene)


def test_only_so_many_pages_are_live_at_once(chamber: Chamber) -> None:
    async def scene() -> None:
        app = app_of(chamber, streams_max=1)
        async with alive(app), anyio.create_task_group() as group:
            first, second = _Browser(app, "/alerts"), _Browser(app, "/alerts")
            group.start_soon(first.look)
            await first.until("part_alerts", "Nobody witnesses")
            await second.look()
            assert second.status == 503
            first.gone.set()
            await first.ended.wait()
            third = _Browser(app, "/alerts")
            group.start_soon(third.look)
            await third.until("part_alerts", "Nobody witnesses")
            third.gone.set()

    anyio.run(scene)


def test_pages_stay_and_say_so_while_the_coordinator_is_away(tmp_path: Path) -> None:
    stage = Lively(tmp_path)
    try:
        with Chamber.at(stage.home / "operator") as chamber, TestClient(app_of(chamber)) as client:
            assert "What you see is old" not in read(client, "/members")
            stage.coordinator.stop()
            eventually(lambda: "What you see is old" in read(client, "/members"), 30)
            assert "birch" in read(client, "/members")
            assert client.get("/journal/3").status_code == 503
    finally:
        stage.close()


def test_links_lead_to_mlflow_and_to_ray(chamber: Chamber) -> None:
    elsewhere: Mapping[str, str] = {
        "mlflow_url": "http://mlflow.test/#/runs/{run}",
        "ray_url": "http://ray.test",
    }
    with TestClient(app_of(chamber, **elsewhere)) as client:
        html = read(client, "/rounds")
    assert 'href="http://mlflow.test/#/runs/run-1"' in html and 'href="http://ray.test"' in html


def test_a_key_is_shown_by_name_and_hash(client: TestClient) -> None:
    assert "+".join(signer("birch").vkey.split("+")[:2]) + "</code>" in read(client, "/members")
