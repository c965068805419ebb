"""Voting on the dashboard: what its pages show, and what it refuses before and with the chamber."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.testclient import TestClient

from commons import notes
from commons.ballots import Ballot
from commons.motions import BallotKey, Motion
from commons.notes import NOTE_BYTES_MAX, Signer
from commons.pledging import Pledge
from commons.views import ProposalView
from governance.casting import ballot_text
from governance.dashboard.viewer import Role
from tests.support.chamber import signer
from tests.support.office import Office, viewer, visited

HOUR_MS = 3_600_000
BROWSER_KEY = Signer("acme/ballot", b"\x0b" * 32)


PATIENCE_S = 10.0


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    found = Office(tmp_path)
    yield found
    found.close()


@pytest.fixture
def page(office: Office) -> Iterator[TestClient]:
    """As acme's voter."""
    with visited(office) as client:
        yield client


def note(
    office: Office, which: str, choice: str = "for", *, voter: str = "acme", by: Signer | None = None
) -> bytes:
    text = ballot_text("demo", voter, office.read(ProposalView, which), choice)
    return (by or signer(voter)).sign(text)


def cast(page: TestClient, data: bytes, which: str = "1", **headers: str) -> Any:
    sent = {"content-type": "text/plain", "accept": "application/json", **headers}
    return page.post(f"/proposals/{which}/ballots", content=data, headers=sent)


