"""The links of the pages: each leads to a file and a heading that are there.

README's are absolute, for it is shown on the package's page as well, where relative ones lead nowhere.
"""

import itertools
import re
import tomllib
from collections import Counter
from urllib.parse import unquote

import pytest
import yaml
from blocks import PAGES, TREE
from markdown_it import MarkdownIt

PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
SOURCE = PROJECT["urls"]["Source"]
FILES = re.compile(re.escape(SOURCE) + r"/(?:blob|tree)/main/([^#]+)(?:#(.*))?")
MARKDOWN = MarkdownIt().enable("table")
READ = [*PAGES, TREE / "CHANGELOG.md", TREE / "tests" / "README.md"]


def name_of(page):
    return str(page.relative_to(TREE))


def pieces_of(page):
    """The parts of the page's text, block by block; code blocks are not among them."""
    for token in MARKDOWN.parse(page.read_text()):
        yield from token.children or []


def texts_of(page):
    """What is shown as it is written."""
    return [piece.content for piece in pieces_of(page) if piece.type == "text"]


def links_of(page):
    """Where its links and pictures lead, those in the style of references as well."""
    for piece in pieces_of(page):
        if piece.type in ("link_open", "image"):
            yield piece.attrs.get("href", piece.attrs.get("src"))


def anchors_of(page):
    """Its headings, as GitHub and Sphinx name them in a link: the second of the same name has `-1`."""
    tokens, seen = MARKDOWN.parse(page.read_text()), Counter()
    for opening, heading in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        shown = "".join(piece.content for piece in heading.children)
        name = re.sub(r"[^\w -]", "", shown.lower()).replace(" ", "-")
        yield f"{name}-{seen[name]}" if seen[name] else name
        seen[name] += 1


def leads_nowhere(page, link):
    """Why this link of the page is wrong; None: it is not."""
    if found := FILES.fullmatch(link):
        path, anchor = TREE / found[1], found[2]
    elif "://" in link:
        # Into other projects, which no test can look at.
        return None if link.startswith("https://") else "neither https nor in the tree"
    else:
        name, _, anchor = unquote(link).partition("#")
        path = page.parent / name if name else page
    if not path.exists():
        return f"there is no {path}"
    if anchor and path.suffix == ".md" and anchor not in anchors_of(path):
        return f"{name_of(path.resolve())} has no heading {anchor}"
    return "no Markdown, so it has no headings" if anchor and path.suffix != ".md" else None


@pytest.mark.parametrize("page", READ, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    wrong = {link: leads_nowhere(page, link) for link in links_of(page)}
    assert {link: why for link, why in wrong.items() if why} == {}


@pytest.mark.parametrize("page", READ, ids=name_of)
def test_every_reference_is_defined_and_used(page):
    """Without a definition `[text][name]` is shown as it is written."""
    said = {}
    MARKDOWN.parse(page.read_text(), said)
    defined = {reference["href"] for reference in said.get("references", {}).values()}
    assert defined <= {*links_of(page)}
    wrong = r"\]\[|\]\(|\[[\w./-]+\.md\]"
    assert [text for text in texts_of(page) if re.search(wrong, text)] == []


@pytest.mark.parametrize("page", READ, ids=name_of)
def test_no_emphasis_and_no_code_is_left_open(page):
    """Its asterisks or backticks would be shown."""
    assert [text for text in texts_of(page) if {*"*`"} & {*text}] == []


def test_links_are_read_in_every_style(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# The `first`, again\n\n# The first again\n\n"
        '[a](one.md "its title") and [b][two], ![c](three.svg)\n\n'
        "| [d](#the-first-again-1) |\n| --- |\n| [e] |\n\n[two]: <two.md#place>\n[e]: five.md 'title'\n\n"
        "```text\n# no heading, and [no](link.md)\n```\n"
    )
    assert [*links_of(page)] == [
        *("one.md", "two.md#place", "three.svg"),
        *("#the-first-again-1", "five.md"),
    ]
    assert [*anchors_of(page)] == ["the-first-again", "the-first-again-1"]


def test_links_of_the_readme_are_absolute():
    links = [*links_of(TREE / "README.md")]
    assert len(links) > 10
    assert [link for link in links if not FILES.fullmatch(link)] == []


def test_every_page_that_the_readme_names_is_a_link():
    pieces, depth, bare = [*pieces_of(TREE / "README.md")], 0, []
    for piece in pieces:
        depth += {"link_open": 1, "link_close": -1}.get(piece.type, 0)
        if depth == 0 and piece.type in ("text", "code_inline"):
            bare += re.findall(r"(?<![\w./-])(?:docs/[\w./]+|[A-Z_]{4,})\.md\b", piece.content)
    assert bare == []


def test_urls_of_the_project_are_in_one_repository():
    citation = yaml.safe_load((TREE / "CITATION.cff").read_text())
    assert citation["repository-code"] == SOURCE
    assert [author["name"] for author in citation["authors"]] == [
        a["name"] for a in PROJECT["authors"]
    ]
    for url in PROJECT["urls"].values():
        assert url.startswith(SOURCE)
        assert leads_nowhere(TREE / "README.md", url) is None, url
