"""doctor: each thing that it looks at, well and not well."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import LOCK, of_session, wait_until

from luna_ext.commands import apart, doctoring
from luna_ext.commands.console import Settings
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import library_path


@pytest.fixture
def client(old_client, monkeypatch):
    """Let the environment name a client library that is not the stand-in; its path."""

    def choose(*functions, **options):
        library = old_client(*functions, **options)
        monkeypatch.setenv("LUNA_EXT_LIBRARY", str(library))
        return library

    return choose


def findings(done):
    """{what: what it says} of what is well, the same of the problems, and what is advised on them."""
    found = {"ok": {}, "problem": {}}
    advice, mark = [], ""
    for line in done.stdout.splitlines():
        if line.startswith("    -> "):
            if mark == "problem":
                advice.append(line.removeprefix("    -> "))
        elif line.startswith(("ok: ", "problem: ", "note: ")):
            mark, what, says = line.split(": ", 2)
            found["ok" if mark == "note" else mark][what] = says
    assert len(advice) == len(found["problem"])
    return found["ok"], found["problem"], advice


def test_all_is_well(command, client):
    library = client(*CLUSTER_FUNCTIONS)
    done = command("doctor")
    well, problems, _ = findings(done)
    assert (done.returncode, problems, done.stderr) == (0, {}, "")
    assert (
        well["client library"] == f"{library}, named by the environment variable LUNA_EXT_LIBRARY"
    )
    assert well["client version"].endswith("1.00, PKCS #11 2.40")
    assert [well[name] for name in CLUSTER_FUNCTIONS] == ["there"] * 4
    assert well["slots"] == "8 with a token"
    assert "4 of them can call it at a time" in well["threads"]
    assert "initialises the client anew" in well["forking"]


@pytest.mark.parametrize(("variable", "coloured"), [("", True), ("1", False)])
def test_colours(terminal, monkeypatch, variable, coloured):
    monkeypatch.setenv("NO_COLOR", variable)
    screen = terminal("doctor")
    screen.expect_exact("forking")
    assert ("\x1b[32mok\x1b[0m: luna_ext: " in screen.before) == coloured
    assert ("\x1b" in screen.before) == coloured


def test_the_stand_in_is_a_problem(command):
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert list(problems) == ["client version"]
    assert "not an HSM's client" in advice[0]


def test_a_function_that_is_missing(command, client):
    client("CA_GetSlotId", "CA_LockClusteredSlot")
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems == {"CA_GetUnassignedSlot": "missing", "CA_UnlockClusteredSlot": "missing"}
    assert advice == ["install Luna client 10.6 or newer"] * 2


def test_no_client_library(command, monkeypatch):
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    monkeypatch.setenv("ChrystokiConfigurationPath", "/nonexistent")
    done = command("doctor")
    well, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems["configuration"].startswith("/nonexistent/Chrystoki.conf: No such file")
    assert "clusters" not in well
    assert "Install the Luna client" in problems["client library"]
    assert "ChrystokiConfigurationPath" in advice[0]
    assert advice[1].startswith("install the Luna client, or name its library: luna-ext --library")


def test_a_configuration_that_cannot_be_read(command, client, monkeypatch, tmp_path):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").mkdir()
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems == {"configuration": f"{tmp_path / 'Chrystoki.conf'}: Is a directory"}
    assert advice == [
        "put the client's configuration there, as a file; the client cannot read it either"
    ]


# Root may read all files, but for one that has given that up.
AS_OTHERS = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    if os.geteuid() == 0
    else ()
)


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root may read it without setpriv (Debian: util-linux)",
)
def test_a_configuration_that_may_not_be_read(command, client, monkeypatch, tmp_path):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").touch(0)
    _, problems, advice = findings(command("doctor", through=AS_OTHERS))
    assert problems == {"configuration": f"{tmp_path / 'Chrystoki.conf'}: Permission denied"}
    assert advice[0].startswith("let this user read it")


def test_a_path_of_the_configuration_that_depends_on_the_directory(command, client, monkeypatch):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", "etc")
    _, problems, advice = findings(command("doctor"))
    assert list(problems) == ["configuration"]
    assert "the absolute path" in advice[0]


def test_what_the_configuration_says(command, old_client, monkeypatch, tmp_path):
    library = old_client(*CLUSTER_FUNCTIONS)
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text(f"Chrystoki2 = {{\n LibUNIX64 = {library};\n}}\n")
    done = command("doctor")
    well, _, _ = findings(done)
    assert well["clusters"] == "the configuration names none"
    assert done.returncode == 0
    assert well["configuration"] == f"{tmp_path / 'Chrystoki.conf'}: LibUNIX64 = {library}"
    assert well["client library"] == f"{library}, named by {well['configuration']}"


def test_the_clusters_of_the_configuration(command, client, monkeypatch, tmp_path):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text(
        "LunaSA Client = {\n LNHServer00 = 192.0.2.10;\n #LNHServer01 = 192.0.2.11;\n"
        " LNHServer09 = hsm\x1b[1m.example;\n}\n"
    )
    well, _, _ = findings(command("doctor"))
    assert well["clusters"] == "LNHServer00 = 192.0.2.10, LNHServer09 = hsm\\x1b[1m.example"


def test_an_application_id_that_the_configuration_sets(command, client, monkeypatch, tmp_path):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text("Misc = {\n  AppIdMajor = 1;\n  AppIdMinor = 2;\n}\n")
    done = command("doctor")
    _, problems, advice = findings(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert list(problems) == ["application ID"]
    assert "AppIdMajor = 1, AppIdMinor = 2: for the device, all" in problems["application ID"]
    assert "luna-ext probe --slot N" in advice[0]
    (tmp_path / "Chrystoki.conf").write_text("Misc = {\n  #AppIdMajor = 1;\n}\n")
    done = command("doctor")
    well, _, _ = findings(done)
    assert done.returncode == 0
    # In a container there is more to say.
    assert well["application ID"].startswith("the configuration sets none")


def test_a_file_that_is_no_library(command, tmp_path):
    file = tmp_path / "none.so"
    file.write_text("not a library")
    done = command("--library", file, "doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems == {"client library": f"{file} is no shared library: 13 bytes of another kind"}
    assert advice[0].startswith("name the client's libCryptoki2_64.so")


def of_the_stand_in(file, change):
    """A client library that was made of the stand-in's bytes."""
    contents = bytearray(Path(library_path()).read_bytes())
    file.write_bytes(change(contents))
    return file


