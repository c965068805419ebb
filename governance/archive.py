"""The journal's records for whoever looks for one: bounded searches, and one record with its proof.

Reads the store without the consortium's lock: the journal only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from commons.certificates import Subject
from commons.errors import Code, Refusal
from commons.log import Checkpoint, hash_text
from commons.notes import base64_text, parse
from commons.records import Kind, Record
from commons.roll_views import RECORDS_SEARCHED, RECORDS_SHOWN, RecordLineView, RecordsView, RecordView
from governance.bills import own_record, readable
from governance.consortium import Consortium
from governance.statements.issuing import PersonalReader

KEY_CHARS_MAX = 600
TEXT_CHARS_MAX = 100
HEAD_CHARS = 240
_PAGE = 1000

Shown = Callable[[Record], bool]
"""Whether the caller may see a record."""


def archive_readers(consortium: Consortium) -> Mapping[str, PersonalReader]:
    """The views `records` and `record`: the same for every caller, but where the charter keeps bills to their partners."""

    def shown(caller: Subject) -> Shown:
        if readable(consortium.charter, "budgets", "", caller):
            return lambda record: True
        return lambda record: own_record(record, caller.partner)

    return {
        "records": lambda caller, key: find_records(consortium, key, shown(caller)),
        "record": lambda caller, key: read_record(consortium, key, shown(caller)),
    }


def find_records(consortium: Consortium, key: str, shown: Shown) -> RecordsView | Refusal:
    """The newest records of a kind or with a text in them, letters large or small. Refuses a key it cannot read."""
    size = consortium.size
    wanted = _wanted(key, size)
    if isinstance(wanted, Refusal):
        return wanted
    kind, text, end = wanted
    found: list[RecordLineView] = []
    start, least = end, max(0, end - RECORDS_SEARCHED)
    while start > least and len(found) < RECORDS_SHOWN:
        start, stop = max(least, start - (_PAGE if kind or text else RECORDS_SHOWN)), start
        page = list(consortium.journal.records(start, stop=stop))
        for index, record in zip(range(stop - 1, start - 1, -1), reversed(page), strict=True):
            wanted_one = (not kind or record.kind == kind) and (not text or text in record.leaf.lower())
            if wanted_one and shown(record):
                found.append(_line(index, record))
                if len(found) == RECORDS_SHOWN:
                    start = index
                    break
    return RecordsView(records=tuple(found), searched_from=start, size=size)


def _wanted(key: str, size: int) -> tuple[str, bytes, int] | Refusal:
    """Kind or empty, text in small letters or empty, and the first index that is not looked at."""
    try:
        fields = dict(parse_qsl(key[:KEY_CHARS_MAX], strict_parsing=bool(key), keep_blank_values=True))
    except ValueError:
        fields = {"": ""}
    kind, text, before = (fields.get(name, "") for name in ("kind", "text", "before"))
    if set(fields) - {"kind", "text", "before"} or len(key) > KEY_CHARS_MAX or len(text) > TEXT_CHARS_MAX:
        what = f"kind=…, text=… (at most {TEXT_CHARS_MAX} characters) and before=…"
        return Refusal(Code.REQUEST_INVALID, f"a search in the journal is written {what}")
    if kind and kind not in set(map(str, Kind)):
        return Refusal(
            Code.REQUEST_INVALID, f"no record is of kind {kind[:40]!r}; there are {', '.join(Kind)}"
        )
    if before and not _is_index(before):
        return Refusal(Code.REQUEST_INVALID, f"no record has the index {before[:20]!r}")
    return kind, text.lower().encode(), min(int(before), size) if before else size


def read_record(consortium: Consortium, key: str, shown: Shown) -> RecordView | Refusal:
    """One record and its path to the newest checkpoint. Refuses an index that no record has, or whose record is not shown."""
    checkpoint = consortium.journal.checkpoint()
    size = Checkpoint.read(parse(checkpoint)).size
    if not _is_index(key) or int(key) >= size:
        return Refusal(
            Code.REQUEST_INVALID, f"the journal has the records 0 to {size - 1}, and no {key[:20]!r}"
        )
    index = int(key)
    record = consortium.journal.record(index)
    if not shown(record):
        message = (
            f"record {index} moves another partner's money, and the charter keeps bills to their partners"
        )
        return Refusal(Code.NOT_AUTHORISED, message)
    return RecordView(
        index=index,
        kind=record.kind,
        at_ms=record.at_ms,
        leaf=base64_text(record.leaf),
        path=tuple(map(hash_text, consortium.journal.inclusion(index, size))),
        checkpoint=checkpoint.decode(),
    )


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 16


def _line(index: int, record: Record) -> RecordLineView:
    head = record.body[: 4 * HEAD_CHARS].decode("utf-8", "replace")[:HEAD_CHARS]
    return RecordLineView(
        index=index, kind=record.kind, at_ms=record.at_ms, leaf_bytes=len(record.leaf), head=head
    )
