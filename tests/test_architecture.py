"""The floors of docs/design.md hold: who may import whom, who may load torch, how long files may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dpo_studio"

FLOORS = {
    "errors": 0,
    "files": 0,
    "paths": 0,
    "settings": 0,
    "diff": 0,
    "tastes": 0,
    "domain": 0,
    # Data about the embedded model and its prompts; its recipe (`starter.train`) is a program of its own.
    "starter": 0,
    "dpo": 1,
    "modeling": 1,
    "store": 1,
    "serving": 2,
    "training": 2,
    "rounds": 2,
    "services": 3,
    "web": 4,
    "ui": 4,
    "report_html": 4,
    "simulate": 4,
    "composition": 5,
    "commands": 6,
    "cli": 7,
}
TORCH_FREE = (
    *("errors", "files", "paths", "settings", "diff", "tastes", "domain", "starter", "store", "rounds"),
    *("services", "web", "ui", "report_html", "simulate", "composition", "commands", "cli"),
    *("serving.client", "serving.supervisor", "serving.wire"),
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """First name below `dpo_studio`: a package or a module of its own."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, first name below dpo_studio) of every import, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "dpo_studio":
            names = [f"dpo_studio.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "dpo_studio" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


def violations(path: Path) -> list[str]:
    own = package_of(path)
    if own == "__init__":
        return []
    return [
        f"{path.relative_to(ROOT)}:{line}: {own} ({FLOORS[own]}) imports {other} ({FLOORS[other]})"
        for line, other in imported_packages(path)
        if other != own and FLOORS[other] >= FLOORS[own] and FLOORS[own] > 0
    ]


def test_every_package_has_a_floor() -> None:
    assert {package_of(path) for path in modules()} - {"__init__"} <= set(FLOORS)


def test_imports_go_down_only() -> None:
    assert [found for path in modules() for found in violations(path)] == []


def test_a_planted_upward_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "dpo_studio" / "store" / "bad.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("def f():\n    from dpo_studio.ui import app\n    return app\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "dpo_studio")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert violations(planted) == ["dpo_studio/store/bad.py:2: store (1) imports ui (4)"]


def torch_free_modules() -> list[str]:
    names = []
    for path in modules():
        dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        is_listed = any(dotted == name or dotted.startswith(f"{name}.") for name in TORCH_FREE)
        is_recipe = dotted.startswith("starter.") or dotted.startswith("store.migrations")
        if is_listed and not is_recipe:
            names.append(f"dpo_studio.{dotted}")
    return names


def test_the_web_process_never_loads_torch() -> None:
    program = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "sys.exit(','.join(m for m in ('torch', 'transformers', 'peft') if m in sys.modules))"
    names = torch_free_modules()
    assert len(names) > 30
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *names], capture_output=True, text=True, cwd=ROOT
    )
    assert result.stderr.strip() == ""


def test_files_and_functions_stay_readable() -> None:
    too_long = []
    for path in modules():
        text = path.read_text("utf-8")
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                # A migration is a record of what was done, as long as the schema is.
                if length > MAX_FUNCTION_LINES and "migrations" not in path.parts:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def test_every_module_says_what_it_is() -> None:
    silent = [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert silent == []


def test_no_model_is_ever_loaded_with_foreign_code_or_pickles() -> None:
    words = ("trust_remote_code=True", "torch.load(", "AutoPeftModel", "pickle.load")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in modules()
        for word in words
        if word in path.read_text("utf-8")
    ]
    # The training recipe of the starter reads its own checkpoints, which nobody else writes.
    assert [item for item in found if not item.startswith("dpo_studio/starter/train")] == []
