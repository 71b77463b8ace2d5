"""For PyInstaller: what the compiled modules import, which it cannot read."""

from PyInstaller import isolated


def imported() -> list[str]:
    import sys

    before = set(sys.modules)
    # They bring the package with them, and are what it imports only when it is needed.
    import filecmp  # noqa: F401

    import luna_ext.applications
    import luna_ext.holders
    import luna_ext.neighbours
    import luna_ext.ownership
    import luna_ext.provisioning
    import luna_ext.stub  # noqa: F401

    return sorted(set(sys.modules) - before)


hiddenimports: list[str] = isolated.call(imported)
