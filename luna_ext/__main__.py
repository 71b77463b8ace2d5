"""The command luna-ext, also as `python -m luna_ext`."""

from __future__ import annotations

import sys

NEEDED = ("click", "rich")


def main() -> int:
    """Run the command; its exit code."""
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        print(
            f"luna-ext: the command needs the package {error.name}: pip install 'luna_ext[cli]'",
            file=sys.stderr,
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
