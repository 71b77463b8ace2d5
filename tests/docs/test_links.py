"""The links of README, which is shown on the package's page as well, where relative ones lead nowhere."""

import re
import tomllib
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

TREE = Path(__file__).parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
FILES = re.compile(re.escape(PROJECT["urls"]["Source"]) + r"/(?:blob|tree)/main/([^#]+)(?:#(.*))?")


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page):
    for token in MarkdownIt().parse(page.read_text()):
        for part in token.children or []:
            if part.type in ("link_open", "image"):
                yield part.attrs.get("href", part.attrs.get("src"))


def test_links_of_the_readme_are_absolute_and_lead_to_files_of_the_tree():
    links = list(links_of(TREE / "README.md"))
    assert len(links) > 10
    for link in links:
        found = FILES.fullmatch(link)
        assert found is not None, f"{link} is no link into {PROJECT['urls']['Source']}"
        assert (TREE / found[1]).exists(), link
        assert found[2] is None or found[2] in anchors_of(TREE / found[1]), link


def test_every_page_that_the_readme_names_is_a_link():
    named = re.findall(r"(?<!\[)(?<!`)(?<!/)docs/\w+\.md", (TREE / "README.md").read_text())
    assert named == []


def test_urls_of_the_project_are_in_one_repository():
    source = PROJECT["urls"]["Source"]
    citation = yaml.safe_load((TREE / "CITATION.cff").read_text())
    assert citation["repository-code"] == source
    assert [author["name"] for author in citation["authors"]] == [
        a["name"] for a in PROJECT["authors"]
    ]
    assert all(url.startswith(source) for url in PROJECT["urls"].values())
    for url in PROJECT["urls"].values():
        found = FILES.fullmatch(url)
        assert found is None or (TREE / found[1]).exists(), url
