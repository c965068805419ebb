"""A vote in a real browser, from the sign-in to the law; and the modules it is verified with, in Chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from commons.views import ProposalView
from tests.browser.browser import Browser
from tests.browser.shown import Shown
from tests.support.consortium import signer

ROOT = Path(__file__).parents[2]
AN_HOUR_AHEAD = """
const real = Date; const ahead = 3_600_000;
globalThis.Date = class extends real { constructor(...given) { super(...(given.length ? given : [real.now() + ahead])); }
  static now() { return real.now() + ahead; } };
"""
JUDGE = """
const done = arguments[0];
const base = new URL("/governance/dashboard/static/verify/", location.href);
const load = async (name) => (await fetch(`/tests/support/vectors/${name}.json`)).text();
import("/tests/support/browser/vectors.mjs").then((m) => m.judge(base, load)).then(done, (e) => done({wrong: [e.stack]}));
"""
HOLD = """
const done = arguments[0];
const run = async () => {
  const { hold } = await import("/governance/dashboard/static/memory.js");
  const at = (size, byte) => ({ origin: "a log", size, root: new Uint8Array(32).fill(byte) });
  const refused = async (...given) => hold(...given, async () => []).then(() => "", (error) => error.message);
  await hold(at(5n, 1), "key", async () => []);
  return [await refused(at(5n, 1), "key"), await refused(at(5n, 2), "key"), await refused(at(9n, 2), "key"),
          await refused(at(4n, 2), "key"), await refused(at(5n, 1), "other")];
};
run().then(done, (error) => done([error.stack]));
"""
EXPORT = """
const done = arguments[0];
const opened = indexedDB.open("hansa", 1);
opened.onsuccess = () => {
  const all = opened.result.transaction("keys").objectStore("keys").getAll();
  all.onsuccess = () => crypto.subtle.exportKey("pkcs8", all.result[0].privateKey).then(() => done(""), (e) => done(e.name));
};
"""


@pytest.fixture
def files(browser: Browser) -> Iterator[str]:
    """The repository's files, as a browser loads modules."""
    browser.forgive("favicon")

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {".mjs": "text/javascript", ".js": "text/javascript", "": "application/octet-stream"}  # noqa: RUF012

        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(ROOT))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_chromium_passes_the_golden_vectors(browser: Browser, files: str) -> None:
    browser.open(f"{files}governance/dashboard/static/icon.svg")
    found = browser.driver.execute_async_script(JUDGE)
    assert found["wrong"] == []
    assert len(found["cases"]) == 8 and all(count > 1 for count in found["cases"].values())


def test_a_browser_holds_the_log_to_what_it_saw(browser: Browser, files: str) -> None:
    browser.open(f"{files}governance/dashboard/static/icon.svg")
    same, other, longer, shorter, key = browser.driver.execute_async_script(HOLD)
    assert same == ""
    assert "two roots" in other and "proof" in longer and "proof" in shorter and "key" in key


def test_a_vote_from_the_sign_in_to_the_law(member: Browser, shown: Shown) -> None:
    view = shown.propose("inner-steps", "Five steps", steps=5)
    shown.vote(view, "for", "birch")
    shown.vote(view, "against", "cedar")
    make_key(member, shown)
    assert member.driver.execute_async_script(EXPORT) == "InvalidAccessError", (
        "the private key stays where it is"
    )
    member.press("Proposals")
    member.click(f"a[href='/proposals/{view.number}']")
    member.until(lambda b: b.path == f"/proposals/{view.number}")
    assert "/learning/inner_steps" in member.text and "EUR, at most" in member.text
    member.click("input[value=for]")
    member.press("See the ballot")
    text = member.until(lambda b: b.all("#cast button") and b.one("#ballot-text").text)
    assert {f"proposal {view.id}", f"rules {view.rules}", "voter alder", "choice for"} <= set(
        text.splitlines()
    )
    assert member.inaccessible() == []
    member.press("Sign with this browser's key and vote")
    said = member.until(lambda b: b.all("[data-said].good, [data-said].bad"))[0].text
    assert "Your ballot is in the journal: for. Checked here: record" in said
    assert member.inaccessible() == []
    member.press(f"P-{view.number:04d} Five steps")
    member.until(lambda b: "In force since round" in b.text)
    member.press("Count again")
    member.until(lambda b: "passed, follows" in b.text)
    assert "3 ballots, each in the journal and signed by its voter: 2 for, 1 against" in member.text
    law: ProposalView = shown.proposal(view.id)
    assert law.state == "executed" and f"charter version {law.charter_version}" in member.text
    member.open(f"{base(member)}/journal/{law.execution_index}")
    member.until(lambda b: "Checked here: record" in b.text)