def for_another_machine(contents):
    machine = 62 if contents[18] == 183 else 183
    return contents[:18] + bytes([machine]) + contents[19:]


MACHINES = {"x86_64": "x86-64", "aarch64": "ARM of 64 bits"}


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="has no name here")
def test_a_library_for_another_machine(command, tmp_path):
    file = of_the_stand_in(tmp_path / "other.so", for_another_machine)
    done = command("--library", file, "doctor")
    _, problems, advice = findings(done)
    ours = MACHINES[platform.machine()]
    (its,) = set(MACHINES.values()) - {ours}
    assert done.returncode == 1
    assert problems == {"client library": f"{file} is for {its}, but this Python is for {ours}"}
    assert advice == [f"install the Luna client for {ours}, or run a Python for {its}"]


@pytest.mark.parametrize("size", [0, 10, 30, 70, 5000, 20000])
def test_a_library_that_is_cut_off(command, tmp_path, size):
    file = of_the_stand_in(tmp_path / "cut.so", lambda contents: contents[:size])
    done = command("--library", file, "doctor")
    _, problems, advice = findings(done)
    assert (done.returncode, done.stderr) == (1, "")
    what = f"it has {size} bytes of " if size >= 30 else f"{size} bytes of another kind"
    assert what in problems["client library"]
    assert len(advice) == 1
    # Other subcommands do not load it either: that could end them by SIGBUS.
    other = command("--library", file, "slots")
    assert other.returncode == 1
    assert other.said == [f"luna-ext: {problems['client library']}; {advice[0]}"]


def build(source, library, *options):
    library.with_suffix(".c").write_text(source)
    command = ["cc", "-shared", "-fPIC", library.with_suffix(".c"), "-o", library, *options]
    subprocess.run(list(map(str, command)), check=True)
    return library


