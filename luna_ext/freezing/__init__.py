"""What programs that put a Python program into one file do not see of luna_ext by themselves."""


def hook_directories() -> list[str]:
    """Where PyInstaller's hooks are; it finds this by the entry point `hook-dirs`."""
    return list(__path__)
