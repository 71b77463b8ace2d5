"""For PyInstaller: what the compiled modules import, which it cannot read."""

from PyInstaller import isolated


def imported() -> list[str]:
    import sys

    before = set(sys.modules)
    # Brings the package with it, and is what a compiled module imports only when it is needed.
    import luna_ext.holders  # noqa: F401

    return sorted(set(sys.modules) - before)


hiddenimports: list[str] = isolated.call(imported)
