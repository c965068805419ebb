"""Every secret of an attempt, derived: a site that was killed says the same words again.

X25519 (RFC 7748) for agreeing, HKDF-SHA256 (RFC 5869) for deriving, ChaCha20-Poly1305 (RFC 8439) for what a site
tells one peer. Each key is bound to consortium, run, round, attempt and charter by `Attempt.info`, and to what it is
for; 32 bytes all along, from the site's secret to the keystream.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from commons.masking.attempt import Attempt
from commons.masking.shamir import PRIME
from commons.names import Digest
from commons.notes import digest

KEY_BYTES = 32
SEALED_BYTES = 2 * KEY_BYTES + 16
"""Two shares and the tag of the cipher."""

_NONCE = bytes(12)
"""A channel key seals one message ever: it is bound to attempt, roster, sender and receiver."""


class Secrets:
    """What one site keeps to itself in one attempt."""

    def __init__(self, secret: bytes, attempt: Attempt, site: str) -> None:
        """`secret`: at least 32 bytes from a good source, kept by the site beside what it is bound to."""
        assert len(secret) >= KEY_BYTES, "a site's secret has at least 32 bytes"
        self.attempt = attempt
        self.site = site
        self._root = _hkdf(secret, attempt.info("site", site))
        self.channel = _private(self._derived("channel"))
        self.mask = _private(self._derived("mask"))

    def mask_number(self) -> int:
        """The private mask key as the whole number that is shared: its first byte is at most 248, so it is below PRIME."""
        return int.from_bytes(self.mask.private_bytes_raw(), "big")

    def seed(self, roster: Digest) -> int:
        """Of the self mask; another for every roster."""
        return int.from_bytes(self._derived("seed", roster), "big") % PRIME

    def coefficients(self, what: str, roster: Digest, count: int) -> list[int]:
        """Of the polynomial that shares `what`; others for every roster, which may ask for another threshold."""
        return [
            int.from_bytes(self._derived("coefficient", what, roster, str(n)), "big") % PRIME
            for n in range(count)
        ]

    def _derived(self, label: str, *parts: str) -> bytes:
        return _hkdf(self._root, self.attempt.info(label, self.site, *parts))


def mask_key(number: int) -> X25519PrivateKey:
    """The private mask key that `Secrets.mask_number` gave away."""
    return X25519PrivateKey.from_private_bytes(number.to_bytes(KEY_BYTES, "big"))


def agrees(public: bytes) -> bool:
    """Whether a public key can be agreed with: points of low order give everybody the same secret and are none."""
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def seal_shares(
    shares: tuple[int, int],
    *,
    own: X25519PrivateKey,
    peer: bytes,
    attempt: Attempt,
    roster: Digest,
    sender: str,
    receiver: str,
) -> bytes:
    """Shares of (mask key, seed) that only `receiver` can read, and only `sender` can have written; 80 bytes."""
    key = _channel_key(own, peer, attempt=attempt, roster=roster, sender=sender, receiver=receiver)
    plain = b"".join(share.to_bytes(KEY_BYTES, "big") for share in shares)
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, attempt.info("shares", sender, receiver))


def open_shares(
    sealed: bytes,
    *,
    own: X25519PrivateKey,
    peer: bytes,
    attempt: Attempt,
    roster: Digest,
    sender: str,
    receiver: str,
) -> tuple[int, int] | None:
    """What `seal_shares` sealed; None when it was changed, or was sealed for somebody or something else."""
    key = _channel_key(own, peer, attempt=attempt, roster=roster, sender=sender, receiver=receiver)
    try:
        plain = ChaCha20Poly1305(key).decrypt(_NONCE, sealed, attempt.info("shares", sender, receiver))
    except InvalidTag:
        return None
    return int.from_bytes(plain[:KEY_BYTES], "big"), int.from_bytes(plain[KEY_BYTES:], "big")


def pair_key(
    own: X25519PrivateKey, peer: bytes, *, attempt: Attempt, deals: Digest, sites: tuple[str, str]
) -> bytes:
    """The key of the mask that two sites share, whichever of them asks.

    It is bound to the deals both were shown: of two sites that a coordinator showed different crowds, no mask
    cancels, and neither can be singled out.
    """
    return _hkdf(
        own.exchange(X25519PublicKey.from_public_bytes(peer)), attempt.info("pair", *sorted(sites), deals)
    )


def self_key(seed: int, *, attempt: Attempt, deals: Digest, site: str) -> bytes:
    """The key of a site's own mask."""
    return _hkdf(seed.to_bytes(KEY_BYTES, "big"), attempt.info("self", site, deals))


def share_commitments(
    shares: tuple[int, int], attempt: Attempt, dealer: str, holder: str
) -> tuple[Digest, Digest]:
    """To the holder's shares of a dealer's (mask key, seed)."""
    key, seed = shares
    return (
        _commitment(key, attempt, "share of mask key", dealer, holder),
        _commitment(seed, attempt, "share of seed", dealer, holder),
    )


def seed_commitment(seed: int, attempt: Attempt, dealer: str) -> Digest:
    """To a dealer's whole seed."""
    return _commitment(seed, attempt, "seed", dealer)


def _commitment(value: int, attempt: Attempt, *what: str) -> Digest:
    """Binds to a value without showing it. The values are uniform 256-bit numbers: nobody can try them all."""
    return digest(attempt.info("commitment", *what) + value.to_bytes(KEY_BYTES, "big"))


def _channel_key(
    own: X25519PrivateKey, peer: bytes, *, attempt: Attempt, roster: Digest, sender: str, receiver: str
) -> bytes:
    shared = own.exchange(X25519PublicKey.from_public_bytes(peer))
    return _hkdf(shared, attempt.info("channel", sender, receiver, roster))


def _private(raw: bytes) -> X25519PrivateKey:
    """A private key in the form RFC 7748 computes with, so that sharing its bytes shares the key."""
    clamped = bytes([raw[0] & 248, *raw[1:31], raw[31] & 127 | 64])
    return X25519PrivateKey.from_private_bytes(clamped)


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


_PROBE = _private(bytes(KEY_BYTES))
"""Any private key tells a point of low order from others."""
