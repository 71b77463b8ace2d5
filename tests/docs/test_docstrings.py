"""Docstrings of public names: all there, in NumPy's style, the same in the stub as in the compiled module.

And an editor shows them: asked of pyright's language server, as editors do.
"""

import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from blocks import PATIENCE, TREE

MODULES = ("luna_ext", "luna_ext.metrics", "luna_ext.stub")
# basedpyright brings its Node.js along; pyright itself would download one.
SERVER = shutil.which("basedpyright-langserver", path=str(Path(sys.executable).parent))


def first_line(thing):
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def public_names():
    """Each public name, as it is written, with the first line of its docstring."""
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            thing = getattr(importlib.import_module(module), name)
            # A constant has none at run time.
            if not inspect.isclass(thing) and not inspect.isroutine(thing):
                continue
            yield f"{module}.{name}", first_line(thing)
            if not inspect.isclass(thing):
                continue
            for member, value in vars(thing).items():
                kind = inspect.isroutine(value) or isinstance(value, property)
                described = inspect.isgetsetdescriptor(value) and value.__doc__
                if not member.startswith("_") and (kind or described):
                    yield f"{module}.{name}.{member}", first_line(value)


NAMES = dict(public_names())
NUMPY_STYLE = {
    *("GL03", "GL05", "GL06", "GL07"),  # blank lines, sections: their spelling, names and order
    *("SS01", "SS03", "SS04", "SS06"),  # the summary: it is there, a sentence, of one line
    *(
        "PR01",
        "PR02",
        "PR03",
        "PR04",
        "PR06",
        "PR07",
        "PR09",
    ),  # the parameters: all, no other, with types
}


class Server:
    """pyright's language server, on pipes: the protocol of language servers, as far as a hover needs it."""

    def __init__(self, directory):
        (directory / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(TREE)]}))
        self.directory = directory
        self.number = 0
        self.process = subprocess.Popen(
            [SERVER, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        folder = {"uri": directory.as_uri(), "name": "test"}
        formats = {"textDocument": {"hover": {"contentFormat": ["plaintext"]}}}
        self.ask(
            "initialize",
            {
                "processId": None,
                "rootUri": folder["uri"],
                "capabilities": formats,
                "workspaceFolders": [folder],
            },
        )
        self.tell("initialized", {})

    def send(self, **message):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def receive(self):
        length = 0
        while line := self.process.stdout.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        assert length, "the language server has ended"
        return json.loads(self.process.stdout.read(length))

    def tell(self, method, params):
        self.send(method=method, params=params)

    def ask(self, method, params):
        self.number += 1
        self.send(id=self.number, method=method, params=params)
        while True:
            message = self.receive()
            if "method" not in message:
                if message["id"] == self.number:
                    return message["result"]
            elif "id" in message:
                # It asks the editor, which has no settings of its own.
                items = message["params"].get("items", [])
                self.send(id=message["id"], result=[{} for _ in items])


@pytest.fixture
def server(tmp_path):
    started = Server(tmp_path)
    yield started
    started.process.kill()
    started.process.communicate(timeout=PATIENCE)


def test_every_public_name_has_a_docstring():
    assert len(NAMES) > 80
    assert [name for name, says in NAMES.items() if not says] == []


def test_every_public_name_has_its_types_checked():
    """Outside of stubs, as an application uses it."""
    used = (TREE / "tests" / "typing_of_all_names.py").read_text()
    names = {
        *(name for module in MODULES for name in importlib.import_module(module).__all__),
        *(name.rpartition(".")[2] for name in NAMES),
    }
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", used)) == []


@pytest.mark.skipif(SERVER is None, reason="basedpyright is not installed (PyPI: basedpyright)")
def test_an_editor_shows_the_docstring_of_each_public_name(server, tmp_path):
    text = "".join(f"import {module}\n" for module in MODULES) + "\n".join(NAMES)
    document = {"uri": (tmp_path / "written.py").as_uri()}
    server.tell(
        "textDocument/didOpen",
        {"textDocument": {**document, "languageId": "python", "version": 1, "text": text}},
    )
    unshown = []
    for line, (name, says) in enumerate(NAMES.items(), len(MODULES)):
        position = {"line": line, "character": len(name) - 1}
        answer = server.ask("textDocument/hover", {"textDocument": document, "position": position})
        if answer is None or says not in answer["contents"]["value"]:
            unshown.append(name)
    assert unshown == []


def test_docstrings_of_the_stub_are_those_of_the_compiled_module():
    compiled = importlib.import_module("luna_ext._cluster")
    tree = ast.parse((TREE / "luna_ext" / "_cluster.pyi").read_text())
    different = []
    for part in tree.body:
        if not isinstance(part, ast.ClassDef | ast.FunctionDef) or not hasattr(compiled, part.name):
            continue
        members = [part, *(one for one in part.body if isinstance(one, ast.FunctionDef))]
        for one in members:
            thing = getattr(compiled, part.name)
            if one is not part:
                thing = inspect.getattr_static(thing, one.name, None)
            said, compiled_says = ast.get_docstring(one), inspect.getdoc(thing)
            # Cython gives none to an attribute of a cdef class.
            if said is not None and compiled_says not in (said, None):
                different.append(f"{part.name}.{one.name}")
    assert different == []


@pytest.mark.skipif(
    find_spec("numpydoc") is None, reason="numpydoc is not installed (PyPI: numpydoc)"
)
def test_docstrings_describe_each_parameter_in_the_style_of_numpy():
    from numpydoc.validate import validate

    # Records and exceptions are made by the library, and their fields are said elsewhere.
    made_by_users = (
        "luna_ext.Library",
        "luna_ext.stub.Cluster",
        "luna_ext.metrics.PrometheusCollector",
    )
    wrong = [
        (name, *error)
        for name in NAMES
        if name in made_by_users or name.rpartition(".")[2].islower()
        for error in validate(name)["errors"]
        if error[0] in NUMPY_STYLE
    ]
    assert wrong == []