def test_a_text_that_is_not_the_ballot_that_was_chosen_is_not_signed(member: Browser, shown: Shown) -> None:
    make_key(member, shown)
    member.open(f"{base(member)}/proposals/{shown.open.number}/ballot?choice=abstain")
    member.until(lambda b: b.all("#cast button"))
    member.driver.execute_script(
        "const t = document.getElementById('ballot-text'); t.textContent = t.textContent.replace('choice abstain', 'choice against')"
    )
    member.press("Sign with this browser's key and vote")
    said = member.until(lambda b: b.all("[data-said].good, [data-said].bad"))[0].text
    assert "not the ballot that was chosen" in said
    assert {b.voter for b in shown.proposal(shown.open.id).ballots} == {"birch"}


def test_a_clock_that_is_an_hour_off_is_warned_of_and_changes_nothing_else(
    member: Browser, shown: Shown
) -> None:
    here = base(member)
    command = member.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": AN_HOUR_AHEAD}
    )
    try:
        member.open(f"{here}/proposals/{shown.open.number}")
        member.until(lambda b: "clock is 1 h" in b.text)
        assert "ahead of the server's" in member.text
        assert "voting ends in 23 h" in member.text
        member.open(f"{here}/proposals/{shown.open.number}/ballot?choice=for")
        cast_at = next(
            line for line in member.one("#ballot-text").text.splitlines() if line.startswith("cast-at ")
        )
        hour = member.driver.execute_script("return new Date().toISOString().slice(0, 13)")
        assert hour not in cast_at, "the ballot is dated by the server"
    finally:
        member.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", command)


def test_a_roadmap_is_ordered_by_keyboard(member: Browser, shown: Shown) -> None:
    member.open(f"{base(member)}/roadmap")
    up = member.until(lambda b: b.all("button[aria-label='Move int4 up']"))[0]
    for _ in range(2):
        up.send_keys("\n")
        assert member.driver.switch_to.active_element == up, "the focus goes with the candidate"
    assert "int4 is at place 1" in member.text
    member.one("button[aria-label='Leave out lean']").send_keys(" ")
    member.click("form.roadmap button:not([type])")
    assert "choice rank int4 > fp8" in member.until(lambda b: b.one("#ballot-text").text)


def test_votes_show_what_they_cost_while_they_are_given(member: Browser, shown: Shown) -> None:
    view = shown.propose("roadmap", "How much of each?", candidates=["fp8", "int4"], credits=25)
    here, form = f"{base(member)}/roadmap", f"form[action='/proposals/{view.number}/ballot']"
    fp8, int4 = member.until(lambda b: b.open(here).all(f"{form} input"))
    fp8.send_keys("5")
    int4.send_keys("1")
    assert "26 of 25 credits are spent; 1 too many" in member.text
    assert not member.one(f"{form} button").is_enabled()
    fp8.clear()
    fp8.send_keys("4")
    assert "17 of 25 credits are spent; 8 are left" in member.text
    member.one(f"{form} button").click()
    assert "choice credits fp8 4, int4 1" in member.until(lambda b: b.one("#ballot-text").text)


def make_key(member: Browser, shown: Shown) -> None:
    """In the browser, on its page; alder's own key delegates to it."""
    member.open(f"{base(member)}/voting")
    key = member.until(lambda b: b.all("#key button"))[0]
    if key.text == "Make a key in this browser":
        key.click()
        member.until(lambda b: b.all("#vkey"))
    if not member.all("#delegation-text"):
        return
    assert member.inaccessible() == []
    text = member.one("#delegation-text").get_attribute("textContent") or ""
    note = signer("alder").sign(text).decode()
    member.driver.execute_script("document.getElementById('note').value = arguments[0]", note)
    member.press("Hand it in")
    member.until(lambda b: "Checked here: record" in b.text)
    assert member.inaccessible() == []


def base(member: Browser) -> str:
    return member.driver.current_url.partition("/")[0] + "//" + member.driver.current_url.split("/")[2]
