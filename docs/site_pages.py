"""The pages of the documentation site that aren't files of docs/: home, changelog and command line; a hook of mkdocs.

README.md and CHANGELOG.md are pages as they are. The command line's page is made from the commands themselves. Links
to files that aren't pages become their names, so that the site stands alone.
"""

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GENERATED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "commands.md": ""}
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def command_line() -> str:
    """Every command with its arguments and options, as markdown."""
    order = [sys.executable, "-m", "typer", "bench_core.cli", "utils", "docs", "--name", "exitbench"]
    plain = {**os.environ, "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    text = subprocess.run(order, cwd=ROOT, env=plain, check=True, capture_output=True, text=True).stdout
    title = "# Command line\n\nMade from the commands themselves; `exitbench COMMAND --help` says the same.\n"
    return re.sub(r"\A# `exitbench`\n", lambda _: title, text)


def page_source(name: str) -> str:
    """The markdown of a page that is no file of docs/, with links as from docs/."""
    if not GENERATED[name]:
        return command_line()
    text = (ROOT / GENERATED[name]).read_text(encoding="utf-8")
    return _LINK.sub(lambda link: _relinked(link, "../"), text)


def _relinked(link: re.Match[str], start: str) -> str:
    """A link of a file that lies at ``start`` from docs/, as a link of docs/ itself."""
    target = link["target"]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    return f"{link['mark']}[{link['text']}]({posixpath.relpath(posixpath.join(start, target))})".replace(
        "](../docs/", "]("
    )


def standing_alone(markdown: str) -> str:
    """A page of docs/ whose links to README and CHANGELOG lead to their pages, and to other files are their names."""
    pages = {f"../{source}": page for page, source in GENERATED.items() if source}

    def link(found: re.Match[str]) -> str:
        target, _, place = found["target"].partition("#")
        if target in pages:
            return f"[{found['text']}]({pages[target]}{'#' if place else ''}{place})"
        if target.startswith("../"):
            return f"{found['text']} (`{target.removeprefix('../')}`)"
        return found[0]

    return _LINK.sub(link, markdown)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name in GENERATED:
        files.append(File.generated(config, name, content=page_source(name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite a page's links."""
    return standing_alone(markdown)
