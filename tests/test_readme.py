"""The README's tree, pictures and links are true."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def tree() -> list[str]:
    """Paths named in the last indented block."""
    block = README[README.index("## The tree") :]
    return re.findall(r"^ {4}(\S+)", block, re.M)


def test_every_path_of_the_tree_is_there() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_package_is_in_the_tree() -> None:
    packages = {path.parent.name for path in (ROOT / "dpo_studio").glob("*/__init__.py")}
    named = {Path(path).name for path in tree()}
    assert packages - named == set()


def test_links_and_pictures_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 2
    assert [target for target in targets if not (ROOT / target).exists()] == []
