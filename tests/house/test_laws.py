"""Size, words and tables: the laws of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commons.errors import GRPC_STATUS, Code

ROOT = Path(__file__).parents[2]
ROLES = ("hansa", "commons", "governance", "orchestrator", "workers")
FILE_LINES_MAX, FUNCTION_LINES_MAX = 400, 60
UNDEFENDED_WORDS = {
    "utils": "name the thing it does",
    "helpers": "name the thing it does",
    "misc": "name the thing it does",
}


def sources() -> list[Path]:
    return sorted(p for role in ROLES for p in (ROOT / role).rglob("*.py") if "wire/v1" not in p.as_posix())


def test_files_and_functions_stay_short() -> None:
    wrong = []
    for path in sources():
        text = path.read_text()
        lines = text.count("\n")
        if lines > FILE_LINES_MAX:
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines, at most {FILE_LINES_MAX}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_no_module_is_called_after_nothing() -> None:
    wrong = [
        f"{p.relative_to(ROOT)}: {UNDEFENDED_WORDS[p.stem]}" for p in sources() if p.stem in UNDEFENDED_WORDS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_owns() -> None:
    wrong = [
        p.relative_to(ROOT).as_posix()
        for p in sources()
        if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not wrong, f"no module docstring: {', '.join(wrong)}"


def test_every_refusal_code_has_a_status() -> None:
    import grpc

    assert set(GRPC_STATUS) == set(Code)
    assert {s for s in GRPC_STATUS.values() if not hasattr(grpc.StatusCode, s)} == set()


def test_every_refusal_code_is_used() -> None:
    text = "\n".join(p.read_text() for p in sources() if p.name != "errors.py")
    unused = [code.name for code in Code if f"Code.{code.name}" not in text]
    assert not unused, f"a code nobody refuses with: {', '.join(unused)}"


def test_nothing_is_unpickled() -> None:
    banned = re.compile(
        r"\b(pickle\.loads?|torch\.load\(|cloudpickle|marshal\.loads?|yaml\.load\(|eval\(|exec\()"
    )
    wrong = [
        f"{p.relative_to(ROOT)}: {m.group(0)}"
        for p in sources()
        for m in banned.finditer(p.read_text())
        if m.group(0) != "eval(" or not re.search(r"\.eval\(", p.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_stubs_are_fresh(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    proto = ROOT / "proto" / "commons" / "wire" / "v1"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto"), f"--python_out={tmp_path}",
         f"--grpc_python_out={tmp_path}", *map(str, sorted(proto.glob("*.proto")))],
        check=True,
    )  # fmt: skip
    for made in sorted(tmp_path.rglob("*.py")):
        committed = ROOT / made.relative_to(tmp_path)
        assert made.read_text() == committed.read_text(), (
            f"{committed.relative_to(ROOT)} is old: run `make stubs`"
        )


def test_the_benchmarks_page_shows_the_results_that_are_there() -> None:
    from benchmarks.figures import PAGE, page

    assert page() == PAGE.read_text(), "docs/benchmarks.md is generated: run `hansa bench`"
