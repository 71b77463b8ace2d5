"""Why luna_ext cannot be imported where its compiled modules are missing."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path


def reason() -> str:
    """What is wrong and what to do; empty if the compiled modules are there."""
    spec = find_spec("luna_ext._mutex")
    if spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES)):
        return ""
    package = Path(__file__).parent
    archive = next((parent for parent in package.parents if parent.is_file()), None)
    if archive is not None:
        return (
            f"luna_ext cannot be imported out of {archive}: Python loads compiled modules from files of "
            "their own, not from a zip. Leave luna_ext out of it, and install it with pip for the Python "
            "that runs it"
        )
    return (
        f"luna_ext has no compiled modules for this Python (*{EXTENSION_SUFFIXES[0]}) in {package}. "
        "Install it with the pip of this Python; in a clone that is: pip install --editable ."
    )
