"""Run the commands of command.md beside this file, and write beneath each what it prints.

They are in blocks of text, behind a `$`, and run in their order on a cluster of the stand-in, made afresh.
`make docs/command.md` runs this, and a test says when that is due. With an argument it writes to that file.
What is another each time, or on another machine, is always the same on the page: VARYING has it.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from luna_ext.stub import Cluster, library_path

PAGE = Path(__file__).with_name("command.md")
BLOCK = re.compile(r"(?<=^```text\n)\$ .*?(?=^```$)", re.MULTILINE | re.DOTALL)
PROGRAM = f"{sys.executable} -P -m luna_ext"

VARYING = (
    (r"^luna-ext: .* is the stand-in.*\n", ""),
    (re.escape(PROGRAM), "/usr/bin/luna-ext"),
    (re.escape(f'"{sys.executable}", "-P", "-m", "luna_ext"'), '"/usr/bin/luna-ext"'),
    (re.escape(library_path()), "/opt/luna_ext/luna_stub.so"),
    (r"Python 3\.\S+", "Python 3.13.0"),
    (r"^\w+: container: .*(\n    -> .*)?", "ok: container: no: process IDs are the host's"),
    (r"^\w+: python-pkcs11: .*(\n    -> .*)?", "ok: python-pkcs11: 0.10.1"),
    (r"^\w+: PyKCS11: .*(\n    -> .*)?", "ok: PyKCS11: 1.5.20"),
    (
        r"^\w+: other users: .*(\n    -> .*)?",
        "ok: other users: none may change the client library or its configuration",
    ),
    # A serial number has one of the cluster's, and the keyring's.
    (r"\b\d{10}(?=00\d{4}\b)", "1234567890"),
    (r"^(slot  label) +PID  held for", r"\1         PID  held for"),
    (r"  +\d+  \d+ s     ", "  4711  2 s     "),
    (r"\(PID \d+\)", "(PID 4711)"),
    (r'"time": [\d.]+', '"time": 1790000002.25'),
    (r'"since": [\d.]+', '"since": 1790000000.5'),
    (r'"pid": \d+', '"pid": 4711'),
    (r"lock is free: [\d.]+ s", "lock is free: 0.001 s"),
    (r"takes [\d.]+ ms meanwhile", "takes 0.1 ms meanwhile"),
)
"""What is looked for, and what is on the page instead."""


def printed_by(command: str, directory: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    text = done.stdout
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


def page() -> str:
    """The page, with what the commands print now."""
    with tempfile.TemporaryDirectory() as place, Cluster(keyrings=4, label="payments-0") as cluster:
        directory = Path(place)
        program = directory / ".bin" / "luna-ext"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {PROGRAM} "$@"\n')
        program.chmod(0o755)
        (directory / "labels.txt").write_text("# one for each team\norders\nbilling\norders\n")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LUNA_", "Chrystoki"))
        }
        environment |= {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": place,
            "LC_ALL": "C.UTF-8",
            "LUNA_EXT_LIBRARY": library_path(),
            "LUNA_STUB_STATE": cluster.path,
        }

        def run(block: re.Match[str]) -> str:
            commands = re.findall(r"^\$ .*\n", block[0], re.MULTILINE)
            return "".join(
                command + printed_by(command.removeprefix("$ "), directory, environment)
                for command in commands
            )

        return BLOCK.sub(run, PAGE.read_text())


if __name__ == "__main__":
    Path(sys.argv[1] if sys.argv[1:] else PAGE).write_text(page())
