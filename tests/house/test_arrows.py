"""Who may import whom, and behind which door a heavy library stands."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = ("hansa", "commons", "governance", "orchestrator", "workers")
ARROWS = {
    "hansa": {"commons", "governance", "orchestrator", "workers"},
    "orchestrator": {"governance", "commons"},
    "governance": {"commons"},
    "workers": {"commons"},
    "commons": set[str](),
}
TORCH_DOORS = (
    "workers/shard.py",
    "workers/readers.py",
    "workers/tails.py",
    "workers/routers.py",
    "workers/experts.py",
    "workers/routed.py",
    "workers/llama4_moe.py",
    "workers/inner.py",
    "workers/trainer.py",
    "workers/objectives.py",
    "workers/data.py",
    "hansa/baselines.py",
    "hansa/demo/",
    "hansa/released.py",
    "hansa/reading.py",
    "hansa/beside.py",
)
DOORS = {
    "ray": ("workers/actor.py", "workers/ray_head.py", "workers/ray_start.py", "workers/ray_job.py"),
    "mlflow": ("governance/tracking/",),
    "sqlalchemy": ("governance/journal/",),
    "tokenizers": ("workers/encoder.py", "hansa/tokenizers.py"),
    "torch": TORCH_DOORS,
    "transformers": TORCH_DOORS,
}


def sources(*roles: str) -> list[Path]:
    return sorted(p for role in roles for p in (ROOT / role).rglob("*.py") if "wire/v1" not in p.as_posix())


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module name a file imports, at any depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_imports_only_what_the_house_allows(role: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(role)
        for name, line in imports(path)
        if (target := name.split(".")[0]) in ROLES and target != role and target not in ARROWS[role]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_its_own_door(library: str) -> None:
    wrong = [
        f"{where}:{line} imports {name}"
        for path in sources(*ROLES)
        for name, line in imports(path)
        if name.split(".")[0] == library
        and not (where := path.relative_to(ROOT).as_posix()).startswith(DOORS[library])
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_no_module_imports_itself_through_others() -> None:
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sources(*ROLES)
    }
    graph = {
        name: {found for found, _ in top_level_imports(path) if found in modules and found != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def top_level_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Imports that run when the module is loaded (not inside functions, not for type checking only)."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_proto_holds_no_python() -> None:
    assert not list((ROOT / "proto").rglob("*.py")), (
        "the PyPI package proto-plus owns the import name `proto`"
    )


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("commons.chain", ("torch", "ray", "grpc", "mlflow", "sqlalchemy", "transformers")),
        ("hansa.cli", ("torch", "ray", "grpc", "mlflow", "sqlalchemy", "transformers", "pydantic", "numpy")),
        ("orchestrator.coordinator", ("torch", "ray", "mlflow", "transformers")),
        ("workers.site", ("torch", "mlflow", "sqlalchemy", "transformers")),
        ("workers.actor", ("grpc",)),
    ],
)
def test_importing_a_module_stays_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
