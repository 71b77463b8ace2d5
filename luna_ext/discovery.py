"""Which client library to load, and what the client's configuration file says."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from pathlib import Path

from .errors import LibraryLoadError
from .escaping import printable

# As typing.TYPE_CHECKING, which takes long to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ENVIRONMENT_VARIABLE = "LUNA_EXT_LIBRARY"
CONFIGURATION_VARIABLE = "ChrystokiConfigurationPath"
SYSTEM_CONFIGURATION = Path("/etc/Chrystoki.conf")
DEFAULT_LIBRARY = Path("/usr/safenet/lunaclient/lib/libCryptoki2_64.so")

WINDOWS = sys.platform == "win32"

MAIN_SECTION = "Chrystoki2"
CLUSTER_SECTION = "LunaSA Client"
MISC_SECTION = "Misc"
APPLICATION_KEYS = ("AppIdMajor", "AppIdMinor", "AppId")
"""An application ID of 64 bits in two parts, and one of 128 bits, which newer clients know as well."""
CLUSTERS = 10
"""A client registers with so many clusters at most: LNHServer00 to LNHServer09."""

# No expression below can match a stretch of text in two ways, or begin at many places of it: the time that
# they take grows with the file's length and no faster.
_HIDING = re.compile(
    r"""
    (?P<quoted> =[^\S\n]* (?: "[^"\n]*" | '[^'\n]*' ) )
    | \#.* (?: \n[^\S\n]*[\#;].* )*
    | ^[^\S\n]*;.*
    """,
    re.VERBOSE | re.MULTILINE,
)
_SECTION_END = re.compile(r"\}|^[^={};\n]*=\s*\{", re.MULTILINE)
_NEXT_SECTION = re.compile(r"^[ \t\v]*\[", re.MULTILINE)
_WINDOWS_FLAGS = re.MULTILINE | re.IGNORECASE | re.ASCII
# Signs that no decoded file has stand for those that mean nothing within quotes.
_HIDE = str.maketrans(";{}", "\ud800\ud801\ud802")
_SHOW = str.maketrans("\ud800\ud801\ud802", ";{}")


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
            looked.append(
                f"{place}: names {candidate}, which is not an absolute path; write one there, or set "
                f"{ENVIRONMENT_VARIABLE} to one"
            )
        elif (obstacle := _obstacle(candidate)) is not None:
            looked.append(f"{place}: {obstacle}")
        else:
            default = candidate is DEFAULT_LIBRARY
            return Location(str(candidate), "the client's default path" if default else place)
    raise LibraryLoadError(
        "no Luna client library found. Install the Luna client, or name its libCryptoki2 as "
        f"Library(path) or in the environment variable {ENVIRONMENT_VARIABLE}. Looked at:"
        + "".join(f"\n  - {printable(place)}" for place in looked)
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
    try:
        mode = os.stat(absolute).st_mode
    except (OSError, ValueError) as error:
        # Behind a directory that may not be entered, the file may well be there.
        missing = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
        says = " does not exist" if missing else f": {_reason(error)}"
        raise LibraryLoadError(f"{what} {text!r}{says}") from None
    if not stat.S_ISREG(mode):
        raise LibraryLoadError(f"{what} {text!r} is not a file")
    return absolute


def _obstacle(file: Path) -> str | None:
    """Why this is not a file that can be loaded; None if it is one."""
    try:
        return None if stat.S_ISREG(file.stat().st_mode) else "is not a file"
    except (OSError, ValueError) as error:
        return _reason(error)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


# ---- the client's configuration ----


class Configuration:
    """The client's configuration file, as it was when this object was made.

    Attributes
    ----------
    file : pathlib.Path
        Chrystoki.conf or, on Windows, crystoki.ini.
    """

    __slots__ = ("_text", "file")

    def __init__(self) -> None:
        """Read the file.

        Raises
        ------
        LibraryLoadError
            There is no such file that can be read; the message names the place and the reason.
        """
        self.file = configuration_file()
        try:
            mode = os.stat(self.file).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                # To open a pipe may take for ever.
                raise LibraryLoadError(f"{printable(str(self.file))}: is not a file")
            contents = self.file.read_bytes()
        except (OSError, ValueError) as error:
            raise LibraryLoadError(f"{printable(str(self.file))}: {_reason(error)}") from None
        self._text = _decoded(contents)

    def entry(self, section: str, key: str) -> str | None:
        """The value of an entry; None if there is none, or nothing in it."""
        read = _windows_entry if WINDOWS else _unix_entry
        return read(self._text, key, section) or None

    def clusters(self) -> dict[str, str]:
        """The clusters that the client is registered with: the value of each LNHServer00 to 09."""
        return self._entries(
            CLUSTER_SECTION, [f"LNHServer{number:02}" for number in range(CLUSTERS)]
        )

    def application_id(self) -> dict[str, str]:
        """The entries that set an application ID for all processes with this configuration; mostly none."""
        if "appid" not in self._text.lower():
            # Each Library reads them, and to look for an entry takes ten times as long.
            return {}
        return self._entries(MISC_SECTION, APPLICATION_KEYS)

    def _entries(self, section: str, keys: Iterable[str]) -> dict[str, str]:
        values = {key: self.entry(section, key) for key in keys}
        return {key: value for key, value in values.items() if value}


def configuration_file() -> Path:
    """The client's configuration, whether it is there or not.

    Raises
    ------
    LibraryLoadError
        The environment does not say where it is, or not in a way that holds everywhere.
    """
    name = "crystoki.ini" if WINDOWS else "Chrystoki.conf"
    directory = os.environ.get(CONFIGURATION_VARIABLE)
    if directory and not os.path.isabs(directory):
        raise LibraryLoadError(
            f"{CONFIGURATION_VARIABLE}: {directory!r} is not an absolute path; set "
            f"{CONFIGURATION_VARIABLE} to that of the directory that has {name}"
        )
    if not directory and WINDOWS:
        raise LibraryLoadError(f"the environment variable {CONFIGURATION_VARIABLE}: not set")
    return Path(directory, name) if directory else SYSTEM_CONFIGURATION


def configured_library() -> tuple[str, Path | None]:
    """The library that the client's configuration names, or None.

    Before it: a description of where that is written, or why none was found.
    """
    key = "LibNT" if WINDOWS else "LibUNIX64"
    try:
        configuration = Configuration()
    except LibraryLoadError as error:
        return str(error), None
    value = configuration.entry(MAIN_SECTION, key)
    if value is None:
        return f"{configuration.file}: has no entry {key} in its section {MAIN_SECTION}", None
    return f"{configuration.file}: {key} = {value}", Path(value)


def _decoded(contents: bytes) -> str:
    encoding = "utf-8"
    if WINDOWS and contents.startswith(codecs.BOM_UTF16_LE):
        return contents.decode("utf-16", "replace")
    if WINDOWS and not contents.startswith(codecs.BOM_UTF8):
        import locale

        # The ANSI code page, whether or not Python is in its UTF-8 mode.
        encoding = locale.getencoding()
    return contents.decode(encoding, "surrogateescape")


def _unix_entry(text: str, key: str, section: str = MAIN_SECTION) -> str | None:
    """Read an entry of Chrystoki.conf, such as `Chrystoki2 = { LibUNIX64 = /path; }`.

    A `#` hides the rest of its line; so does a `;` that begins it, as in crystoki.ini. A section begins
    with `NAME = {` at the start of a line, or right behind a `}`; the `{` may come on a later line. It
    ends at the next `}`, or where another one begins. An entry ends at a `;`, or with its line or
    section. A value in quotes, on one line, may have any of these signs in it. The first entry of this
    name that has a value counts, in any section of this name.
    """
    text = _HIDING.sub(_hide, _with_plain_lines(text)).replace("}", "}\n")
    heading = re.compile(rf"^[^\S\n]*{re.escape(section)}[^\S\n]*=\s*\{{", re.MULTILINE)
    entry = re.compile(rf"(?:^|;)[^\S\n]*{re.escape(key)}[^\S\n]*=([^;\n]*)", re.MULTILINE)
    for begin in heading.finditer(text):
        end = _SECTION_END.search(text, begin.end())
        for found in entry.finditer(text[begin.end() : end.start() if end else None]):
            if value := _bare(found[1].strip()):
                return value.translate(_SHOW)
    return None


def _hide(found: re.Match[str]) -> str:
    quoted = found["quoted"]
    return quoted.translate(_HIDE) if quoted else ""


def _windows_entry(text: str, key: str, section: str = MAIN_SECTION) -> str | None:
    """Read an entry of crystoki.ini: `[Chrystoki2]` and below it `LibNT=path`.

    By the rules of Windows' own GetPrivateProfileString: the first section of this name counts, and in it
    the first entry of this name, whatever their case. The `]` may be missing; what is behind it counts for
    nothing. A line that begins with `;` is a comment, but no other sign begins one; a line without `=` is
    no entry. A pair of quotes around a value is no part of it. Unlike there, a UTF-8 byte order mark
    does not hide the first line.
    """
    text = _with_plain_lines(text)
    blanks = r"[ \t\v]*"
    heading = rf"^{blanks}\[{blanks}{re.escape(section)}{blanks}(?:\]|$)"
    entry = re.compile(rf"^{blanks}{re.escape(key)}{blanks}=(.*)", _WINDOWS_FLAGS)
    begin = re.search(heading, text, _WINDOWS_FLAGS)
    if begin is None:
        return None
    end = _NEXT_SECTION.search(text, begin.end())
    found = entry.search(text, begin.end(), end.start() if end else len(text))
    return _bare(found[1].strip(" \t\v")) if found else None


def _with_plain_lines(text: str) -> str:
    """The text without a byte order mark, each line ending in a line feed."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _bare(value: str) -> str:
    """The value without a pair of quotes around it."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value
