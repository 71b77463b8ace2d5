"""Chrystoki.conf and crystoki.ini as people edit them, and what an entry of them is."""

import itertools
import random
import time

import pytest

from luna_ext import LibraryLoadError, discovery

CHRYSTOKI = "Chrystoki2"
SERVERS = "LunaSA Client"

# NEW is the library that the file means, OLD one that it does not. In a file without NEW, none is meant.
UNIX_FILES = {
    "a comment with a brace": "Chrystoki2 = {\n  # closed by } as usual\n  LibUNIX64 = NEW;\n}\n",
    "a section in a comment": "# Chrystoki2 = { LibUNIX64 = OLD; }\nChrystoki2 = {\n LibUNIX64 = NEW;\n}",
    "only a section in a comment": "#Chrystoki2 = {\n#  LibUNIX64 = OLD;\n#}\n",
    "an entry in a comment": "Chrystoki2 = {\n  #LibUNIX64 = OLD;\n\t# LibUNIX64=OLD;\nLibUNIX64=NEW;\n}",
    "a comment behind an entry": "Chrystoki2 = {\n  LibUNIX64 = NEW   # the 64 bit one\n}\n",
    "an entry in a comment behind another": "Chrystoki2 = {\nA=1; # LibUNIX64 = OLD;\n LibUNIX64 = NEW;\n}",
    "semicolons for comments": "; Chrystoki2 = { LibUNIX64 = OLD; }\nChrystoki2 = {\n;LibUNIX64 = OLD;\n"
    "  ; LibUNIX64=OLD; }\n A = 1; LibUNIX64 = NEW;\n};\n",
    "only a section behind semicolons": ";Chrystoki2 = {\n;  LibUNIX64 = OLD;\n;}\n",
    "both signs for comments": "#;Chrystoki2 = {\n;#\nChrystoki2={#;\n ;#LibUNIX64=OLD\nLibUNIX64=NEW;#\n}",
    "a quote in a comment": "# don't\nChrystoki2 = {\n  # the \" sign\n  LibUNIX64 = 'NEW'; # isn't\n}\n",
    "a comment before the brace": "Chrystoki2 = # of the client\n\n# }\n{\n  LibUNIX64 = NEW;\n}\n",
    "a comment behind the brace": "Chrystoki2 = { # LibUNIX64 = OLD;\n  LibUNIX64 = NEW;\n}\n",
    "comments with line ends of old Macs": "# Chrystoki2 = {\rChrystoki2 = {\r# }\rLibUNIX64 = NEW\r}\r",
    "an entry without a value": "Chrystoki2 = {\n  LibUNIX64 = ;\n  LibUNIX64 = NEW;\n}\n",
    "an entry without value or semicolon": "Chrystoki2 = {\n  LibUNIX64 =\n  LibUNIX64 = NEW;\n}\n",
    "empty quotes": 'Chrystoki2 = {\n  LibUNIX64 = "";\n  LibUNIX64 = NEW;\n}\n',
    "two entries": "Chrystoki2 = {\n  LibUNIX64 = NEW;\n  LibUNIX64 = OLD;\n}\n",
    "two sections": "Chrystoki2 = {\n}\nChrystoki2 = {\n  LibUNIX64 = NEW;\n}\n",
    "many entries on a line": "Chrystoki2 = { LibUNIX = OLD; A=1;;B = 2 ; LibUNIX64 = NEW; C = 3; }\n",
    "many sections on a line": "Misc={A=1;}Chrystoki2={LibUNIX64=NEW;}Luna={B=2;}",
    "a section that is not closed": "Misc = {\n  A = 1;\nChrystoki2 = {\n  LibUNIX64 = NEW;\n}\n",
    "a section that is never closed": "Chrystoki2 = {\n  LibUNIX64 = NEW;",
    "an entry behind the section": "Chrystoki2 = {\n}\nLibUNIX64 = OLD;\n",
    "an entry of the next section": "Chrystoki2 = {\nMisc = {\n  LibUNIX64 = OLD;\n}\n",
    "a section in the middle of a line": "Misc = { A = 1; Chrystoki2 = { LibUNIX64 = OLD; } }\n",
    "a longer name in the middle of a line": "My Chrystoki2 = {\n LibUNIX64 = OLD;\n}\nNo LibUNIX64=OLD;\n",
    "another case": "chrystoki2 = {\n  LibUNIX64 = OLD;\n}\nChrystoki2 = {\n  libunix64 = OLD;\n}\n",
    "quotes": 'Chrystoki2 = {\n  LibUNIX64 = "NEW";\n}\n',
    "single quotes": "Chrystoki2 = {\n  LibUNIX64 = 'NEW' ;\n}\n",
    "a path with every sign": 'Chrystoki2 = {\n  LibUNIX64 = "NEW #;{}=\'";\n}\n',
    "an entry in the quotes of another": "Chrystoki2 = {\n A = '}; LibUNIX64=OLD;'; LibUNIX64 = NEW;\n}\n",
    "a section in quotes": "Misc = {\n  A = '} Chrystoki2 = { LibUNIX64 = OLD; }';\n}\n",
    "quotes that are not closed": "Misc = {\n A = 5';\n B = '6;\n}\nChrystoki2 = {\n LibUNIX64=NEW; \n}\n",
    "a byte order mark": "\ufeffChrystoki2 = {\n  LibUNIX64 = NEW;\n}\n",
    "other signs for blanks": "\tChrystoki2\t=\t{\f\n\xa0LibUNIX64\xa0=\x0bNEW\t;\r\n}",
}
WINDOWS_FILES = {
    "as shipped": "[Chrystoki2]\r\nLibNT=NEW\r\n[Misc]\r\nLibNT=OLD\r\n",
    "another case": "[CHRYSTOKI2]\nlibnt=NEW\n",
    "blanks": " \t[ Chrystoki2\t]\n\t LibNT \t=\v NEW \t\n",
    "quotes": '[Chrystoki2]\nLibNT = "NEW"\n',
    "single quotes": "[Chrystoki2]\nLibNT='NEW'\n",
    "two kinds of quotes": "[Chrystoki2]\nLibNT='\"NEW\"'\n",
    "every sign": "[Chrystoki2]\nLibNT=NEW ;#=[]%(x)s\n",
    "lines without =": "[Chrystoki2]\nLibNT\nsome words\n[ : ]\n[Chrystoki2\nLibNT=OLD\n",
    "words between": "[Chrystoki2]\nsome words\nLibNT\n: x\nLibNT=NEW\n",
    "an entry before all sections": "LibNT=OLD\n\n[Chrystoki2]\nLibNT=NEW\n",
    "comments": "[Chrystoki2]\n;LibNT=OLD\n \t; LibNT=OLD\nLibNT=NEW\n",
    "a section in a comment": ";[Chrystoki2]\nLibNT=OLD\n",
    "a # before the entry": "[Chrystoki2]\n#LibNT=OLD\n# LibNT=OLD\nLibNT=NEW\n",
    "an indented entry": "[Chrystoki2]\nA=1\n  LibNT=NEW\n",
    "two entries": "[Chrystoki2]\nLibNT=NEW\nLibNT=OLD\n",
    "two entries, the first empty": "[Chrystoki2]\nLibNT=\nLibNT=OLD\n",
    "two sections": "[Chrystoki2]\nA=1\n[Chrystoki2]\nLibNT=OLD\n",
    "a similar section": "[Chrystoki]\nLibNT=OLD\n[Chrystoki22]\nLibNT=OLD\n[Chrystoki2]\nLibNT=NEW",
    "a section without its ]": "[Chrystoki2\nLibNT=NEW\n",
    "an entry behind the ]": "[Chrystoki2] LibNT=OLD\nLibNT=NEW\n",
    "a name that looks alike": "[Chrysto\u212ai2]\nLibNT=OLD\n[Chrystoki2]\nL\u0130bNT=OLD\nLibNT=NEW\n",
    "line ends of old Macs": "[Chrystoki2]\r;LibNT=OLD\rLibNT=NEW\r",
    "a byte order mark": "\ufeff[Chrystoki2]\nLibNT=NEW\n",
}
EVERY_SIGN = " ;#=[]%(x)s"