def test_a_library_that_another_is_missing_for(command, tmp_path):
    needed = build("int needed(void) { return 1; }", tmp_path / "libneeded.so")
    source = "int needed(void); int uses(void) { return needed(); }"
    library = build(source, tmp_path / "client.so", f"-L{tmp_path}", "-lneeded")
    needed.unlink()
    done = command("--library", library, "doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems == {
        "client library": f"{library} needs libneeded.so, which the system does not find"
    }
    assert advice[0].startswith("install what has libneeded.so; or")


def test_a_library_that_lacks_a_function_of_another(command, tmp_path):
    source = "int needed(void); int uses(void) { return needed(); }"
    library = build(source, tmp_path / "client.so")
    _, problems, advice = findings(command("--library", library, "doctor"))
    assert "needs the function or variable needed, which no library" in problems["client library"]
    assert "other versions" in advice[0]


def test_a_library_of_another_kind(command, tmp_path):
    library = build("int nothing(void) { return 1; }", tmp_path / "client.so")
    done = command("--library", library, "doctor")
    well, problems, advice = findings(done)
    assert well["client library"] == f"{library}, named by --library"
    assert (done.returncode, list(problems)) == (1, ["client library"])
    assert "PKCS #11" in problems["client library"]
    assert advice == ["name the Luna client's libCryptoki2 instead: luna-ext --library FILE doctor"]


# The call, and what is said of when.
STEPS = {
    None: "the loading of its file",
    "C_Initialize": "the opening (C_Initialize, C_GetInfo)",
    "C_GetInfo": "the opening (C_Initialize, C_GetInfo)",
    "C_GetSlotList": "C_GetSlotList",
    "C_Finalize": "C_Finalize",
}
TROUBLES = {
    "CRASHES": "ends the process by SIGBUS (Bus error)",
    "ABORTS": "ends the process by SIGABRT (Aborted)",
    "EXITS": "ends the process with exit code 3",
}


