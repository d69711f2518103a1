"""README, CONTRIBUTING and docs/ name only files and headings that exist."""

import re
from pathlib import Path

import pytest

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
