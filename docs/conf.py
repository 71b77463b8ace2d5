"""How Sphinx makes the pages of docs/: `make docs`. Nothing is fetched from anywhere."""

import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
TREE = DOCS.parent
sys.path.append(str(DOCS))

import sequence  # noqa: E402

project = "luna_ext"
author = "luna_ext contributors"
copyright = author
source = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["urls"]["Source"]

extensions = [
    "autoapi.extension",
    "myst_parser",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["performance/*"]
html_theme = "furo"
html_title = "luna_ext"
html_theme_options = {
    "source_repository": source,
    "source_branch": "main",
    "source_directory": "docs/",
}
# The prompts of the tutorial's terminal, and what is printed there, are not for the clipboard.
copybutton_prompt_text = "$ "

myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["colon_fence"]

# The reference is made from the sources, where a .pyi has what is compiled; nothing is imported for it.
autoapi_dirs = ["../luna_ext"]
autoapi_file_patterns = ["*.pyi", "*.py"]
autoapi_ignore = ["*/commands/*", "*/freezing/*", "*/__main__.py"]
# The pages below reference/ say what is shown where.
autoapi_generate_api_docs = False
autoapi_options = ["members", "undoc-members"]
autoapi_python_class_content = "class"
# It looks for where a name comes from, also that of a module that luna_ext imports from itself.
suppress_warnings = ["autoapi.python_import_resolution"]
# A word in backticks of a docstring is a name, if there is one.
default_role = "py:obj"
# It would make one dash of the two before an option.
smartquotes = False
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


class Diagram(Directive):
    """A block of the language mermaid."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            picture = sequence.draw("\n".join(self.content))
        except ValueError as error:
            raise self.error(str(error)) from None
        return [nodes.raw("", f"<p>{picture}</p>", format="html")]


def setup(app: Sphinx) -> None:
    app.add_directive("mermaid", Diagram)

    # The help of the command is plain text, in which neither `CKR_` nor `payments-*` is markup.
    def escape(app: Sphinx, context: object, lines: list[str]) -> None:
        lines[:] = [re.sub(r"_(?!\w)|(?<!\*)\*(?!\*)", r"\\\g<0>", line) for line in lines]

    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", escape)

    # Types as they are written in the sources: Library, not luna_ext._cluster.Library.
    def shorten(app: Sphinx, *description: object) -> tuple[str | None, ...]:
        *_, arguments, returned = description
        modules = r"\b(?:luna_ext\.\w+|collections\.abc|types|os)\.(?=[A-Z])"
        return tuple(text and re.sub(modules, "", str(text)) for text in (arguments, returned))

    app.connect("autodoc-process-signature", shorten)