@pytest.mark.parametrize(("trouble", "says"), TROUBLES.items(), ids=TROUBLES)
@pytest.mark.parametrize("call", STEPS)
def test_a_client_library_that_ends_its_process(command, client, trouble, says, call):
    client(*CLUSTER_FUNCTIONS, trouble=trouble, trouble_at=call)
    done = command("doctor")
    well, problems, advice = findings(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert problems == {"client library": f"{STEPS[call]} {says}"}
    assert ("forking" in well) == (call == "C_Finalize")
    assert "that right" not in advice[0]


def test_a_client_library_that_ends_its_process_and_leaves_a_child(client, cluster, monkeypatch):
    """It has the pipes of the process that has ended. In this process, which waits less."""
    monkeypatch.setattr(apart, "PATIENCE", 10.0)
    library = client(*CLUSTER_FUNCTIONS, trouble="LEAVES_A_CHILD", trouble_at="C_GetSlotList")
    found = list(doctoring._examine(Settings(str(library), "block")))
    (problem,) = (finding for finding in found if finding.advice)
    assert problem.says == "C_GetSlotList ends the process with exit code 3"


@pytest.mark.parametrize("call", STEPS)
def test_a_client_library_that_hangs(client, cluster, capsys, monkeypatch, call):
    """In this process, which waits less."""
    monkeypatch.setattr(apart, "PATIENCE", 2.0)
    monkeypatch.setitem(apart.SHORTER, "C_Finalize", 1.0)
    library = client(*CLUSTER_FUNCTIONS, trouble="HANGS", trouble_at=call)
    found = list(doctoring._examine(Settings(str(library), "block")))
    (problem,) = (finding for finding in found if finding.advice)
    seconds = 1 if call == "C_Finalize" else 2
    assert problem.says == f"{STEPS[call]} does not return for {seconds} s"
    if call not in (None, "C_Finalize"):
        assert problem.advice.startswith("see whether the HSM is reached (vtl verify)")


def test_on_a_terminal_it_says_what_takes_long(client, terminal):
    client(*CLUSTER_FUNCTIONS, trouble="HANGS", trouble_at="C_GetSlotList")
    doctor = terminal("doctor")
    doctor.expect_exact("luna-ext: C_GetSlotList takes long; it is waited for, 20 s at most")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_no_process_when_it_is_ended(start, client, cluster, number):
    client(*CLUSTER_FUNCTIONS, trouble="HANGS", trouble_at="C_GetSlotList")
    doctor = start("doctor")
    # It has opened the library, and hangs next.
    wait_until(lambda: any(call.function == "C_Initialize" for call in cluster.log()))
    (pid,) = {call.pid for call in cluster.log()}
    assert pid != doctor.pid
    doctor.send_signal(number)
    doctor.communicate(timeout=30)
    assert doctor.returncode == (130 if number == signal.SIGINT else 143)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process ends with its parent")
def test_it_leaves_no_process_when_it_is_killed(start, client, cluster):
    client(*CLUSTER_FUNCTIONS, in_child="HANGS")
    doctor = start("doctor")

    def examining():
        """Those of the newest session: doctor begins one for each task."""
        pids = [call.pid for call in cluster.log() if call.function == "C_Initialize"]
        return of_session(pids[-1]) if pids else []

    # The other one is its forked child.
    wait_until(lambda: len(examining()) == 2)
    doctor.kill()
    doctor.communicate(timeout=30)
    wait_until(lambda: not examining())


def test_json(command, client, read_json):
    library = client("CA_GetSlotId", "CA_LockClusteredSlot", "CA_UnlockClusteredSlot")
    done = command("doctor", "--json")
    assert done.returncode == 1
    found = {finding["what"]: finding for finding in read_json("doctor", done)}
    assert found["client_library"]["values"] == {"path": str(library)}
    assert (found["slots"]["values"]["count"], found["slots"]["advice"]) == (8, None)
    assert found["application_id"]["values"] == {"entries": []}
    assert found["forking"]["values"] == {"usable": True, "rv_name": None}
    assert found["CA_GetUnassignedSlot"] == {
        "what": "CA_GetUnassignedSlot",
        "ok": False,
        "values": {"there": False},
        "says": "missing",
        "advice": "install Luna client 10.6 or newer",
    }


def test_json_of_a_client_library_that_ends_its_process(command, client, read_json):
    client(*CLUSTER_FUNCTIONS, trouble="EXITS", trouble_at="C_Initialize")
    *_, last = read_json("doctor", command("doctor", "--json"))
    assert (last["what"], last["ok"]) == ("client_library", False)
    assert last["values"] == {"step": "opening", "hangs": False, "exit_code": 3}


# ---- versions, sessions, containers, neighbours ----


def of(command, read_json, what):
    (found,) = (
        each for each in read_json("doctor", command("doctor", "--json")) if each["what"] == what
    )
    return found


@pytest.mark.parametrize(
    ("version", "ok", "advice"),
    [
        ("10,5", False, "clusters need a newer one: install Luna client 10.7.2 or newer"),
        ("10,6", True, "for clusters in production Thales requires Luna client 10.7.2 or newer"),
        ("10,7", True, None),
    ],
)
def test_the_version_of_the_client(command, client, read_json, version, ok, advice):
    client(*CLUSTER_FUNCTIONS, luna_client=version)
    found = of(command, read_json, "client_version")
    assert (found["ok"], found["advice"]) == (ok, advice)


@pytest.mark.parametrize(
    ("firmware", "version", "enough"),
    [("7,8,3", "7.8.3", False), ("7,8,4", "7.8.4", True), ("7,10,0", "7.10.0", True)],
)
def test_the_firmware(command, client, read_json, firmware, version, enough):
    client(*CLUSTER_FUNCTIONS, luna_client="10,7", firmware=firmware)
    found = of(command, read_json, "firmware")
    assert (found["ok"], found["values"]) == (True, {"version": version, "slot_id": 1})
    assert (found["advice"] is None) == enough
    assert enough or "HSM firmware 7.8.4 or newer, and the appliance's" in found["advice"]


def test_a_note_is_no_problem(command, client):
    client(*CLUSTER_FUNCTIONS, luna_client="10,6")
    done = command("doctor")
    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("note: client version: SafeNet"))
    assert lines[at + 1].startswith("    -> for clusters in production Thales requires")
    assert done.returncode == 0


