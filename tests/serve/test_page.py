"""The page's files: which are served, to whom, and what browsers may do with them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from avl_plugins.policies import parse
from avl_runtime.serve.files import FOLDER, page_files
from support.server import Running

FILES = page_files()
MARKUP = FILES["/"].data.decode()


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(MARKUP)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_served_without_a_key(server: Running) -> None:
    for path, file in FILES.items():
        status, headers, said = server.send("GET", path, Authorization="")
        assert (status, said, headers["Content-Type"]) == (200, file.data, file.kind)
        rules = dict(
            one.partition(" ")[::2] for one in headers["Content-Security-Policy"].split("; ")
        )
        assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert rules["require-trusted-types-for"] == "'script'"
        assert not {name for name, rule in rules.items() if "unsafe" in rule or "http" in rule}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] is None
    assert server.send("HEAD", "/", Authorization="")[::2] == (200, b"")
    assert server.send("POST", "/", {}, Authorization="")[0] == 405
    assert server.send("GET", "/v1/models", Authorization="")[0] == 401


def test_nothing_else_is_served(server: Running) -> None:
    for path in (
        "/page/",
        "/page",
        "/page/index.html",
        "/page/../app.py",
        "/page/none.js",
        "/page/%2e%2e/app.py",
    ):
        status, _, said = server.send("GET", path)
        assert status == 404 and b"import" not in said


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """Each file that is named is there and each that is there is named; nothing is inline."""
    named = {"/"}
    for tag, given in Tags().found:
        named |= {value for name in ("src", "href") if (value := given.get(name))}
        assert not [name for name in given if name == "style" or name.startswith("on")]
        assert tag not in ("style", "base", "iframe") and (tag != "script" or "src" in given)
    for path, file in FILES.items():
        text = file.data.decode()
        for address in re.findall(r"https?:[^\s\"'`]*|[\"'`]//", text):
            assert address == "http://www.w3.org/2000/svg", path
        named |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)
    assert named == FILES.keys()
    assert {one.name for one in Path(FOLDER).iterdir()} == {
        *(path.rpartition("/")[2] for path in FILES if path != "/"),
        "index.html",
    }


def test_controls_have_names_and_policies_are_known() -> None:
    """A screen reader has a name for each control, and the script finds what it looks for."""
    tags = Tags().found
    labelled = {given["for"] for tag, given in tags if tag == "label" and "for" in given}
    for tag, given in tags:
        if tag in ("input", "select", "textarea"):
            inside = re.search(rf'<label[^>]*>(?:(?!</label>).)*id="{given["id"]}"', MARKUP, re.S)
            assert inside or given["id"] in labelled or "aria-label" in given
    offered = [given["value"] or "" for tag, given in tags if tag == "option"]
    assert len(offered) > 4 and all(str(parse(one)) for one in offered)
    ids = [given["id"] for _, given in tags if "id" in given]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\bat\("([^"]+)"\)', FILES["/page/main.js"].data.decode())) <= set(ids)
