"""What the documentation site adds to MkDocs: files outside docs/, the API reference, and a check that nothing public is missing."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Files of the repository that pages link to. They keep their paths on the site, where docs/ is the root.
SHARED = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "benchmarks/README.md"]
SHARED += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "configs").glob("*.yaml"))]

_log = logging.getLogger("mkdocs.plugins.facelit")  # in strict mode a warning fails the build
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):<code>(~?)([\w.]+)</code>")
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the shared files and a page for each module of the API reference."""
    for path in SHARED:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for page in _pages(config.nav):
        if page.startswith("api/"):
            module = _module(page)
            files.append(File.generated(config, page, content=f"# {module}\n\n::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links that work in the repository work on the site."""
    return to_site(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links the roles in docstrings, and warns of public names that an API page lacks."""
    if page.file.src_uri.startswith("api/"):
        html = link_roles(html)
        module = _module(page.file.src_uri)
        for name in missing_names(griffe.load(module, search_paths=[str(ROOT)]), html):
            _log.warning("%s is public, but has no docstring or is not in the API reference", name)
    return html


def to_site(markdown: str, page: str) -> str:
    """Rewrites a page's relative links from the repository's layout to the site's.

    Args:
        markdown: The page's text.
        page: Its path on the site.
    """
    here = posixpath.dirname(page if page in SHARED else f"docs/{page}")

    def rewrite(match: re.Match[str]) -> str:
        link = match[1]
        target = posixpath.normpath(posixpath.join(here, link))
        if ":" in link or not (ROOT / target).is_file():
            return link  # MkDocs reports it if it leads nowhere
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(page) or ".")

    return _LINK.sub(rewrite, markdown)


def link_roles(html: str) -> str:
    """Turns Sphinx's roles, such as ``:class:`~facelit.heads.CenterLoss` ``, into links where the name has a heading."""

    def rewrite(match: re.Match[str]) -> str:
        name = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref identifier="{match[2]}" optional><code>{name}</code></autoref>'

    return _ROLE.sub(rewrite, html)


def missing_names(module: Any, html: str) -> list[str]:
    """Public names of a module without a docstring, or without a heading in the page that should show them."""
    names = [str(name) for name in module.exports or [] if not str(name).startswith("__")]
    if not names:
        return [module.path]
    return [
        f"{module.path}.{name}"
        for name in names
        if name not in module.members or not module[name].has_docstring or f'id="{module.path}.{name}"' not in html
    ]


def _module(page: str) -> str:
    name = page.removeprefix("api/").removesuffix(".md")
    return name if name == "facelit" else f"facelit.{name}"


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    parts: Iterable[Any] = nav.values() if isinstance(nav, dict) else nav or []
    for part in parts:
        yield from _pages(part)