def words(answer: Any) -> str:
    """What a page says, without how it looks."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split()).replace(" ;", ";")


def words_once(said: str, page: TestClient, path: str) -> str:
    """The words of a page that was shown before, once they have `said`: it follows the coordinator in its own time."""
    deadline, text = time.monotonic() + PATIENCE_S, ""
    while said not in text:
        assert time.monotonic() < deadline, text
        text = words(page.get(path))
    return text


def shown_text(answer: Any) -> str:
    found = re.search(r'<pre id="ballot-text"[^>]*>(.*?)</pre>', answer.text, re.DOTALL)
    assert found, answer.text
    return html.unescape(found[1])


def motion(which: str, member: str, what: Literal["discuss", "resume"], reason: str) -> str:
    nonce = "0" * 32
    return Motion(
        consortium="demo", proposal=which, member=member, motion=what, reason=reason, nonce=nonce
    ).text


def delegation(member: str = "acme", *, key: Signer = BROWSER_KEY, by: Signer | None = None) -> bytes:
    text = BallotKey(consortium="demo", member=member, key=key.vkey, expires_ms=2**42, nonce="00" * 16).text
    return (by or signer(member)).sign(text)


def test_a_proposal_is_shown_with_what_it_changes_and_costs_beside_the_vote(
    office: Office, page: TestClient
) -> None:
    office.propose()
    text = page.get("/proposals/1").text
    assert "/learning/inner_steps" in text and "EUR, at most" in text
    assert (
        text.index("Your vote, and what it costs") < text.index("EUR, at most") < text.index("See the ballot")
    )
    assert "Waiting for your ballot" in page.get("/proposals").text


def test_what_is_pledged_for_a_proposal_stands_beside_it_and_its_cost(
    office: Office, page: TestClient
) -> None:
    which = office.propose(needs_micro=400_000)
    assert "only with pledges of 0.40 EUR; 0.00 stand" in words(page.get("/proposals/1"))
    pledge = Pledge(
        consortium="demo", proposal=which, member="coop", to="acme", amount_micro=250_000, expires_ms=2**42,
        nonce="0" * 16,
    )  # fmt: skip
    office.submit(signer("coop").sign(pledge.text))
    text = words_once("only with pledges of 0.40 EUR; 0.25 stand", page, "/proposals/1")
    assert "coop acme 0.25" in text and "held" in text
    found = page.get("/proposals/1/evidence.json").json()
    assert len(found["entries"]) == 4, "its charter, itself, its opening and the pledge"


def test_the_text_shown_is_the_ballot_and_signing_it_elsewhere_counts(
    office: Office, page: TestClient
) -> None:
    which = office.propose()
    text = shown_text(page.get("/proposals/1/ballot", params={"choice": "against"}))
    assert Ballot.from_note(notes.parse(signer("acme").sign(text))).choice == "against"
    pasted = signer("acme").sign(text).decode().removesuffix("\n").replace("\n", "\r\n")
    answer = page.post("/proposals/1/ballots", data={"csrf": "", "note": pasted})
    assert answer.status_code == 200 and "Your ballot is in the journal: against." in answer.text
    assert office.read(ProposalView, which).against_weight == 1


def test_a_ballot_is_answered_with_its_receipt(office: Office, page: TestClient) -> None:
    office.propose()
    data = note(office, "1")
    answer = cast(page, data).json()
    again = cast(page, data).json()
    assert again["receipt"]["index"] == answer["receipt"]["index"], "asked twice: the first index"
    proof = office.submit(data)
    assert (answer["choice"], answer["receipt"]["index"]) == ("for", proof.proof.index)


def test_a_ballot_on_a_proposal_that_took_the_other_ones_place_does_not_count(
    office: Office, page: TestClient
) -> None:
    """P-0001 was looked at; by the time it is signed it is withdrawn and a dearer one lies where it lay."""
    first = office.propose(parameters={"steps": 11})
    text = shown_text(page.get("/proposals/1/ballot", params={"choice": "for"}))
    second = office.propose(parameters={"steps": 40}, nonce="11" * 16)
    answer = cast(page, signer("acme").sign(text), "2")
    assert answer.status_code == 400 and "[ballot_mismatch]" in answer.text
    assert office.read(ProposalView, second).for_weight == office.read(ProposalView, first).for_weight == 0
    moved = text.replace(first, second)
    assert cast(page, signer("acme").sign(moved), "2").status_code == 200, (
        "it says so itself now: signed anew"
    )


def test_rules_or_an_electorate_that_are_not_the_openings_are_refused(
    office: Office, page: TestClient
) -> None:
    view = office.read(ProposalView, office.propose())
    for field in ("rules", "electorate_digest"):
        stale = view.model_copy(update={field: "sha256:" + "00" * 32})
        answer = cast(page, signer("acme").sign(ballot_text("demo", "acme", stale, "for")))
        assert answer.status_code == 400 and "[ballot_mismatch]" in answer.text


@pytest.mark.parametrize(
    ("who", "status", "why"),
    [
        (viewer("acme", Role.READER), 403, "voter"),
        (viewer("acme", Role.READER, Role.ACCOUNTANT), 403, "voter"),
        (viewer(None, Role.READER, Role.OPERATOR), 403, "voter"),
        (viewer("beta", Role.READER, Role.VOTER), 403, "[not_authorised]"),
        (viewer(None, Role.READER, Role.VOTER), 403, "[not_authorised]"),
    ],
    ids=["reader", "accountant", "operator", "another member's voter", "nobody's voter"],
)  # fmt: skip
def test_only_a_voter_of_the_member_hands_in_its_ballot(
    office: Office, who: Any, status: int, why: str
) -> None:
    which = office.propose()
    with visited(office, who) as page:
        answer = cast(page, note(office, "1"))
        assert (answer.status_code, why in answer.text) == (status, True), answer.text
    assert office.read(ProposalView, which).ballots == ()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (lambda o: note(o, "1", by=signer("beta")), 403, "signature_invalid"),
        (lambda o: note(o, "1", by=Signer("acme", b"\x01" * 32)), 403, "signature_invalid"),
        (lambda o: note(o, "1", by=BROWSER_KEY), 403, "signature_invalid"),
        (lambda o: note(o, "1").replace(b"choice for", b"choice against"), 403, "signature_invalid"),
        (lambda o: note(o, "1") + note(o, "1", by=signer("beta")).split(b"\n\n")[1], 400, "note_malformed"),
        (lambda o: note(o, "1").replace(b"\n", b"\r\n"), 400, "note_malformed"),
        (lambda o: b"\xef\xbb\xbf" + note(o, "1"), 400, "note_malformed"),
        (lambda o: note(o, "1")[:-1], 400, "note_malformed"),
        (lambda o: note(o, "1", "rank a > b"), 400, "ballot_mismatch"),
        (lambda o: delegation(), 400, "note_malformed"),
        (lambda o: b"", 400, "note_malformed"),
        (lambda o: b"\xff" * 100, 400, "note_malformed"),
        (lambda o: b"x" * (NOTE_BYTES_MAX + 1), 400, "note_malformed"),
    ],
    ids=[
        "another member's key", "another key of the name", "a key that nobody delegated to", "changed afterwards",
        "two signatures", "CRLF", "a byte order mark", "cut off", "an answer to another question", "another kind of note",
        "nothing", "not text", "too large for a note",
    ],
)  # fmt: skip
def test_what_is_not_a_ballot_that_counts_is_refused_with_the_chambers_code(
    office: Office, page: TestClient, data: Any, status: int, code: str
) -> None:
    which = office.propose()
    answer = cast(page, data(office))
    assert (answer.status_code, f"[{code}]" in answer.text) == (status, True), answer.text
    assert office.read(ProposalView, which).ballots == ()


def test_a_body_that_no_note_can_fill_is_not_read(office: Office, page: TestClient) -> None:
    office.propose()
    assert cast(page, b"x" * (5 * NOTE_BYTES_MAX)).status_code == 413
    assert page.post("/proposals/1/ballots", content=iter([b"x"])).status_code == 413, (
        "who knows how much comes"
    )


def test_a_vote_that_is_over_takes_no_ballot(office: Office, page: TestClient) -> None:
    office.propose()
    late = note(office, "1")
    office.clock.ahead_ms = 2 * HOUR_MS
    answer = cast(page, late)
    assert answer.status_code == 400 and "[proposal_closed]" in answer.text
    assert page.get("/proposals/9").status_code == 404
    assert cast(page, late, "9").status_code == 404


def test_a_ballot_that_was_looked_at_before_a_discussion_began_waits_for_its_end(
    office: Office, page: TestClient
) -> None:
    which = office.propose()
    text = shown_text(page.get("/proposals/1/ballot", params={"choice": "for"}))
    for member in ("beta", "coop"):
        office.submit(signer(member).sign(motion(which, member, "discuss", "Why?")))
    answer = cast(page, signer("acme").sign(text))
    assert answer.status_code == 400 and "[proposal_closed]" in answer.text
    assert page.get("/proposals/1/ballot", params={"choice": "for"}).status_code == 409
    assert "hansa proposal resume 1" in page.get("/proposals/1").text
    office.submit(signer("beta").sign(motion(which, "beta", "resume", "-")))
    assert cast(page, signer("acme").sign(text)).status_code == 200, "nothing it names has changed"


def test_the_voters_clock_decides_nothing(office: Office, page: TestClient) -> None:
    """A browser that is an hour off dates its ballot so; the journal's time counts."""
    which = office.propose()
    text = re.sub(
        r"cast-at .*", "cast-at 1999-01-01T00:00:00Z", shown_text(page.get("/proposals/1/ballot?choice=for"))
    )
    assert cast(page, signer("acme").sign(text)).status_code == 200
    assert office.read(ProposalView, which).for_weight == 1