def cases(files):
    return [pytest.param(text, id=name) for name, text in files.items()]


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Write a configuration file, and let the environment name its directory."""
    monkeypatch.setenv(discovery.CONFIGURATION_VARIABLE, str(tmp_path))
    monkeypatch.delenv(discovery.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(discovery, "DEFAULT_LIBRARY", tmp_path / "usr" / "none.so")

    def write(contents, name="Chrystoki.conf"):
        if isinstance(contents, str):
            contents = contents.encode("utf-8", "surrogateescape")
        (tmp_path / name).write_bytes(contents)

    return write


@pytest.fixture
def windows(configure, monkeypatch):
    """The same on Windows, as far as the file and its format go."""
    monkeypatch.setattr(discovery, "WINDOWS", True)
    return lambda contents: configure(contents, "crystoki.ini")


def configured():
    return discovery.configured_library()[1]


# ---- which library is meant ----


@pytest.mark.parametrize("text", cases(UNIX_FILES))
def test_library_of_chrystoki_conf_is_the_one_that_is_meant(configure, tmp_path, text):
    new = tmp_path / ("new #;{}='" if "every sign" in text or "NEW #" in text else "new")
    new.touch()
    (tmp_path / "old").touch()
    text = text.replace("NEW #;{}='", "NEW").replace("NEW", str(new))
    configure(text.replace("OLD", str(tmp_path / "old")))

    if str(new) in text:
        assert discovery.find_library().path == str(new)
    else:
        with pytest.raises(
            LibraryLoadError, match="has no entry LibUNIX64 in its section Chrystoki2"
        ):
            discovery.find_library()


@pytest.mark.parametrize("text", cases(WINDOWS_FILES))
def test_library_of_crystoki_ini_is_the_one_that_windows_takes(windows, text):
    windows(text.replace("NEW", r"C:\new.dll").replace("OLD", r"C:\old.dll"))
    place, library = discovery.configured_library()

    if "NEW" not in text:
        assert library is None
        assert "crystoki.ini: has no entry LibNT in its section Chrystoki2" in place
    else:
        end = EVERY_SIGN if EVERY_SIGN in text else ""
        bare = r"C:\new.dll" + end
        assert str(library) == (f'"{bare}"' if "'\"" in text else bare)


def test_crystoki_ini_in_utf_16(windows):
    windows("\ufeff[Chrystoki2]\r\nLibNT=C:\\J\u00f6rg\\x.dll\r\n".encode("utf-16-le"))

    assert str(configured()) == "C:\\J\u00f6rg\\x.dll"


def test_crystoki_ini_in_utf_16_that_ends_in_the_middle_of_a_sign(windows):
    windows("\ufeff[Chrystoki2]\r\nLibNT=C:\\x.dll\r\n".encode("utf-16-le") + b"\n")

    assert str(configured()) == "C:\\x.dll"


def test_crystoki_ini_in_the_code_page_of_the_machine(windows, monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "cp1252")
    windows(b"[Chrystoki2]\r\nLibNT=C:\\J\xf6rg \x81\\x.dll\r\n")

    assert str(configured()) == "C:\\J\u00f6rg \udc81\\x.dll"


def test_windows_without_the_variable_has_no_configuration(windows, monkeypatch):
    monkeypatch.delenv(discovery.CONFIGURATION_VARIABLE)

    assert discovery.configured_library() == (
        "the environment variable ChrystokiConfigurationPath: not set",
        None,
    )


# ---- the clusters ----


def test_clusters_are_those_that_the_section_of_the_client_names(configure):
    configure(
        "LunaSA Client = {\n  ServerName00 = 192.0.2.10;\n  LNHServer00 = 192.0.2.11;\n"
        "  LNHServerCN00 = one;\n #LNHServer01 = 192.0.2.12;\n  LNHServer02 = ;\n"
        "  LNHServer10 = 192.0.2.14;\n  LNHServer09 = 'hsm.example';\n}\n"
        "Misc = {\n  LNHServer03 = 192.0.2.15;\n}\n"
    )

    assert discovery.Configuration().clusters() == {
        "LNHServer00": "192.0.2.11",
        "LNHServer09": "hsm.example",
    }


def test_clusters_of_crystoki_ini(windows):
    windows("[LunaSA client]\nlnhserver01=192.0.2.11\n;LNHServer02=192.0.2.12\n")

    assert discovery.Configuration().clusters() == {"LNHServer01": "192.0.2.11"}


# ---- an entry, by the rules ----


def plain(text):
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def without_quotes(value):
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def signs_of(text):
    """Each sign that no comment hides, and whether it has its meaning: it has none within quotes."""
    signs = []
    place = 0
    while place < len(text):
        begins_line = not text[:place].rpartition("\n")[2].strip()
        if text[place] == "#" or (text[place] == ";" and begins_line):
            while place < len(text) and text[place] != "\n":
                place += 1
            continue
        signs.append((text[place], True))
        place += 1
        if signs[-1][0] == "=":
            while place < len(text) and text[place].isspace() and text[place] != "\n":
                signs.append((text[place], True))
                place += 1
            if text[place : place + 1] in ("'", '"'):
                length = text[place + 1 :].partition("\n")[0].find(text[place]) + 2
                if length > 1:
                    signs += [(sign, False) for sign in text[place : place + length]]
                    place += length
    return signs


def unix_entry(text, key, section):
    """Reads one sign after the other, as the rules are told in words."""
    signs = signs_of(plain(text))
    inside = None
    at_start = True
    while signs:
        length = 0
        while length < len(signs) and not (signs[length][1] and signs[length][0] in ";}\n"):
            length += 1
        if at_start:
            equals = signs.index(("=", True), 0, length) if ("=", True) in signs[:length] else None
            brace = None if equals is None else equals + 1
            while brace is not None and brace < len(signs) and signs[brace][0].isspace():
                brace += 1
            name = "".join(sign for sign, _ in signs[:equals])
            if brace is not None and signs[brace : brace + 1] == [("{", True)] and "{" not in name:
                inside = name.strip()
                del signs[: brace + 1]
                at_start = False
                continue
        name, _, value = "".join(sign for sign, _ in signs[:length]).partition("=")
        value = without_quotes(value.strip())
        if inside == section and name.strip() == key and value:
            return value
        end = signs[length][0] if length < len(signs) else ""
        if end == "}":
            inside = None
        at_start = end in ("}", "\n")
        del signs[: length + 1]
    return None


def windows_entry(text, key, section):
    """Reads one line after the other."""
    inside = False
    for line in plain(text).split("\n"):
        line = line.strip(" \t\v")
        if line[:1] == "[":
            if inside:
                return None
            inside = line[1:].partition("]")[0].strip(" \t\v").lower() == section.lower()
        elif inside and line[:1] != ";":
            name, equals, value = line.partition("=")
            if equals and name.rstrip(" \t\v").lower() == key.lower():
                return without_quotes(value.strip(" \t\v"))
    return None


UNIX_WORDS = (
    *("Name = {", "\nName = {\n", "Name = ", "Key", "Key = ", ";Key='a';", "\nKey = a\n"),
    *("Other = {", "Name", "NAME = {", "key = ", "a", "= 'b}'", "\n{"),
)
WINDOWS_WORDS = ("[Name]", "\n[Name]\n", "Key", "key", "\nKey=", "NAME", "[", "]", "a", "[b]\n")
SIGNS = (*"={};#'\" \t\v\n\n\r", "\r\n", "\ufeff", "\x85", ";\n", "\n# ", "='", '="')
READERS = {
    "Chrystoki.conf": (discovery._unix_entry, unix_entry, UNIX_WORDS + SIGNS),
    "crystoki.ini": (discovery._windows_entry, windows_entry, WINDOWS_WORDS + SIGNS),
}


@pytest.mark.parametrize("file", READERS)
def test_any_text_is_read_by_the_rules(file):
    reader, by_the_rules, words = READERS[file]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    found = 0
    until = time.monotonic() + 5
    for number in itertools.count():
        text = "".join(chance.choices(words, k=chance.randrange(40)))
        value = reader(text, "Key", "Name")
        assert value == by_the_rules(text, "Key", "Name"), (seed, number, text)
        found += bool(value)
        if time.monotonic() > until:
            break

    assert found > number / 100


# ---- no text takes long ----

MEGABYTE = 1 << 20
PIECES = (
    *"a=;#{}[] \t\n\r\"'",
    "a=\n",
    "a={",
    "=;",
    "a;",
    "#\n",
    " #",
    "='",
    '="',
    "=\"'",
    "a=''",
    "a = ';'",
    "}\n",
    "a }",
    "\n ",
    " =",
    "a=\n\n",
    "[a]\n",
    "[Chrystoki2]\n",
    "Chrystoki2={",
    "Chrystoki2=\n",
    "\nChrystoki2 = { LibUNIX64=;",
    "LibUNIX64 ",
    "LibNT=\n",
)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("beginning", ["Chrystoki2 = {\n", "[Chrystoki2]\n"])
def test_a_megabyte_is_read_in_no_time(beginning, piece):
    text = (beginning + piece * MEGABYTE)[:MEGABYTE]

    for read, key in ((discovery._unix_entry, "LibUNIX64"), (discovery._windows_entry, "LibNT")):
        # The time of this thread alone, for other programs may keep the machine busy.
        began = time.thread_time()
        read(text, key)
        assert time.thread_time() - began < 1
