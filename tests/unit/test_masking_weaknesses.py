"""Holes that public implementations of secure aggregation had, each as a test that this one has it not.

Named after what was found by reading their code: seeds of 32 bits, masks from generators for games, keys relayed
unsigned, both shares of one peer handed out, thresholds nobody can miss.
"""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from commons import masking
from commons.codec import FRAME
from commons.errors import Code, Refusal
from commons.masking import Masker, Step, Stream, dealing, strength, to_bytes
from commons.masking.attempt import KeysNote, SharesNote, SurvivorsNote
from commons.masking.dealing import streams
from commons.masking.derive import Secrets, open_shares, seed_commitment
from commons.masking.roster import Deals, Roster
from commons.notes import Signer, parse
from commons.privacy.terms import SecAgg
from tests.support.masked_rounds import (
    ATTEMPT,
    LOG,
    Crowd,
    good,
    name,
    secret_of,
    upto,
)

SOURCES = sorted(Path(masking.__file__).parent.glob("*.py"))


def deals_of(crowd: Crowd) -> Deals:
    roster = good(Roster.read(crowd.roster, attempt=ATTEMPT, sites=crowd.keys, terms=SecAgg()))
    return good(Deals.read(crowd.dealt, roster=roster, sites=crowd.keys))


def secrets_of(site: str) -> Secrets:
    return Secrets(secret_of(site), ATTEMPT, site)


def mask_of(key: bytes, count: int = 64) -> bytes:
    words = np.zeros(count, np.uint32)
    Masker([Stream(key, added=True)]).frame(words, 0, 0)
    return words.tobytes()


def test_weakness_mask_seed_of_32_bits() -> None:
    """A 32-byte secret folded to 32 bits is found by trying them all. Here every one of 256 bits changes the mask."""
    key = bytes(range(32))
    flipped = [
        bytes(b ^ (1 << bit) if n == at else b for n, b in enumerate(key))
        for at in range(32)
        for bit in range(8)
    ]
    masks = {mask_of(k) for k in [key, *flipped]}
    assert len(masks) == 257
    folds_alike = key[4:8] + key[:4] + key[8:]
    assert mask_of(folds_alike) != mask_of(key), "the same XOR of 32-bit pieces"
    crowd = upto(Step.MASKED)
    used = [s.key for site in crowd.names for s in streams(secrets_of(site), deals_of(crowd))]
    assert {len(k) for k in used} == {32} and len(set(used)) == 5 + 5 * 4 // 2


def test_weakness_generator_that_is_no_cipher() -> None:
    """Masks are the output of AES-256-CTR as it comes (NIST SP 800-38A, F.5.5), no draw from a generator for games."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    known = bytes.fromhex("0bdf7df1591716335e9a8b15c860c502")
    assert Cipher(AES(key), CTR(counter)).encryptor().update(bytes(16)) == known
    own = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(256))
    assert mask_of(key) == own


def test_weakness_top_value_is_never_drawn() -> None:
    """`randint(0, range - 1)` leaves out the top value. Here all 2^32 occur; where two of them do was looked up once."""
    masker = Masker([Stream(bytes(32), added=True)])
    for frame, at, value in ((7626, 51_635, 2**32 - 1), (3485, 163_160, 0)):
        words = np.zeros(FRAME, np.uint32)
        masker.frame(words, 0, frame)
        assert words[at] == value


def test_weakness_unsigned_keys_relayed_by_the_coordinator() -> None:
    """A coordinator that hands out keys of its own reads every share. Here a key counts by its site's signature only."""
    crowd = upto(Step.SHARES)
    own = Secrets(b"\x13" * 32, ATTEMPT, name(2))
    swapped = KeysNote(
        **vars(ATTEMPT),
        site=name(2),
        channel=own.channel.public_key().public_bytes_raw().hex(),
        mask=own.mask.public_key().public_bytes_raw().hex(),
    )
    unsigned = f"{swapped.text}\n".encode()
    by_coordinator = LOG.sign(swapped.text)
    in_its_name = Signer(name(2), b"\x13" * 32).sign(swapped.text)
    with_old_signature = crowd.roster[1].replace(
        KeysNote.from_note(parse(crowd.roster[1])).mask.encode(), swapped.mask.encode()
    )
    for forged in (unsigned, by_coordinator, in_its_name, with_old_signature):
        answer = crowd.sites[name(1)].deal([crowd.roster[0], forged, *crowd.roster[2:]])
        assert isinstance(answer, Refusal) and answer.code == Code.MASK_KEYS_INVALID


