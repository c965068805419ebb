"""A trust policy: what its file may say, and which cosignatures satisfy it."""

from __future__ import annotations

from itertools import combinations

import pytest

from commons import merkle
from commons.cosignature import Cosigner, with_cosignatures
from commons.log import Checkpoint
from commons.notes import NoteError, Signer
from commons.witness_policy import NONE, Policy

LOG = Signer("demo", b"\x05" * 32)
X1, X2, X3, Y1, Y2, Y3 = (Cosigner(Signer(f"key{n}", bytes([n] * 32))) for n in range(1, 7))
CHECKPOINT = Checkpoint("demo", 7, merkle.leaf_hash(b"seven"))
SIGNED = CHECKPOINT.sign(LOG)
WITNESSES = "".join(
    f"witness {name} {w.vkey}\n" for name, w in zip(("X1", "X2", "X3", "Y1", "Y2", "Y3"), (X1, X2, X3, Y1, Y2, Y3), strict=True)
)  # fmt: skip
EXAMPLE = f"""# the example of c2sp.org/tlog-policy
log {LOG.vkey} https://demo.example/log

{WITNESSES}
group X-witnesses 2 X1 X2 X3
  group\tY-witnesses \t any Y1 Y2 Y3\t
group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def cosigned(*witnesses: Cosigner) -> bytes:
    return with_cosignatures(SIGNED, [w.cosign(CHECKPOINT.text, 1000 + n) for n, w in enumerate(witnesses)])


def test_the_examples_quorum_is_two_of_the_xs_and_one_of_the_ys() -> None:
    policy = Policy.parse(EXAMPLE.encode())
    names = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
    for count in range(7):
        for held in combinations(names, count):
            enough = sum(n[0] == "X" for n in held) >= 2 and any(n[0] == "Y" for n in held)
            assert policy.satisfied(held) == enough, held
    assert not policy.satisfied(["X-and-Y2", "X9"])


def test_a_policy_is_written_as_it_is_read() -> None:
    policy = Policy.parse(EXAMPLE.encode())
    assert Policy.parse(policy.compose()) == policy
    assert policy.logs[0].url == "https://demo.example/log"
    assert policy.groups[1].threshold == 1 and policy.groups[2].threshold == 2


def test_names_are_octets_and_any_text_may_stand_in_a_comment() -> None:
    latin = b"\xe9"
    data = (
        b"# \xff\xfe anything\nwitness K "
        + X1.vkey.encode()
        + b"\nwitness \xe2\x84\xaa "
        + X2.vkey.encode()
        + b"\nwitness "
        + latin
        + b" "
        + X3.vkey.encode()
        + b"\nquorum "
        + latin
        + b"\n"
    )
    policy = Policy.parse(data)
    assert [w.name for w in policy.witnesses][:2] == ["K", "\u212a"], "a letter and the Kelvin sign"
    assert Policy.parse(policy.compose()) == policy
    with pytest.raises(NoteError) as refused:
        Policy.parse(data + b"log " + LOG.vkey.encode() + b"\n").open(SIGNED)
    assert str(refused.value).encode(), "a message can be printed whatever the names are"


def test_a_checkpoint_is_trusted_when_the_quorum_has_cosigned() -> None:
    policy = Policy.parse(EXAMPLE.encode())
    assert policy.witnessed(cosigned(X1, X3, Y2)) == (CHECKPOINT, {"X1": 1000, "X3": 1001, "Y2": 1002})
    assert policy.open(cosigned(X1, X2, X3, Y1)) == CHECKPOINT
    with pytest.raises(NoteError, match=r"cosigned by 'X1', 'Y1'.*not cosigned by 'X2', 'X3', 'Y2', 'Y3'"):
        policy.open(cosigned(X1, Y1))
    with pytest.raises(NoteError, match="cosigned by nobody"):
        policy.open(SIGNED)


def test_a_quorum_of_nobody_still_wants_the_log() -> None:
    policy = Policy.of(LOG.verifier, [], 0)
    assert policy.quorum == NONE
    assert policy.witnessed(SIGNED) == (CHECKPOINT, {})
    for stranger in (Signer("demo", b"\x06" * 32), Signer("memo", b"\x05" * 32)):
        with pytest.raises(NoteError):
            policy.open(Checkpoint(stranger.name, 7, CHECKPOINT.root).sign(stranger))


def test_k_of_n_is_a_policy() -> None:
    policy = Policy.of(LOG.verifier, [X1.cosignatory, X2.cosignatory, Y1.cosignatory], 2)
    assert Policy.parse(policy.compose()) == policy
    assert policy.open(cosigned(X2, Y1)) == CHECKPOINT
    with pytest.raises(NoteError):
        policy.open(cosigned(X2, Y2))


def test_a_false_cosignature_is_not_read_over_even_beside_a_quorum() -> None:
    wrong = X2.cosign(Checkpoint("demo", 8, CHECKPOINT.root).text, 1)
    data = with_cosignatures(cosigned(X1, X3, Y1), [wrong])
    with pytest.raises(NoteError, match="key2"):
        Policy.parse(EXAMPLE.encode()).open(data)


def test_of_two_logs_with_one_name_either_key_is_taken_and_no_third() -> None:
    other = Signer("demo", b"\x06" * 32)
    policy = Policy.parse(f"log {LOG.vkey}\nlog {other.vkey}\nquorum none\n".encode())
    assert policy.open(SIGNED) == policy.open(CHECKPOINT.sign(other)) == CHECKPOINT
    with pytest.raises(NoteError):
        policy.open(CHECKPOINT.sign(Signer("demo", b"\x07" * 32)))


def test_a_policy_that_names_no_log_trusts_none() -> None:
    with pytest.raises(NoteError, match="the policy knows none"):
        Policy.parse(b"quorum none\n").open(SIGNED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no quorum line"),
        ("# quorum none\n", "no quorum line"),
        ("quorum none\nquorum none\n", "line 2 .*one quorum"),
        ("quorum nobody\n", "line 1 .*'nobody' is defined nowhere above"),
        (f"quorum X1\nwitness X1 {X1.vkey}\n", "line 1 .*nowhere above"),
        (f"witness none {X1.vkey}\nquorum none\n", "'none' is defined already"),
        (f"witness X1 {X1.vkey}\nwitness X1 {X2.vkey}\nquorum X1\n", "'X1' is defined already"),
        (f"witness X1 {X1.vkey}\nwitness X2 {X1.vkey}\nquorum X1\n", "stands there twice"),
        (f"witness X1 {X1.vkey}\nwitness X2 {Cosigner(Signer('other', bytes([1] * 32))).vkey}\nquorum X1\n", "twice"),
        (f"log {LOG.vkey}\nlog {LOG.vkey}\nquorum none\n", "twice"),
        (f"witness X1 {LOG.vkey}\nquorum X1\n", "type 0x04"),
        (f"log {X1.vkey}\nquorum none\n", "type 0x01"),
        (f"witness X1 {X1.vkey[:-4]}\nquorum X1\n", "line 1"),
        (f"witness X1 {X1.vkey} https://a.example https://b.example\nquorum X1\n", "defines no"),
        (f"witness X1 {X1.vkey}  # comment\nquorum X1\n", "defines no"),
        ("witness X1\nquorum none\n", "defines no"),
        ("log\nquorum none\n", "defines no"),
        ("quorum\n", "defines no"),
        ("quorum none none\n", "defines no"),
        ("wittness X1 Y\n", "defines no"),
        (f"{WITNESSES}group g 2\nquorum g\n", "defines no"),
        (f"{WITNESSES}group g 0 X1 X2\nquorum g\n", "cannot need '0'"),
        (f"{WITNESSES}group g 3 X1 X2\nquorum g\n", "cannot need '3'"),
        (f"{WITNESSES}group g -1 X1 X2\nquorum g\n", "cannot need"),
        (f"{WITNESSES}group g 02 X1 X2\nquorum g\n", "cannot need"),
        (f"{WITNESSES}group g two X1 X2\nquorum g\n", "cannot need"),
        (f"{WITNESSES}group g all X1 X1\nquorum g\n", "in a group already"),
        (f"{WITNESSES}group g all X1\ngroup h all X1\nquorum g\n", "in a group already"),
        (f"{WITNESSES}group g all X1 g\nquorum g\n", "nowhere above"),
        (f"{WITNESSES}group g all none\nquorum g\n", "nowhere above"),
        (f"{WITNESSES}group X1 all X2\nquorum X1\n", "defined already"),
        ("quorum none\r\n", "0x0d"),
        ("quorum none\0\n", "0x00"),
        ("quorum none\x7f\n", "0x7f"),
        ("#" * 70_000, "70000 bytes"),
        ("".join(f"witness w{n} {Cosigner(Signer(f'w{n}', n.to_bytes(32, 'big'))).vkey}\n" for n in range(65)), "more than 64 witnesses"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_policy_is_refused(text: str, said: str) -> None:
    with pytest.raises(NoteError, match=said):
        Policy.parse(text.encode())
