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
        says = (
            f"the command needs the package {package}: pip install {' '.join(NEEDED)}"
            if package in NEEDED
            else f"{error}: it is a part of luna_ext, or of what it needs; install luna_ext again"
        )
        print(f"luna-ext: {says}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("luna-ext: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
