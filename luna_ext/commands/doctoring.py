"""doctor: whether luna_ext works on this machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import click

from .. import __version__, applications, neighbours, ownership
from ..discovery import (
    CONFIGURATION_VARIABLE,
    Configuration,
    configured_library,
    find_library,
)
from ..errors import OPEN_AFTER_FORK, LibraryLoadError, rv_name
from .apart import FINALIZE, FORK, OPENING, SHORTER, Apart, Message, how_it_ended
from .console import Settings, examples, json_option, print_json, say, settings, tell
from .examining import TOGETHER
from .interrupting import ended_by_signals
from .loading import LOADING, look_at
from .tables import print_paragraph
from .texts import in_one_line
from .values import Command

CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191


class Finding(NamedTuple):
    what: str
    says: str
    advice: str = ""
    """What to do; empty: all is well."""
    values: Mapping[str, object] = MappingProxyType({})
    """What it says, for programs."""
    note: bool = False
    """Its advice is worth a thought, but nothing is known to be wrong."""

    @property
    def name(self) -> str:
        """For programs: as it is, if it is that of a function or a package."""
        return self.what.lower().replace(" ", "_") if " " in self.what else self.what

    @property
    def is_problem(self) -> bool:
        return bool(self.advice) and not self.note


# ---- the configuration ----


def _configuration() -> Iterator[Finding]:
    try:
        configuration = Configuration()
    except LibraryLoadError as error:
        values: dict[str, object] = {"file": None, "library": None}
        yield Finding("configuration", str(error), _advice_on_configuration(error), values)
        return
    where, library = configured_library()
    named = None if library is None else str(library)
    yield Finding(
        "configuration", where, values={"file": str(configuration.file), "library": named}
    )
    clusters = configuration.clusters()
    names = [f"{key} = {value}" for key, value in clusters.items()]
    yield Finding(
        "clusters",
        ", ".join(names) or "the configuration names none",
        values={"clusters": _entries(clusters)},
    )


def _entries(of_configuration: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"entry": key, "value": value} for key, value in of_configuration.items()]


def _advice_on_configuration(error: LibraryLoadError) -> str:
    """Empty if there is none, where none was asked for: the client library may be named elsewhere."""
    missing = isinstance(error.__context__, FileNotFoundError)
    directory = os.environ.get(CONFIGURATION_VARIABLE)
    if directory and (missing or not os.path.isabs(directory)):
        return (
            f"let {CONFIGURATION_VARIABLE} be the absolute path of the directory that has the client's "
            "configuration, or take it out of the environment"
        )
    if missing:
        return ""
    if isinstance(error.__context__, PermissionError):
        return "let this user read it, and pass the directories above it; or run luna-ext as one that may"
    return "put the client's configuration there, as a file; the client cannot read it either"


# ---- the client library ----

NETWORK = (
    "see whether the HSM is reached (vtl verify), and which servers and time limits the client's "
    "configuration has"
)
DAMAGED = (
    "see whether the client's own programs (vtl verify) survive it; if not, install the client once more. "
    "Its vendor may want the core"
)
ADVICE = {
    LOADING: "the file is damaged, or is not for this system: install the Luna client once more",
    "C_GetFunctionList": "this is not a client library, or it is damaged: name the Luna client's "
    "libCryptoki2_64.so",
    TOGETHER: "the client does not take calls of several threads; use processes",
    FINALIZE: "a process that closes its Library hangs or crashes likewise: let it end by os._exit(), "
    "and ask the client's vendor",
}
"""What to do if a call does not return, or ends the process; for others it depends on which of the two."""


STEPS = {LOADING: "loading", OPENING: "opening", TOGETHER: "threads"}
"""For programs. The others are names of C functions."""


def _tell_slow(line: str) -> None:
    # In a log it would say nothing that the finding does not.
    if sys.stderr.isatty():
        tell(line)


def _survived(process: Apart) -> Iterator[Finding]:
    if process.trouble:
        hangs = process.exit_code is None
        advice = ADVICE.get(process.step) or (NETWORK if hangs else DAMAGED)
        values = {
            "step": STEPS.get(process.step, process.step),
            "hangs": hangs,
            "exit_code": process.exit_code,
        }
        yield Finding("client library", f"{process.step} {process.trouble}", advice, values)


def _library(path: str) -> Iterator[Finding]:
    with Apart("library", path, _tell_slow) as process:
        for message in process.messages():
            if "what" in message:
                yield Finding(**message)
            elif not message["is_stub"]:
                yield _application()
        yield from _survived(process)
        if not process.waits:
            return
        yield _fork(path)
        process.go_on()
        for _ in process.messages():
            pass
        yield from _survived(process)


def _application() -> Finding:
    """Whether something is known that makes one application of several processes."""
    values = {"entries": _entries(applications.configured()[1])}
    found = applications.shared_with_others()
    if found is not None:
        return Finding("application ID", *found, values)
    if applications.has_own_process_ids():
        # An application in a container has the same, though its process ID need not be 1.
        return Finding(
            "application ID",
            "the configuration sets none, and this is a container, with process IDs of its own: some "
            "clients make an application ID of the process ID, and then processes of several containers "
            f"may be one application: {applications.NOT_APART}",
            "if the device is used from several containers, give each an application ID of its own, by "
            "AppIdMajor and AppIdMinor in the section Misc of its Chrystoki.conf",
            values,
            note=True,
        )
    return Finding(
        "application ID",
        "the configuration sets none; each process has one of its own",
        values=values,
    )


# ---- a forked child ----


def _fork(path: str) -> Finding:
    """Whether a forked child can use the library, while another process does."""
    if not hasattr(os, "fork"):
        return Finding(
            "forking", "the system does not fork", values={"usable": None, "rv_name": None}
        )
    told: Message = {}
    with Apart("fork", path, _tell_slow) as process:
        for message in process.messages():
            told.update(message)
    values = {"usable": False, "rv_name": rv_name(told["rv"]) if told.get("rv") else None}
    if "refused" in told:
        return Finding(
            "forking",
            f"another process cannot open the client: {told['refused']}",
            f"let one process at a time use the client, or: {told['advice']}",
            values,
        )
    if "fails" in told:
        return Finding(
            "forking",
            f"not tried, for without a fork another process gets: {told['fails']}",
            told["advice"],
            {**values, "usable": None},
        )
    if process.trouble and process.step not in (FORK, FINALIZE):
        return Finding(
            "forking",
            f"another process cannot use the client beside the first: {process.step} {process.trouble}",
            "let one process at a time use the client, and ask its vendor for how many it is made",
            values,
        )
    says = _trouble_of_child(told)
    if says:
        advice = f"{OPEN_AFTER_FORK}; or start processes without a fork (multiprocessing's spawn)"
        return Finding("forking", says, advice, values)
    return Finding(
        "forking",
        "a forked child initialises the client anew and can use it",
        values={**values, "usable": True},
    )


def _trouble_of_child(told: Message) -> str:
    if told.get("rv") == CKR_CRYPTOKI_ALREADY_INITIALIZED:
        return (
            f"C_Initialize answers {rv_name(told['rv'])} in a forked child: the client does not notice "
            "forks, and the child would act as its parent"
        )
    if "error" in told:
        return f"a forked child that uses the client gets: {told['error']}"
    if told.get("answered"):
        return ""
    if "ended" in told:
        return f"a call of a forked child that uses the client {how_it_ended(told['ended'])}"
    return f"a call of a forked child that uses the client does not return for {SHORTER[FORK]:g} s"


# ---- all of it ----


def _examine(options: Settings) -> Iterator[Finding]:
    python = platform.python_version()
    yield Finding(
        "luna_ext",
        f"{__version__}, Python {python}",
        values={"version": __version__, "python": python},
    )
    yield from _container()
    yield from _neighbours()
    yield from _configuration()
    try:
        location = find_library(options.path)
    except LibraryLoadError as error:
        advice = "install the Luna client, or name its library: luna-ext --library FILE doctor"
        yield Finding("client library", in_one_line(error), advice)
        return
    values = {"path": location.path}
    wrong = look_at(location.path)
    if wrong is not None:
        yield Finding("client library", *wrong, values)
        return
    source = "--library" if options.path is not None else location.source
    yield Finding("client library", f"{location.path}, named by {source}", values=values)
    yield _other_users(location.path)
    yield from _library(location.path)


def _other_users(path: str) -> Finding:
    weaknesses = ownership.weaknesses_of_client(path)
    values = {"weak_paths": [weakness.path for weakness in weaknesses]}
    if weaknesses:
        return Finding("other users", *ownership.in_words(weaknesses), values)
    return Finding(
        "other users", "none may change the client library or its configuration", values=values
    )


def _container() -> Iterator[Finding]:
    own = applications.has_own_process_ids()
    if own is not None:
        says = "yes: process IDs are its own" if own else "no: process IDs are the host's"
        yield Finding("container", says, values={"own_process_ids": own})


def _neighbours() -> Iterator[Finding]:
    """What may use the client library in the same process."""
    for name in neighbours.OLDEST:
        version, wrong = neighbours.installed(name)
        install = neighbours.how_to_install(name)
        says = wrong or version or f"not installed; if you want it: {install}"
        yield Finding(name, says, install if wrong else "", {"version": version})


def _show(finding: Finding) -> None:
    if finding.is_problem:
        mark, color = "problem", "red"
    elif finding.advice:
        mark, color = "note", "yellow"
    else:
        mark, color = "ok", "green"
    print_paragraph(f": {finding.what}: {finding.says}", mark=mark, color=color)
    if finding.advice:
        print_paragraph(f"    -> {finding.advice}", indent=" " * 7)


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext doctor",
        "luna-ext --library /opt/luna/libCryptoki2_64.so doctor",
        "luna-ext doctor --json | jq '.[] | select(.ok | not)'",
    ),
)
@json_option
@settings
def doctor(options: Settings, as_json: bool) -> int:
    """Find out whether luna_ext works here. Exit code 1: there is a problem.

    Tells which client library is used, from where, its versions, which of the four cluster
    functions it has, what the client's configuration says, with the clusters that it names, whether
    the device may take several processes for one application, whether other users may change the client
    library or its configuration, whether tokens can be read and have
    sessions left, whether the versions are those that Thales requires, which other PKCS #11 libraries
    for Python are there, and whether threads and forked children can use the client. The client is
    loaded and called by processes apart, which it may hang or crash. A "note" is worth a thought, but no
    problem.
    """
    findings = []
    # So that no process is left that hangs in the client library.
    with ended_by_signals():
        for finding in _examine(options):
            findings.append(finding)
            if not as_json:
                _show(finding)
    problems = any(finding.is_problem for finding in findings)
    if as_json:
        print_json(
            [
                {
                    "what": finding.name,
                    "ok": not finding.is_problem,
                    "values": dict(finding.values),
                    "says": finding.says,
                    "advice": finding.advice or None,
                }
                for finding in findings
            ]
        )
    elif not problems:
        say("No problem. `luna-ext probe` finds out how the device treats a lock call.")
    return 1 if problems else 0
