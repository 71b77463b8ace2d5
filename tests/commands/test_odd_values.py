"""Odd values for every argument and option of every subcommand: one line and an exit code.

The subcommands and their options are taken from the command itself, so that a new one is tried as well.
Most are run in this process. Those that take their time or start processes are each run in a process of
their own, which is forked, for Python's start would take most of the time, and interrupted after a while.
"""

import io
import json
import logging
import subprocess
import sys
import warnings

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import PATIENCE, but_for_the_warning

from luna_ext.commands import child, cli
from luna_ext.commands.values import Command

EXIT_CODES = {0, 1, 2, 75, 126, 127, 130}
INTERRUPTED = {130}
"""Where nothing interrupts it, it hangs."""
APART = {"bench": 40, "demo": 4, "doctor": 4, "probe": 20, "watch": 40}
"""Those that are run in a process of their own, and how many odd values each of their options gets."""
LIMIT = 1.0
"""Seconds after which `watch --json` is interrupted, which has no other end. Others have PATIENCE."""
USUAL = {
    "cluster": "cluster-1",
    "function": "C_Login",
    "rv": "CKR_OK",
    "name": "log",
    "value": "on",
}
"""For what has to be given besides the odd value."""
WITH = {
    "lock": {"slot_id"},
    "assign": {"so_pin_file"},
    "provision": {"count", "prefix", "so_pin_file"},
    "bench": {"seconds"},
    "probe": {"patience"},
}
"""Options without which these subcommands do little; not always given, for others may replace them."""


def leaves(group=cli.luna_ext, above=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*above, name))
        else:
            yield (*above, name), command


LEAVES = dict(leaves())


def takes_a_value(parameter):
    return not getattr(parameter, "is_flag", False)


# ---- the values ----

EDGES = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-0.0",
    "9" * 20,
    "9" * 23,
    "9" * 5000,
]
EDGES += [
    "99999999999",
    "0x1g",
    "None",
    "%s",
    "{}",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "\udcff",
    "\ufeff",
]
EDGES += ["\u00e9" * 17, "x" * 5000, ".", "..", "/", "/dev/null", "/nonexistent/x", "~", "*"]

# A number that is just a number, or the name of another folder, would be no odd value.
TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Nd"), exclude_characters="\0/"), max_size=40
)
NUMBERS = st.integers(10**12, 10**40) | st.integers(-(10**40), -2) | st.floats(max_value=-1e-9)
ODD = st.sampled_from(EDGES) | TEXTS | NUMBERS.map(str)


def given_as(parameter, value):
    if isinstance(parameter, click.Argument):
        return [value]
    return [f"{parameter.opts[0]}={value}"] if value else [parameter.opts[0], value]


def is_needed(parameter):
    return parameter.required and not parameter.envvar


def usual(parameter):
    if parameter.name in USUAL:
        return USUAL[parameter.name]
    if isinstance(parameter.type, click.Choice):
        return parameter.type.choices[0]
    return str(getattr(parameter.type, "min", None) or "1")


def parameters_of(path):
    """Which of a subcommand's options and arguments take a value, and the flags."""
    parameters = LEAVES[path].params
    valued = [parameter for parameter in parameters if takes_a_value(parameter)]
    return valued, [flag.opts[0] for flag in parameters if not takes_a_value(flag)]


@st.composite
def lines(draw, path, certain):
    """Its arguments: this one of them odd, perhaps another one, some flags, and what it needs."""
    parameters, flags = parameters_of(path)
    options = draw(st.lists(st.sampled_from(flags), max_size=2, unique=True)) if flags else []
    if certain is None:
        # Without a value, too.
        return [*options, *([draw(ODD)] if draw(st.booleans()) else [])]
    odd = [certain, draw(st.sampled_from(parameters))]
    arguments = []
    for parameter in parameters:
        words = options if isinstance(parameter, click.Option) else arguments
        if parameter in odd:
            words += given_as(parameter, draw(ODD))
        elif (
            draw(st.integers(0, 3))
            if parameter.name in WITH.get(path[0], ())
            else is_needed(parameter)
        ):
            words += given_as(parameter, usual(parameter))
    return [*options, *(["--"] if draw(st.integers(0, 3)) else []), *arguments]


# ---- in this process ----


