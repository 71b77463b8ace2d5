"""Where Library() looks for the client library, in which order, and what it says without one."""

import contextlib
import ctypes
import re
import shutil
from pathlib import Path

import pytest
from support import STAND_IN_IS_MEANT

import luna_ext
from luna_ext import discovery
from luna_ext.stub import STATE_VARIABLE, library_path

# The stand-in plays the client library that is found.
pytestmark = STAND_IN_IS_MEANT

LIBRARY_NAME = "libCryptoki2_64.so"
VARIABLES = ("LUNA_EXT_LIBRARY", "ChrystokiConfigurationPath", "LUNA_EXT_FORBID_STUB")


class Machine:
    """A machine on which a client is installed or not, wherever a test puts it."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.monkeypatch = monkeypatch
        self.system_configuration = root / "etc" / "Chrystoki.conf"
        self.default_library = root / "usr" / LIBRARY_NAME
        self.configuration_directory = root / "configuration"
        for variable in VARIABLES:
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(discovery, "SYSTEM_CONFIGURATION", self.system_configuration)
        monkeypatch.setattr(discovery, "DEFAULT_LIBRARY", self.default_library)

    def install(self, name):
        """A client library, which is a PKCS #11 module that can be loaded."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library_path(), path)
        return path

    def set_variable(self, value):
        self.monkeypatch.setenv("LUNA_EXT_LIBRARY", str(value))

    def configure(self, text):
        """Write Chrystoki.conf where ChrystokiConfigurationPath says."""
        self.configuration_directory.mkdir()
        (self.configuration_directory / "Chrystoki.conf").write_text(text)
        self.monkeypatch.setenv("ChrystokiConfigurationPath", str(self.configuration_directory))

    def configure_system(self, text):
        self.system_configuration.parent.mkdir()
        self.system_configuration.write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch, cluster):
    # The cluster is there for whatever is found to be initialised on.
    return Machine(tmp_path, monkeypatch)


def entry(path):
    return f"Chrystoki2 = {{\n    LibUNIX64 = {path};\n}}\n"


@contextlib.contextmanager
def closed(directory):
    """A directory that may not be entered, not even by the superuser."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    capabilities = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, capabilities) == 0
    effective = capabilities[0]
    # Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
    capabilities[0] &= ~0b110
    directory.chmod(0)
    try:
        assert libc.capset(header, capabilities) == 0
        yield
    finally:
        capabilities[0] = effective
        assert libc.capset(header, capabilities) == 0
        directory.chmod(0o700)


def found_path():
    with luna_ext.Library() as luna:
        return luna.path


def complaint():
    with pytest.raises(luna_ext.LibraryLoadError) as caught:
        luna_ext.Library()
    return str(caught.value)


# ---- the constants that the other tests replace ----


def test_system_places_are_those_of_the_luna_client():
    assert Path("/etc/Chrystoki.conf") == discovery.SYSTEM_CONFIGURATION
    assert Path("/usr/safenet/lunaclient/lib/libCryptoki2_64.so") == discovery.DEFAULT_LIBRARY


# ---- the order ----


def test_argument_comes_first(machine):
    wanted = machine.install("argument/client.so")
    machine.set_variable(machine.install("variable/client.so"))
    machine.configure(entry(machine.install("configured/client.so")))
    machine.install("usr/" + LIBRARY_NAME)

    with luna_ext.Library(wanted) as luna:
        assert luna.path == str(wanted)


def test_environment_variable_comes_second(machine):
    machine.set_variable(machine.install("variable/client.so"))
    machine.configure(entry(machine.install("configured/client.so")))
    machine.configure_system(entry(machine.install("system/client.so")))
    machine.install("usr/" + LIBRARY_NAME)

    assert found_path() == str(machine.root / "variable/client.so")


def test_configuration_that_the_environment_names_comes_third(machine):
    machine.configure(entry(machine.install("configured/client.so")))
    machine.configure_system(entry(machine.install("system/client.so")))
    machine.install("usr/" + LIBRARY_NAME)

    assert found_path() == str(machine.root / "configured/client.so")


def test_system_configuration_comes_fourth(machine):
    machine.configure_system(entry(machine.install("system/client.so")))
    machine.install("usr/" + LIBRARY_NAME)

    assert found_path() == str(machine.root / "system/client.so")


def test_default_path_comes_last(machine):
    machine.install("usr/" + LIBRARY_NAME)

    assert found_path() == str(machine.default_library)


def test_system_configuration_is_not_read_when_the_environment_names_another(machine):
    machine.configure("Misc = { }\n")
    machine.configure_system(entry(machine.install("system/client.so")))
    machine.install("usr/" + LIBRARY_NAME)

    assert found_path() == str(machine.default_library)


def test_a_configuration_directory_that_is_relative_is_refused(machine, monkeypatch):
    machine.configure(entry(machine.install("configured/client.so")))
    monkeypatch.chdir(machine.root)
    monkeypatch.setenv("ChrystokiConfigurationPath", machine.configuration_directory.name)

    assert (
        "ChrystokiConfigurationPath: 'configuration' is not an absolute path; set "
        "ChrystokiConfigurationPath to that of the directory that has Chrystoki.conf"
    ) in complaint()

    monkeypatch.setenv("ChrystokiConfigurationPath", str(machine.configuration_directory))
    assert found_path() == str(machine.root / "configured/client.so")


@pytest.mark.parametrize("variable", ["LUNA_EXT_LIBRARY", "ChrystokiConfigurationPath"])
def test_empty_variable_is_as_good_as_none(machine, monkeypatch, variable):
    monkeypatch.setenv(variable, "")
    machine.configure_system(entry(machine.install("system/client.so")))

    assert found_path() == str(machine.root / "system/client.so")


# ---- Chrystoki.conf ----

SHIPPED = """
Chrystoki2 = {
   LibUNIX = /usr/safenet/lunaclient/lib/libCryptoki2.so;
   LibUNIX64 = %s;
}

