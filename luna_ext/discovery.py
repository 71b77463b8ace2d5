"""Which client library to load: the argument, the environment, Chrystoki.conf, the default path."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

from .errors import LibraryLoadError

ENVIRONMENT_VARIABLE = "LUNA_EXT_LIBRARY"
CONFIGURATION_VARIABLE = "ChrystokiConfigurationPath"
SYSTEM_CONFIGURATION = Path("/etc/Chrystoki.conf")
DEFAULT_LIBRARY = Path("/usr/safenet/lunaclient/lib/libCryptoki2_64.so")

_SECTION = r"(?P<name>[\w.]+)\s*=\s*\{(?P<body>[^}]*)\}"
_ENTRY = r"(?m:(?:^|;)[^\S\n]*(?P<key>\w+)\s*=\s*(?P<value>[^;\n]*))"


class Location:
    """A client library that was found.

    Attributes
    ----------
    path : str
        Absolute, of a file that exists.
    source : str
        What named it: the argument, the environment, the configuration, or the default path.
    """

    __slots__ = ("path", "source")

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.source = source


def find_library(path: str | os.PathLike[str] | None = None) -> Location:
    """Find the client library to load.

    Looks at, in this order: `path`; the environment variable LUNA_EXT_LIBRARY; the entry
    Chrystoki2/LibUNIX64 (Windows: LibNT) of the client's configuration file, which is in the
    directory that the environment variable ChrystokiConfigurationPath names, else
    /etc/Chrystoki.conf; /usr/safenet/lunaclient/lib/libCryptoki2_64.so. The first two are explicit
    wishes: if the file is not there, nothing else is tried.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The file to load; with a slash, so that the system does not search for it.

    Returns
    -------
    Location

    Raises
    ------
    LibraryLoadError
        No library was found; the message lists every place.
    TypeError
        `path` is not a str or os.PathLike[str].
    """
    if path is not None:
        return Location(_existing(path, "the path"), "the argument")
    if wish := os.environ.get(ENVIRONMENT_VARIABLE):
        absolute = _existing(wish, f"{ENVIRONMENT_VARIABLE}, the path")
        return Location(absolute, f"the environment variable {ENVIRONMENT_VARIABLE}")
    looked: list[str] = [f"the environment variable {ENVIRONMENT_VARIABLE}: not set"]
    for place, candidate in (configured_library(), (str(DEFAULT_LIBRARY), DEFAULT_LIBRARY)):
        if candidate is None:
            looked.append(place)
        elif not candidate.is_absolute():
            looked.append(f"{place}: names {candidate}, which is not an absolute path")
        elif (obstacle := _obstacle(candidate)) is not None:
            looked.append(f"{place}: {obstacle}")
        else:
            default = candidate is DEFAULT_LIBRARY
            return Location(str(candidate), "the client's default path" if default else place)
    raise LibraryLoadError(
        "no Luna client library found. Install the Luna client, or name its libCryptoki2 as "
        f"Library(path) or in the environment variable {ENVIRONMENT_VARIABLE}. Looked at:"
        + "".join(f"\n  - {place}" for place in looked)
    )


def _existing(path: str | os.PathLike[str], what: str) -> str:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(
            f"the library's path is a str or os.PathLike[str], not {type(text).__name__}"
        )
    if "\0" in text:
        raise LibraryLoadError(f"{what} {text!r} contains NUL; give the file's path")
    separators = (os.sep, os.altsep) if os.altsep else (os.sep,)
    if not any(separator in text for separator in separators):
        raise LibraryLoadError(
            f"{what} {text!r} has no slash: the system would search for it in places of its own "
            f"choice. Give the file's path, such as {os.path.join(os.curdir, text or 'FILE')!r} or "
            "an absolute one"
        )
    absolute = os.path.abspath(text)
    if not os.path.exists(absolute):
        raise LibraryLoadError(f"{what} {text!r} does not exist")
    if not os.path.isfile(absolute):
        raise LibraryLoadError(f"{what} {text!r} is not a file")
    return absolute


def _obstacle(file: Path) -> str | None:
    """Why this is not a file that can be loaded; None if it is one."""
    try:
        return None if stat.S_ISREG(file.stat().st_mode) else "is not a file"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def configured_library() -> tuple[str, Path | None]:
    """The library that the client's configuration names, or None; and, before it, a description of
    where that is written, or why none was found.
    """
    windows = sys.platform == "win32"
    directory = os.environ.get(CONFIGURATION_VARIABLE)
    if directory and not os.path.isabs(directory):
        return f"{CONFIGURATION_VARIABLE}: {directory!r} is not an absolute path", None
    if directory:
        file = Path(directory, "crystoki.ini" if windows else "Chrystoki.conf")
    elif windows:
        return f"the environment variable {CONFIGURATION_VARIABLE}: not set", None
    else:
        file = SYSTEM_CONFIGURATION
    key = "LibNT" if windows else "LibUNIX64"
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        return f"{file}: {error.strerror or error}", None
    try:
        value = _windows_entry(text, key) if windows else _unix_entry(text, key)
    except ValueError as error:
        return f"{file}: {error}", None
    if not value:
        return f"{file}: has no entry {key} in its section Chrystoki2", None
    return f"{file}: {key} = {value}", Path(value)


def _unix_entry(text: str, key: str) -> str | None:
    """Read `Chrystoki2 = { LibUNIX64 = /path; }`."""
    for section in re.finditer(_SECTION, text):
        if section["name"] == "Chrystoki2":
            for entry in re.finditer(_ENTRY, section["body"]):
                if entry["key"] == key:
                    return entry["value"].strip().strip('"')
    return None


def _windows_entry(text: str, key: str) -> str | None:
    """Read `[Chrystoki2]` and below it `LibNT=path`."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ValueError(error.message.splitlines()[0]) from None
    return parser.get("Chrystoki2", key, fallback=None)
