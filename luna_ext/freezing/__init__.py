"""Hooks for PyInstaller, which does not find all parts of luna_ext by itself."""


def hook_directories() -> list[str]:
    """Where PyInstaller's hooks are; it finds this by the entry point `hook-dirs`."""
    return list(__path__)