@pytest.fixture(autouse=True)
def no_trace(monkeypatch):
    """A command has its process to itself: it sets up how warnings are shown, and leaves it so."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


class Stream(io.BytesIO):
    """Of a standard stream, which has a name."""

    name = "<a standard stream>"


@pytest.fixture
def outcome(cluster, monkeypatch, pin_file, tmp_path):
    """Run the command in this process, but for the programs that it would start: its code and streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(USUAL, "so_pin_file", str(pin_file()))
    monkeypatch.setattr(child, "run_command", lambda *arguments: 0)

    def run(*words):
        logger = logging.getLogger("luna_ext")
        handlers = list(logger.handlers)
        streams = {name: io.TextIOWrapper(Stream(), "utf-8") for name in ("stdin", "stdout")}
        streams["stderr"] = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            code = cli.run(list(words))
        said = []
        for name in ("stdout", "stderr"):
            streams[name].seek(0)
            said.append(streams[name].read())
        # Each command in turn has one of its own.
        logger.handlers[:] = handlers
        return code, *said

    return run


# ---- in processes of their own, forked from one that has imported all ----

FORKS = """
import json, os, signal, sys, time
from luna_ext.__main__ import main
from luna_ext.commands import cli

LIMIT, PATIENCE = map(float, sys.argv[1:])
INTERRUPTED = {"watch", "--json"}
for name in cli.MODULES:
    cli.luna_ext.get_command(None, name)

def be_command(words):
    os.setsid()
    for number, name in enumerate(("/dev/null", "stdout", "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", errors="backslashreplace")
    sys.__stdout__ = sys.stdout
    sys.argv = ["luna-ext", *words]
    try:
        code = main()
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    os._exit(code)

def code_of(pid, words):
    limit = LIMIT if INTERRUPTED <= {*words} else PATIENCE
    for number, seconds in ((signal.SIGINT, limit), (signal.SIGKILL, PATIENCE), (0, PATIENCE)):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.killpg(pid, number)

for line in sys.stdin:
    words = json.loads(line)
    pid = os.fork()
    if pid == 0:
        be_command(words)
    print(code_of(pid, words), flush=True)
"""