def test_weakness_both_shares_of_one_peer_handed_out() -> None:
    """Whatever lists a coordinator makes up, the answers of one site never hold both shares of anybody."""
    crowd = upto(Step.AGREEMENT)
    deals = deals_of(crowd)
    handed_out = {site: set[tuple[str, str]]() for site in crowd.names}
    for alive in ([*crowd.names], crowd.names[:4], crowd.names[1:], crowd.names[:2] + crowd.names[3:]):
        dropped = tuple(n for n in crowd.names if n not in alive)
        said = SurvivorsNote(of=ATTEMPT, deals=deals.digest, survivors=tuple(alive), dropped=dropped)
        signed = LOG.sign(said.text)
        agreements = [a for s in crowd.names if not isinstance(a := crowd.sites[s].agree(signed), Refusal)]
        for site in crowd.names:
            answer = crowd.sites[site].reveal(signed, agreements)
            if not isinstance(answer, Refusal):
                handed_out[site] |= held_in(answer.shares, site, deals)
    for site in crowd.names:
        peers = [peer for peer, _ in handed_out[site]]
        assert sorted(peers) == crowd.names, "one share of each, for the one list that was agreed to"


def held_in(shares: bytes, site: str, deals: Deals) -> set[tuple[str, str]]:
    """Which share of whom stands in these bytes."""
    return {
        (dealer, kind)
        for dealer in deals.names
        for kind, share in zip(("key", "seed"), shares_of(dealer, site, deals), strict=True)
        if share.to_bytes(32, "big") in shares
    }


def shares_of(dealer: str, holder: str, deals: Deals) -> tuple[int, int]:
    """Of the dealer's mask key and of its seed, as the dealer computes them."""
    return dealing._shares(secrets_of(dealer), deals.roster)[deals.roster.number(holder) - 1]


def test_weakness_active_and_dead_lists_overlap() -> None:
    """A list that names a site on both sides is refused as a whole, also when its signature is good."""
    crowd = upto(Step.AGREEMENT)
    for both in crowd.names:
        said = SurvivorsNote(
            of=ATTEMPT, deals=deals_of(crowd).digest, survivors=tuple(crowd.names), dropped=(both,)
        )
        for site in crowd.names:
            for answer in (
                crowd.sites[site].agree(LOG.sign(said.text)),
                crowd.sites[site].reveal(LOG.sign(said.text), ()),
            ):
                assert isinstance(answer, Refusal) and answer.code == Code.MASK_SURVIVORS_REFUSED


def test_weakness_threshold_not_held_against_what_was_signed() -> None:
    """That enough sites agreed is seen from their signatures on this list, not from what the coordinator says of them."""
    crowd = upto(Step.AGREEMENT).agree()
    forged = LOG.sign(parse(crowd.agreements[0]).text)
    for agreements in ((), crowd.agreements[:3], (*crowd.agreements[:3], forged), crowd.agreements[:1] * 4):
        answer = crowd.sites[name(1)].reveal(crowd.survivors, agreements)
        assert isinstance(answer, Refusal)


def test_weakness_masks_of_64_bits_for_values_of_32() -> None:
    """Four bytes an element travel, masked as unmasked."""
    crowd = upto(Step.AGREEMENT)
    for frames in crowd.masked.values():
        assert [len(frame) for frame in frames] == [4 * size for size in crowd.sizes]
    assert len(to_bytes(np.zeros(FRAME, np.uint32))) == 1 << 20


def test_weakness_one_scalar_mask_for_a_whole_tensor() -> None:
    """Every element has a mask of its own: nothing of the tensor's shape is seen, in no slice and in no frame."""
    masker = Masker([Stream(bytes(range(32)), added=True)])
    seen = []
    for slice_index in range(2):
        for frame in range(2):
            words = np.zeros(10_000, np.uint32)
            masker.frame(words, slice_index, frame)
            seen.append(words)
    masks = np.concatenate(seen)
    assert len(np.unique(masks)) > masks.size - 5
    assert len(np.unique(np.diff(masks))) > masks.size - 10, "nor do they differ by steps"


@pytest.mark.parametrize("sites", range(4, 65))
def test_weakness_threshold_of_all_sites(sites: int) -> None:
    """With t = n one lost site ends the round. From four sites on one may be lost (`test_masking_round` loses them)."""
    found = strength(SecAgg(), sites)
    assert found.threshold < sites and found.dropouts >= 1