def test_the_sessions_of_tokens(command, client, read_json):
    client(*CLUSTER_FUNCTIONS, sessions=3)
    found = of(command, read_json, "sessions")
    assert (found["ok"], found["values"]) == (True, {"least_free": 3, "full_slots": []})
    client(*CLUSTER_FUNCTIONS, sessions=-5)
    found = of(command, read_json, "sessions")
    assert (found["ok"], found["values"]) == (True, {"least_free": None, "full_slots": []})
    client(*CLUSTER_FUNCTIONS, sessions=0)
    done = command("doctor")
    _, problems, (advice,) = findings(done)
    assert (done.returncode, list(problems)) == (1, ["sessions"])
    assert problems["sessions"] == "none is free on the token in slots 1, 2, 3, 4, 5, 6, 7, 8"
    assert advice.startswith("end programs that keep sessions on it")


def test_a_token_that_goes_meanwhile(command, client, cluster, read_json):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_GetTokenInfo", 0xE0, times=1)
    found = of(command, read_json, "tokens")
    assert (found["ok"], found["values"]["read"]) == (True, 7)


def test_a_token_that_cannot_be_read(command, client, cluster, read_json):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_GetTokenInfo", 0x80000020, times=1)
    found = of(command, read_json, "tokens")
    assert not found["ok"]
    assert found["values"]["read"] == 7
    assert len(found["values"]["unreadable_slots"]) == 1
    assert "1 of 8 cannot be read, in slot " in found["says"]
    assert "CKR_PARTITION_DISABLED" in found["says"]


# Not as the first process, for that is another problem.
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh")


def test_in_a_container(command, client):
    client(*CLUSTER_FUNCTIONS)
    if shutil.which("unshare") is None or command("--version", through=CONTAINER).returncode:
        pytest.skip("unshare --pid is not permitted here")
    done = command("doctor", through=CONTAINER)
    assert done.returncode == 0
    assert "ok: container: yes: process IDs are its own\n" in done.stdout
    says = "note: application ID: the configuration sets none, and this is a container, with process IDs"
    assert says in done.stdout


def test_neighbours(cluster, monkeypatch, capsys):
    """In this process, for their versions are made up."""
    monkeypatch.setattr(
        doctoring.neighbours.importlib.metadata,
        "version",
        {"python-pkcs11": "0.9.3", "PyKCS11": "1.5.18"}.__getitem__,
    )
    old, new = doctoring._neighbours()
    assert old.is_problem
    assert old.says == "python-pkcs11 0.9.3 is too old, 0.10 is needed"
    assert old.advice == "pip install 'python-pkcs11>=0.10'"
    assert (new.says, new.advice) == ("1.5.18", "")


DOCTOR = """
import sys
import luna_ext.commands.doctoring
from luna_ext.commands.cli import run
sys.path.insert(0, "")
sys.exit(run(["doctor"]))
"""


def test_nothing_is_imported_from_the_working_directory(client, cluster, tmp_path):
    """By the processes that it starts: they call the client library with all rights of the user."""
    client(*CLUSTER_FUNCTIONS)
    for name in ("ctypes", "json", "luna_ext", "queue", "threading", "warnings"):
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir('imported')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", DOCTOR],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (tmp_path / "imported").exists()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_device_that_does_not_answer(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_Initialize", 0x30)
    done = command("doctor")
    _, problems, _ = findings(done)
    assert done.returncode == 1
    assert problems["client library"].startswith("C_Initialize: CKR_DEVICE_ERROR")