@pytest.fixture
def outcome_apart(cluster, tmp_path):
    """Run the command in a process of its own: its code and streams.

    130: it had to be interrupted. -9: it was not even to be interrupted.
    """
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(LIMIT), str(PATIENCE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as forks:

        def run(*words):
            forks.stdin.write(json.dumps(words) + "\n")
            forks.stdin.flush()
            code = int(forks.stdout.readline())
            return code, *((tmp_path / name).read_text() for name in ("stdout", "stderr"))

        yield run
        forks.stdin.close()


# ---- what they do ----


def check(code, stdout, stderr, words):
    said = but_for_the_warning(stderr)
    assert code in EXIT_CODES - INTERRUPTED, words
    assert "Traceback" not in stdout + stderr, words
    assert "an error of luna-ext itself" not in stderr, (words, said)
    assert len(said) <= 1, (words, said)
    assert code == 0 or said or stdout, words


def try_odd_values(run, path, max_examples):
    parameters, _ = parameters_of(path)
    for certain in parameters or [None]:

        @settings(SETTINGS, max_examples=max_examples)
        @given(lines(path, certain))
        def try_them(words):
            check(*run(*path, *words), words)

        try_them()


SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.luna_cluster(keyrings=200)
@pytest.mark.parametrize("path", [path for path in LEAVES if path[0] not in APART], ids=" ".join)
def test_odd_values(outcome, path):
    try_odd_values(outcome, path, 40)


@pytest.mark.parametrize("name", APART)
def test_odd_values_of_what_runs_apart(outcome_apart, name):
    try_odd_values(outcome_apart, (name,), APART[name])


def test_watch_has_no_end_but_an_interrupt(outcome_apart):
    code, stdout, stderr = outcome_apart("watch", "--json", "--interval", "0.1")
    assert (code, stdout.count("\n"), but_for_the_warning(stderr)) == (0, 8, [])


@settings(SETTINGS, max_examples=60)
@given(st.sampled_from(cli.luna_ext.params).filter(takes_a_value), ODD)
def test_odd_values_before_the_subcommand(outcome, option, value):
    words = [*given_as(option, value), "slots"]
    check(*outcome(*words), words)


@settings(SETTINGS, max_examples=8)
@given(ODD)
def test_odd_libraries_for_doctor(outcome_apart, value):
    words = [f"--library={value}", "doctor"]
    check(*outcome_apart(*words), words)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_no_option_is_taken_twice(outcome, path):
    command = LEAVES[path]
    assert isinstance(command, Command)
    for option in command.params:
        if isinstance(option, click.Option) and takes_a_value(option):
            code, stdout, stderr = outcome(*path, option.opts[0], "1", option.opts[0], "2")
            assert (code, stdout) == (2, "")
            assert "more than once" in stderr


# ---- as processes of their own ----


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lock --slot 1 --timeout inf -- true", "'--timeout': inf is not in the range"),
        ("lock --slot 1 --timeout nan -- true", "'--timeout': nan is not a number"),
        ("claim cluster-1 --timeout inf -- true", "'--timeout': inf is not in the range"),
        ("assign cluster-1 x --timeout inf", "'--timeout': inf is not in the range"),
        ("assign cluster-1 x --so-pin-fd 99999999999999", "'--so-pin-fd': 99999999999999 is not"),
        ("lock --slot 99999999999999999999 -- true", "'--slot': 99999999999999999999 is not"),
        ("probe --slot 99999999999999999999 --yes", "'--slot': 99999999999999999999 is not"),
        ("bench --slot 99999999999999999999", "'--slot': 99999999999999999999 is not"),
        ("bench --seconds inf", "'--seconds': inf is not in the range"),
        ("probe --slot 1 --patience inf --yes", "'--patience': inf is not in the range"),
        ("watch --interval inf", "'--interval': inf is not in the range"),
        ("provision cluster-1 --count 99999999999 --prefix p", "range 1<=x<=3500"),
        ("provision cluster-1 --count 2 --prefix p --guard 99999999999999999999", "'--guard': "),
        ("lock --slot 1 -- EMPTY", "the command has no name"),
        ("lock --slot 1 --slot 2 -- true", "'--slot' is given more than once"),
        ("lock --label a --label b -- true", "'--label' is given more than once"),
        ("claim EMPTY -- true", "'CLUSTER': it is empty"),
        ("find EMPTY", "the label is empty"),
        ("stub fault C_InitToken nonsense", "nonsense"),
        ("stub switch nonsense on", "nonsense"),
        ("stub set-pins 99", "the cluster has no slot 99"),
        ("bench --slot 1 --slots 2", "--slots is for the stand-in"),
        ("bench --slot 1 --latency 2", "--latency is for the stand-in"),
        ("assign cluster-1 x --ask-user-pin --user-pin-fd 0", "from --ask-user-pin, or from a"),
    ],
)
def test_a_wrong_value_is_the_command_lines_whatever_finds_it(command, locked, line, says):
    done = command(*("" if word == "EMPTY" else word for word in line.split()))
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.said
    assert says in said
    assert locked() == {}


# ---- values that a terminal or a script passes by mistake ----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["claim", "\udcff", "--", "true"], "'CLUSTER': '\\udcff' is not UTF-8"),
        (["probe", "--slot=1", "--cluster=\udcff"], "'--cluster': '\\udcff' is not UTF-8"),
        (["assign", "cluster-1", "\udcff"], "'LABEL': the label '\\udcff' cannot be written"),
        (["assign", "cluster-1", "a\n"], "'LABEL': the label 'a\\n' has a character that is not"),
        (["provision", "c", "--count=1", "--prefix="], "'--prefix': it is empty"),
        (["provision", "c", "--count=1", "--prefix= a"], "the label ' a1' begins with a blank"),
        (["lock", "--slot=", "--", "true"], "'--slot': '' is not a valid integer."),
        (["watch", "--interval=x"], "'--interval': 'x' is not a valid number"),
        (["stub", "set-pins", "1", "--so-pin=\udcff"], "'--so-pin': '\\udcff' is not UTF-8"),
        (["stub", "fault", "C_Login", "CKR_NONE"], "'RV': 'CKR_NONE' is no return code"),
        (["stub", "fault", "C_Login", "5", f"--times={2**40}"], "'--times': 1099511627776 is not"),
        (
            ["stub", "latency", "1", "C_Logon"],
            "function: 'C_Logon'; give a name such as C_Log",
        ),
    ],
)
def test_it_is_said_which_value_is_wrong_and_why(cluster, capsys, words, says):
    assert cli.run(words) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "stand-in," not in line)
    assert says in line