def test_weakness_decrypted_shares_at_set_up() -> None:
    """What the coordinator holds before the reveal gives it no share, no seed and no key of anybody."""
    crowd = upto(Step.AGREEMENT).agree()
    held = b"".join(
        [*crowd.roster, *(d.note + d.bundle for d in crowd.dealt), crowd.survivors, *crowd.agreements]
    )
    deals = deals_of(crowd)
    for site in crowd.names:
        own = secrets_of(site)
        secret = [own.mask_number(), own.seed(deals.roster.digest)]
        secret += [share for holder in crowd.names for share in shares_of(site, holder, deals)]
        for number in secret:
            raw = number.to_bytes(32, "big")
            assert all(text not in held for text in (raw, raw[::-1], raw.hex().encode()))
    eavesdropper = Secrets(b"\x13" * 32, ATTEMPT, name(2))
    for dealer in crowd.names[2:]:
        opened = open_shares(
            deals.dealt[dealer].sealed(name(2)),
            own=eavesdropper.channel,
            peer=deals.roster.channel(dealer),
            attempt=ATTEMPT,
            roster=deals.roster.digest,
            sender=dealer,
            receiver=name(2),
        )
        assert opened is None


def test_weakness_random_state_of_the_whole_process() -> None:
    """Masks neither read nor move the generators that a training shares with everybody else in its process."""
    before = (np.random.get_state()[1].tobytes(), random.getstate())  # type: ignore[union-attr,index]
    first = upto(Step.AGREEMENT).masked
    assert before == (np.random.get_state()[1].tobytes(), random.getstate())  # type: ignore[union-attr,index]
    np.random.seed(5)
    random.seed(5)
    assert upto(Step.AGREEMENT).masked == first
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        used |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        drawing = used & {"random", "secrets", "os", "urandom", "default_rng", "RandomState", "generate"}
        assert not drawing, f"{path.name} draws from {drawing}"


def test_weakness_one_secret_key_for_all_sites() -> None:
    """Each site has keys of its own; two that announce the same one are refused, and none opens what is another's."""
    crowd = upto(Step.MASKED)
    said = [KeysNote.from_note(parse(note)) for note in crowd.roster]
    assert len({key for note in said for key in (note.channel, note.mask)}) == 10
    deals = deals_of(crowd)
    for reader in crowd.names[1:]:
        opened = open_shares(
            deals.dealt[name(3)].sealed(name(1)),
            own=secrets_of(reader).channel,
            peer=deals.roster.channel(name(3)),
            attempt=ATTEMPT,
            roster=deals.roster.digest,
            sender=name(3),
            receiver=name(1),
        )
        assert opened is None


def test_weakness_one_time_pads_without_dropout() -> None:
    """A site lost after everybody masked with it leaves its pads in the sum; here they are taken out again."""
    crowd = upto(Step.MASKED).mask(without=[name(2)])
    bare = np.zeros(crowd.sizes[0], np.uint32)
    for site in crowd.masked:
        bare += np.frombuffer(crowd.masked[site][0], "<u4")
    assert not np.array_equal(bare, crowd.plain_total(crowd.masked)[0])
    crowd.agree().reveal()
    crowd.check_sum()


def test_weakness_a_masked_update_without_a_mask_of_its_own() -> None:
    """A site called dropped whose update came after all stays hidden: its peers' keys take off all masks but its own."""
    crowd = upto(Step.MASKED).mask()
    late = name(5)
    deals = deals_of(crowd)
    own, *pairs = streams(secrets_of(late), deals)
    words = np.frombuffer(crowd.masked[late][0], "<u4").copy()
    Masker([replace(s, added=not s.added) for s in pairs]).frame(words, 0, 0)
    plain = crowd.words(late)[0]
    assert np.count_nonzero(words == plain) < 3, "hidden by its own mask still"
    Masker([replace(own, added=False)]).frame(words, 0, 0)
    assert np.array_equal(words, plain)


def test_weakness_a_reader_of_the_sum_sees_no_single_update() -> None:
    """With what is revealed, no survivor's words alone give its update: pairwise masks with survivors stay on."""
    crowd = upto(Step.REVEAL).reveal()
    removed = good(crowd.coordinator.close_reveals())
    for site in crowd.names:
        words = np.frombuffer(crowd.masked[site][0], "<u4").copy()
        own = streams(secrets_of(site), deals_of(crowd))[0]
        assert own.key in {s.key for s in removed}
        Masker([replace(own, added=False)]).frame(words, 0, 0)
        assert np.count_nonzero(words == crowd.words(site)[0]) < 3


def test_weakness_seed_that_nobody_checks() -> None:
    """A site is held to the seed it dealt: its commitment stands in a note with its signature, before anybody masks."""
    crowd = upto(Step.MASKED)
    committed = {SharesNote.from_note(parse(deal.note)).seed for deal in crowd.dealt}
    assert len(committed) == 5
    changed = Secrets(b"\x14" * 32, ATTEMPT, name(1)).seed(deals_of(crowd).roster.digest)
    assert seed_commitment(changed, ATTEMPT, name(1)) not in committed
