"""The documentation site: links work in the repository and on the site, and nothing public or written is left out of it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import griffe
import pytest
import yaml

from tiny_run import ROOT

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
PUBLIC_ROOMS = ["heads", "optim", "backbones", "callbacks", "data", "speed", "verification", "inference", "export"]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "theme" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("README.md", "docs/data.md", "data.md"),
        ("README.md", "docs/images/lfw-roc.png", "images/lfw-roc.png"),
        ("README.md", "CHANGELOG.md", "CHANGELOG.md"),
        ("data.md", "speed.md#measured", "speed.md#measured"),
        ("data.md", "../benchmarks/README.md", "benchmarks/README.md"),
        ("lfw.md", "../configs/lfw.yaml", "configs/lfw.yaml"),
        ("benchmarks/README.md", "../docs/lfw.md", "../lfw.md"),
        ("data.md", "#packing", "#packing"),
        ("data.md", "https://example.org/docs/data.md", "https://example.org/docs/data.md"),
        ("data.md", "nowhere.md", "nowhere.md"),
    ],
)
def test_links_follow_their_files(hooks: ModuleType, page: str, link: str, on_the_site: str) -> None:
    assert hooks.to_site(f"See [this]({link}).", page) == f"See [this]({on_the_site})."


def test_public_names_that_are_missing(hooks: ModuleType, tmp_path: Path) -> None:
    """Undocumented, not shown, not there; a module without public names is one itself."""
    (tmp_path / "room.py").write_text(
        'A = 1\n"""Said."""\nB = 2\n\n\ndef c():\n    """Said."""\n\n\n__version__ = "1"\n__all__ = ["A", "B", "D", "__version__", "c"]\n'
    )
    (tmp_path / "empty.py").write_text("")
    room = griffe.load("room", search_paths=[str(tmp_path)])
    assert hooks.missing_names(room, '<h2 id="room.A"><h2 id="room.B">') == ["room.B", "room.D", "room.c"]
    assert hooks.missing_names(griffe.load("empty", search_paths=[str(tmp_path)]), "") == ["empty"]


def test_roles_become_links(hooks: ModuleType) -> None:
    html = "<p>Follows :class:<code>~facelit.optim.CenterSGD</code>; see :meth:<code>forward</code>.</p>"
    expected = '<autoref identifier="facelit.optim.CenterSGD" optional><code>CenterSGD</code></autoref>'
    assert hooks.link_roles(html) == (
        f'<p>Follows {expected}; see <autoref identifier="forward" optional><code>forward</code></autoref>.</p>'
    )


def test_the_build_fails_on_them(hooks: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Strict mode fails on warnings."""
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api/speed.md"))
    hooks.on_page_content('<h2 id="facelit.speed.FaceDDP">', page, None, None)
    assert not caplog.records
    hooks.on_page_content("", page, None, None)
    assert [(record.levelname, "facelit.speed.FaceDDP" in record.message) for record in caplog.records] == [
        ("WARNING", True)
    ]


def test_every_page_and_room_is_in_the_navigation(hooks: ModuleType) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = set(hooks._pages(config["nav"]))
    assert pages.issuperset(PAGES)
    assert pages.issuperset(["api/facelit.md", *(f"api/{room}.md" for room in PUBLIC_ROOMS)])
    assert config["strict"] is True
    assert config["theme"]["font"] is False  # a font would be fetched from a server


def test_the_readme_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == set(PAGES)