def test_a_key_of_the_browser_votes_once_its_member_delegated_to_it(office: Office, page: TestClient) -> None:
    which = office.propose()
    assert BROWSER_KEY.vkey not in page.get("/voting").text
    answer = page.post("/voting/keys", data={"note": delegation().decode()})
    assert answer.status_code == 200, answer.text
    assert html.escape(BROWSER_KEY.vkey) in page.get("/voting").text
    assert cast(page, note(office, "1", by=BROWSER_KEY)).status_code == 200
    assert office.read(ProposalView, which).for_weight == 1


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (delegation("beta", key=Signer("beta/ballot", b"\x0c" * 32)), 403, "not_authorised"),
        (delegation(by=signer("beta")), 403, "signature_invalid"),
        (delegation(by=BROWSER_KEY), 403, "signature_invalid"),
        (delegation(key=Signer("acme/other", b"\x0c" * 32)), 403, "not_authorised"),
        (b"hansa-ballot-key/v1\n", 400, "note_malformed"),
    ],
    ids=["another member's", "signed by another", "signed by the key itself", "to a key of another name", "unsigned"],
)  # fmt: skip
def test_ballots_are_delegated_by_the_viewers_member_only(
    page: TestClient, data: bytes, status: int, code: str
) -> None:
    answer = page.post(
        "/voting/keys", content=data, headers={"content-type": "text/plain", "accept": "application/json"}
    )
    assert (answer.status_code, f"[{code}]" in answer.text) == (status, True), answer.text