Luna = {
  DefaultTimeOut = 500000;
  PEDTimeout1 = 100000;
}
CardReader = {
  RemoteCommand = 1;
}
Misc = {
   PE1746Enabled = 0;
   ToolsDir = /usr/safenet/lunaclient/bin;
}
LunaSA Client = {
   ReceiveTimeout = 20000;
   SSLConfigFile = /usr/safenet/lunaclient/bin/openssl.cnf;
   ServerName00 = 192.0.2.10;
   ServerPort00 = 1792;
}
"""
FORMATS = {
    "as shipped": SHIPPED,
    "last section": "Misc = {\n  ToolsDir = /bin;\n}\nChrystoki2 = {\n  LibUNIX64 = %s;\n}\n",
    "on one line": "Misc={Apple=1;}Chrystoki2={LibUNIX=/no/32.so;LibUNIX64=%s;}",
    "spaces everywhere": "  Chrystoki2   =\n{\n\t LibUNIX64 \t =   %s  ;\n\n }",
    "64 before 32": "Chrystoki2 = {\n  LibUNIX64 = %s;\n  LibUNIX = /no/32.so;\n}",
    "without a semicolon": "Chrystoki2 = {\n  LibUNIX64 = %s\n}",
    "quoted": 'Chrystoki2 = {\n  LibUNIX64 = "%s";\n}',
    "windows line ends": "Chrystoki2 = {\r\n  LibUNIX64 = %s;\r\n}\r\n",
    "no line end": "Chrystoki2 = {LibUNIX64 = %s;}",
    "same key in another section": "Other = { LibUNIX64 = /no/other.so; }\n"
    "Chrystoki2 = { LibUNIX64 = %s; }",
    "similar section": "XChrystoki2 = { LibUNIX64 = /no/other.so; }\n"
    "Chrystoki2 = { LibUNIX64 = %s; }",
    "similar keys": "Chrystoki2 = { OldLibUNIX64 = /no/a.so; LibUNIX64x = /no/b.so;"
    " LibUNIX64 = %s; }",
    "other bytes": "Misc = { Author = J\udcf6rg; }\nChrystoki2 = { LibUNIX64 = %s; }",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in FORMATS.items()])
def test_library_is_read_from_a_configuration_file_like(machine, text):
    library = machine.install("client.so")
    machine.configure("")
    file = machine.configuration_directory / "Chrystoki.conf"
    file.write_bytes((text % library).encode("utf-8", "surrogateescape"))

    assert found_path() == str(library)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Chrystoki2 = {\n}\n",
        "Chrystoki2 = {\n  LibUNIX = /usr/lib/libCryptoki2.so;\n}\n",
        "Chrystoki2 = {\n  LibUNIX64 = ;\n}\n",
        "Misc = {\n  LibUNIX64 = /usr/lib/libCryptoki2_64.so;\n}\n",
        "[Chrystoki2]\nLibNT=/usr/lib/libCryptoki2_64.so\n",
    ],
)
def test_configuration_without_the_entry_is_named_with_what_it_lacks(machine, text):
    machine.configure(text)

    message = complaint()

    assert (
        f"{machine.configuration_directory / 'Chrystoki.conf'}: has no entry LibUNIX64" in message
    )
    assert "Chrystoki2" in message


def test_configuration_without_the_entry_leaves_the_default_path(machine):
    machine.configure("Misc = {\n}\n")
    machine.install("usr/" + LIBRARY_NAME)

    assert found_path() == str(machine.default_library)


def test_configuration_that_is_missing_is_named(machine):
    machine.monkeypatch.setenv("ChrystokiConfigurationPath", str(machine.root / "nowhere"))

    message = complaint()

    assert f"{machine.root / 'nowhere' / 'Chrystoki.conf'}: No such file or directory" in message


def test_configuration_that_cannot_be_read_is_named_with_the_reason(machine):
    # A directory: even the superuser cannot read it.
    machine.configuration_directory.mkdir()
    (machine.configuration_directory / "Chrystoki.conf").mkdir()
    machine.monkeypatch.setenv("ChrystokiConfigurationPath", str(machine.configuration_directory))

    message = complaint()

    assert f"{machine.configuration_directory / 'Chrystoki.conf'}: Is a directory" in message


def test_configured_relative_path_is_refused_although_the_file_is_there(machine):
    machine.install("lib/client.so")
    machine.monkeypatch.chdir(machine.root)
    machine.configure(entry("lib/client.so"))

    message = complaint()

    assert (
        "names lib/client.so, which is not an absolute path; write one there, or set "
        "LUNA_EXT_LIBRARY to one"
    ) in message

    machine.set_variable(machine.root / "lib/client.so")
    assert found_path() == str(machine.root / "lib/client.so")


def test_configured_library_that_is_missing_is_named(machine):
    machine.configure(entry(machine.root / "gone.so"))

    assert f"LibUNIX64 = {machine.root / 'gone.so'}: No such file or directory" in complaint()


def test_configured_library_that_is_a_directory_is_no_library(machine):
    machine.configure(entry(machine.root))

    assert f"LibUNIX64 = {machine.root}: is not a file" in complaint()


def test_configuration_in_a_directory_that_may_not_be_entered(machine):
    machine.configure(entry(machine.install("client.so")))

    with closed(machine.configuration_directory):
        message = complaint()

    assert f"{machine.configuration_directory / 'Chrystoki.conf'}: Permission denied" in message


def test_configured_library_in_a_directory_that_may_not_be_entered(machine):
    library = machine.install("closed/client.so")
    machine.configure(entry(library))

    with closed(library.parent):
        message = complaint()

    assert f"LibUNIX64 = {library}: Permission denied" in message


@pytest.mark.parametrize("name", ["argument", "variable"])
def test_library_that_is_wished_for_in_a_directory_that_may_not_be_entered(machine, name):
    library = machine.install("closed/client.so")
    if name == "variable":
        machine.set_variable(library)

    with closed(library.parent), pytest.raises(luna_ext.LibraryLoadError) as caught:
        luna_ext.Library(library if name == "argument" else None)

    assert str(caught.value).endswith(f"the path '{library}': Permission denied")


def test_configured_path_that_the_system_refuses_to_look_at_is_named(machine):
    # Too long, for that is refused to the superuser, too; a forbidden directory is the usual case.
    machine.configure(entry("/" + "a" * 300))

    assert "LibUNIX64 = /aaaa" in complaint()


# ---- what an explicit wish means ----


def test_variable_naming_a_missing_file_is_an_error_although_others_are_there(machine):
    machine.set_variable(machine.root / "gone.so")
    machine.configure_system(entry(machine.install("system/client.so")))
    machine.install("usr/" + LIBRARY_NAME)

    message = complaint()

    assert "LUNA_EXT_LIBRARY" in message
    assert f"'{machine.root / 'gone.so'}' does not exist" in message


def test_variable_naming_a_bare_file_name_is_an_error_although_the_file_is_there(machine):
    machine.install("client.so")
    machine.monkeypatch.chdir(machine.root)
    machine.set_variable("client.so")

    message = complaint()

    assert "LUNA_EXT_LIBRARY" in message
    assert "'client.so' has no slash" in message


def test_variable_naming_a_relative_path_is_resolved_at_once(machine):
    library = machine.install("lib/client.so")
    machine.monkeypatch.chdir(machine.root)
    machine.set_variable("lib/client.so")

    assert found_path() == str(library)


def test_argument_naming_a_missing_file_is_an_error_although_others_are_there(machine):
    machine.set_variable(machine.install("variable/client.so"))
    machine.install("usr/" + LIBRARY_NAME)

    with pytest.raises(luna_ext.LibraryLoadError, match=re.escape("gone.so' does not exist")):
        luna_ext.Library(machine.root / "gone.so")


# ---- nothing is found ----


def test_message_lists_every_place(machine):
    places = complaint().splitlines()[1:]

    assert places == [
        "  - the environment variable LUNA_EXT_LIBRARY: not set",
        f"  - {machine.system_configuration}: No such file or directory",
        f"  - {machine.default_library}: No such file or directory",
    ]


def test_message_says_what_to_do(machine):
    advice = complaint().splitlines()[0]

    assert "Install the Luna client" in advice
    assert "Library(path)" in advice
    assert "LUNA_EXT_LIBRARY" in advice


def test_working_directory_is_never_searched(machine):
    for name in (LIBRARY_NAME, "libCryptoki2.so", "lib/" + LIBRARY_NAME):
        machine.install("here/" + name)
    (machine.root / "here" / "Chrystoki.conf").write_text(
        entry(machine.root / "here" / LIBRARY_NAME)
    )
    machine.monkeypatch.chdir(machine.root / "here")

    assert "no Luna client library found" in complaint()


def test_linker_path_is_never_searched(machine):
    machine.install("linked/" + LIBRARY_NAME)
    machine.monkeypatch.setenv("LD_LIBRARY_PATH", str(machine.root / "linked"))

    assert "no Luna client library found" in complaint()


def test_stand_in_is_never_found_by_itself(machine, cluster):
    machine.monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    machine.monkeypatch.chdir(Path(library_path()).parent)

    message = complaint()

    assert "no Luna client library found" in message
    assert "luna_stub" not in message


def test_what_a_terminal_would_not_show_is_escaped(tmp_path, monkeypatch, caplog):
    """In what is raised, and in log records: paths, and what the system's loader says."""
    directory = tmp_path / "a\x1b[31m\u202e\x9b\u2028"
    directory.mkdir()
    directory.chmod(0o777)
    library = directory / "client.so"
    library.write_bytes(b"no library")
    monkeypatch.delenv("LUNA_EXT_LIBRARY", raising=False)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(directory))
    texts = []
    for path, configuration in (
        (library, ""),
        (None, ""),
        (None, "Chrystoki2 = {LibUNIX64 = /none\u202e;}"),
    ):
        (directory / "Chrystoki.conf").write_text(configuration)
        with pytest.raises(luna_ext.LibraryLoadError) as raised:
            luna_ext.Library(path)
        texts.append(str(raised.value))
    (record,) = caplog.records
    for text in (*texts, record.getMessage()):
        assert r"/a\x1b[31m\u202e\x9b\u2028" in text
        assert text.replace("\n", "").isprintable()
