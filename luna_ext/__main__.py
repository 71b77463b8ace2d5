"""The command luna-ext, also as `python -m luna_ext`."""

from __future__ import annotations

import sys

NEEDED = ("click", "rich")


def main() -> int:
    """Run the command; its exit code."""
    try:
        from .commands.cli import run

        return run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in NEEDED:
            raise
        print(
            f"luna-ext: the command needs the package {package}: pip install 'luna_ext[cli]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
