"""README, CONTRIBUTING and docs/ name only files and headings that exist."""

import re
from pathlib import Path

import pytest

from scripts.check_layers import LAYERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r".+/[^/]+\.(pxd|md|sh|ya?ml|toml|json|service|8)")
SOURCES = ("featherlb", "scripts", "tests")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_files(text: str) -> list[str]:
    """Paths such as `core/path/nat.py` and `tests/netns/`, and names such as `nat.py`."""
    quoted = re.findall(r"`([\w*][\w.*/-]*)`", text)
    return [name for name in quoted if name.endswith(("/", ".py")) or FILE.fullmatch(name)]


def exists(name: str) -> bool:
    """A path starts at the root or in the package; a bare name may be anywhere in the sources."""
    name = name.rstrip("/")
    if any(any(base.glob(name)) for base in (ROOT, ROOT / "featherlb")):
        return True
    return "/" not in name and any(any((ROOT / top).rglob(name)) for top in SOURCES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_named_file_exists(page: Path) -> None:
    assert [name for name in named_files(prose(page)) if not exists(name)] == []


def test_the_map_has_the_rooms_and_floors_that_are_enforced() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE)
    floors = [tuple(re.findall(r"`([\w.]+)`", rooms)) for _, rooms in reversed(rows)]
    assert floors == list(LAYERS)
    assert [int(number) for number, _ in reversed(rows)] == list(range(1, len(LAYERS) + 1))


def test_the_map_has_every_folder_and_each_module_of_the_core() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "featherlb"
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert [name for name in sorted(folders - {"core"}) if f"`{name}`" not in page] == []
    rooms = ("net", "core/pools", "core/flows", "core/path", "system")
    modules = {path.name for room in rooms for path in (package / room).glob("*.py")}
    hidden = {"__init__.py", "addresses.py", "ethtool.py", "firewall.py", "socket_buffers.py"}
    assert [name for name in sorted(modules - hidden) if f"`{name}`" not in page] == []


def test_each_attack_has_a_test_that_exists_or_is_not_defended() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| (?:attack|fault) \|.*\n\| --- .*\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [row.strip("| ").split(" | ") for table in tables for row in table.splitlines()]
    assert rows
    for attack, *rest in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", rest[-1])
        assert tests or "not defended: " in rest[0], attack
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