def test_threads_that_get_errors(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    # The first two C_GetSlotList are those of one thread alone.
    cluster.fault("C_GetSlotList", 0xA, every=3, times=1)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert "CKR_CANT_LOCK" in problems["threads"]
    assert "use processes" in advice[0]


def test_a_call_that_fails_alone_is_blamed_on_no_thread_and_no_fork(
    command, client, cluster, read_json
):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_GetSlotList", 0x5)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert list(problems) == ["slots", "threads", "forking"]
    assert problems["forking"].startswith(
        "not tried, for without a fork another process gets: C_Get"
    )
    assert all("CKR_GENERAL_ERROR" in says for says in problems.values())
    assert len(set(advice)) == 1
    assert "process" not in advice[0]
    found = {
        finding["what"]: finding for finding in read_json("doctor", command("doctor", "--json"))
    }
    assert found["forking"]["values"] == {"usable": None, "rv_name": "CKR_GENERAL_ERROR"}


def test_an_answer_that_cannot_be_true(command, client, cluster):
    """It has the code of success, on which there is no advice."""
    client(*CLUSTER_FUNCTIONS)
    # Without an effect of the call, nothing is written.
    cluster.fault("C_GetSlotList", 0, every=2)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert "It is no client to rely on" in problems["slots"]
    assert advice[0].startswith("name the Luna client's libCryptoki2 instead")


AFTER_THE_FORK = (
    "let the parent open no Library before it forks, but each process one after the fork; or start "
    "processes without a fork (multiprocessing's spawn)"
)


def test_a_child_that_cannot_use_it(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    # The others are those of this command and of the child's parent.
    cluster.fault("C_Initialize", 0x30, every=3)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert list(problems) == ["forking"]
    assert problems["forking"].startswith(
        "a forked child that uses the client gets: C_Initialize: "
    )
    assert "CKR_DEVICE_ERROR" in problems["forking"]
    assert advice == [AFTER_THE_FORK]


# What a client library does in a child, and what doctor, which goes on, says of it.
NO_NOTICE = (
    "C_Initialize answers CKR_CRYPTOKI_ALREADY_INITIALIZED in a forked child: the client does not "
    "notice forks, and the child would act as its parent"
)
FORKED = {
    "NOTICES_NOTHING": NO_NOTICE,
    "KILLS": NO_NOTICE,
    "CRASHES": "a call of a forked child that uses the client ends the process by SIGSEGV (Segmentation "
    "fault)",
}


@pytest.mark.parametrize(("in_child", "says"), FORKED.items(), ids=FORKED)
def test_a_client_library_that_cannot_be_used_in_a_child(command, client, cluster, in_child, says):
    client(*CLUSTER_FUNCTIONS, in_child=in_child)
    done = command("doctor")
    well, problems, advice = findings(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert problems == {"forking": says}
    assert advice == [AFTER_THE_FORK]
    assert "4 of them can call it at a time" in well["threads"]
    # No process is left that uses the library.
    for pid in {call.pid for call in cluster.log()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_client_library_that_hangs_in_a_child(client, cluster, monkeypatch):
    """In this process, which waits less."""
    monkeypatch.setitem(apart.SHORTER, apart.FORK, 2.0)
    library = client(*CLUSTER_FUNCTIONS, in_child="HANGS")
    found = list(doctoring._examine(Settings(str(library), "block")))
    (problem,) = (finding for finding in found if finding.is_problem)
    assert problem.says == ("a call of a forked child that uses the client does not return for 2 s")
    assert problem.advice == AFTER_THE_FORK


def test_a_process_that_cannot_open_the_library_beside_doctor(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_Initialize", 0x30, every=2)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems["forking"].startswith("another process cannot open the client: C_Initialize: ")
    assert advice[0].startswith("let one process at a time use the client, or: check the network")


WORK = """
import multiprocessing, os, sys
import luna_ext

def work():
    with luna_ext.Library() as luna, luna.slot(1) as slot:
        slot.ensure_held()

if __name__ == "__main__":
    # Each process opens one after the fork.
    for _ in range(2):
        if os.fork() == 0:
            work()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    # Without a fork.
    with luna_ext.Library() as luna, luna.slot(2) as slot:
        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0
        slot.ensure_held()
"""


def test_what_is_advised_on_forks_helps(client, cluster, tmp_path):
    client(*CLUSTER_FUNCTIONS, in_child="NOTICES_NOTHING")
    program = tmp_path / "work.py"
    program.write_text(WORK)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [call.rv for call in cluster.log() if call.function == LOCK] == [0] * 4


def test_it_leaves_nothing_behind(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    before = set(os.listdir(Path(cluster.path).parent))
    assert command("doctor").returncode == 0
    called = [call.function for call in cluster.log() if call.rv == 0]
    assert "CA_LockClusteredSlot" not in called
    assert set(os.listdir(Path(cluster.path).parent)) == before