def test_a_roadmap_is_ranked_by_places_and_by_credits(office: Office, page: TestClient) -> None:
    office.propose(feature="roadmap", parameters={"candidates": ["fp8", "int4", "lean"]}, title="What next?")
    office.propose(
        feature="roadmap",
        parameters={"candidates": ["fp8", "int4"], "credits": 25},
        title="How much?",
        nonce="22" * 16,
    )
    places = {"place-int4": "1", "place-fp8": "2", "place-lean": ""}
    assert "choice rank int4 > fp8\n" in shown_text(page.get("/proposals/1/ballot", params=places))
    credits = {"votes-fp8": "3", "votes-int4": "4"}
    assert "choice credits fp8 3, int4 4\n" in shown_text(page.get("/proposals/2/ballot", params=credits))
    text = page.get("/roadmap").text
    assert 'name="place-int4"' in text and 'data-credits="25"' in text
    for which, wrong in (
        (1, {"place-fp8": "1", "place-int4": "1"}),
        (1, {}),
        (1, {"place-fp8": "²"}),
        (2, {"votes-fp8": "6"}),
        (2, {"votes-fp8": "-1"}),
    ):
        assert page.get(f"/proposals/{which}/ballot", params=wrong).status_code == 400, wrong


def test_what_a_proposer_writes_is_text_on_every_page(office: Office, page: TestClient) -> None:
    evil = "<script>alert(1)</script> \" onload='x' </pre>"
    office.propose(title=evil)
    which = office.read(ProposalView).id
    office.submit(signer("beta").sign(motion(which, "beta", "discuss", evil)))
    for path in ("/proposals", "/proposals/1", "/proposals/1/ballot?choice=for", "/"):
        text = page.get(path).text
        assert "<script>alert" not in text and "&lt;script&gt;alert" in text, path


def test_a_vote_is_shown_from_its_opening_to_its_law(office: Office, page: TestClient) -> None:
    which = office.propose()
    for voter in ("acme", "beta", "coop"):
        office.submit(note(office, which, voter=voter))
    office.execute()
    view = office.read(ProposalView, which)
    assert view.state == "executed" and view.execution_index is not None
    text = page.get(f"/proposals/{which}").text
    for said in (
        "In force since round 2",
        f"/journal/{view.execution_index}",
        "coop votes for",
        "The vote is over",
    ):
        assert said in text, said
    assert page.get("/proposals/1/ballot", params={"choice": "for"}).status_code == 409


def test_pledges_stand_beside_the_vote_and_in_the_quote(office: Office, page: TestClient) -> None:
    which = office.propose(needs_micro=500_000)
    pledge = Pledge(
        consortium="demo", proposal=which, member="beta", to="acme", amount_micro=400_000, expires_ms=2**42, nonce="0" * 32
    )  # fmt: skip
    office.submit(signer("beta").sign(pledge.text))
    text = page.get("/proposals/1").text
    assert "only with pledges of <b>0.50 EUR</b>; 0.40 stand" in text
    assert re.search(r'acme \(you\)</th>.*?<td class="num">0.40</td>', text, re.DOTALL), (
        "granted, if it becomes law"
    )


def test_the_records_of_a_vote_can_be_had_with_their_proofs(office: Office, page: TestClient) -> None:
    which = office.propose()
    office.submit(note(office, which))
    found = page.get("/proposals/1/evidence.json").json()
    assert found["proposal"] == which and len(found["entries"]) == 4, "charter, proposal, opening, ballot"
    assert page.get("/voting/extension.json", params={"sizes": "3-5"}).json()["old"] == 3
    for wrong in ("5-3", "3-999999", "x", "3", "-1-5", "3-5-7", "٣-5"):
        assert page.get("/voting/extension.json", params={"sizes": wrong}).status_code >= 400, wrong
