"""What docs/command.md shows is what the command prints."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_what_the_command_prints(tmp_path):
    """If not: make docs/command.md."""
    new = tmp_path / "command.md"
    subprocess.run([sys.executable, DOCS / "make_command_output.py", new], check=True)
    assert (DOCS / "command.md").read_text() == new.read_text()
