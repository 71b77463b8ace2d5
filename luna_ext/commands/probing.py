"""probe: what the attached device does where the SDK says nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple, Self

import click

from .._cluster import Library
from ..applications import configured
from ..errors import Meaning, meaning_of, rv_name
from ..escaping import printable
from .console import Settings, examples, json_option, print_json, settings
from .interrupting import ended_at_once, ended_by_signals
from .nesting import refuse_nested
from .tables import print_paragraph
from .values import CLUSTER, SLOT, Command, Number

CKR_OK, CKR_FUNCTION_FAILED, CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR = 0, 0x6, 0x7, 0x30
LONG = 120.0
"""Seconds after which probing ends with an error if the device does not answer at all."""
POLL = 0.01
MOST_CLAIMS = 16
LOCK, UNLOCK, CLAIM = "CA_LockClusteredSlot", "CA_UnlockClusteredSlot", "CA_GetUnassignedSlot"


class ProbeError(click.ClickException):
    """The device cannot be probed."""


class Answer(NamedTuple):
    rv: int
    seconds: float
    given: object


class Client:
    """A process of its own, and so another application to the device, that makes the calls."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("raw_client.py")), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C is luna-ext's, which kills it.
            process_group=0,
        )
        self._answers: dict[int, SimpleQueue[Answer | None]] = {}
        self._said_all = False
        threading.Thread(target=self._read, daemon=True).start()
        rv = self.call("initialize").rv
        if rv != CKR_OK:
            raise ProbeError(f"C_Initialize answers {rv_name(rv)}; run `luna-ext doctor`")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def begin(self, name: str, *arguments: object) -> int:
        """Make a call and do not wait for it; its number."""
        number = len(self._answers)
        self._answers[number] = SimpleQueue()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([number, name, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        if self._said_all:
            self._answers[number].put(None)
        return number

    def answer(self, number: int, patience: float) -> Answer | None:
        """The answer to the call; None if it has not come within so many seconds."""
        try:
            answer = self._answers[number].get(timeout=patience)
        except Empty:
            return None
        if answer is None:
            raise self._ended()
        return answer

    def call(self, name: str, *arguments: object) -> Answer:
        """A call that is to answer at once."""
        got = self.answer(self.begin(name, *arguments), LONG)
        if got is None:
            raise ProbeError(f"the device has not answered a call ({name}) for {LONG:.0f} s")
        return got

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, rv, seconds, given = json.loads(line)
            self._answers[number].put(Answer(rv, seconds, given))
        self._said_all = True
        for answers in list(self._answers.values()):
            answers.put(None)

    def _ended(self) -> ProbeError:
        return ProbeError(
            f"a process that calls the client library has ended with {self._process.wait()}; "
            "run `luna-ext doctor`"
        )


class Said(NamedTuple):
    """An answer to a question, for people and for programs."""

    text: str
    values: dict[str, object]


class Finding(NamedTuple):
    name: str
    """For programs."""
    question: str
    said: Said


def _answered(text: str, answer: str, rv: int | None = None, **more: object) -> Said:
    return Said(text, {"answer": answer, "rv_name": None if rv is None else rv_name(rv), **more})


class Probe:
    """The questions, each asked by processes of its own, which are killed when it is answered."""

    def __init__(self, path: str, slot_id: int, patience: float) -> None:
        self._path = path
        self._slot_id = slot_id
        self._patience = patience
        self.waits = False
        self.contention: int | None = None
        """What a lock call answers while another process holds the lock."""
        self.relock: int | None = None
        """What it answers the process that holds the lock; None: it waits."""
        self.owner_is_checked = False

    @contextmanager
    def _clients(self, count: int) -> Iterator[list[Client]]:
        """So many processes, of which the first holds the lock."""
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(self._path)) for _ in range(count)]
            number = clients[0].begin("lock", self._slot_id)
            # It may have to wait: the process that held it for the last question has just been killed.
            got = clients[0].answer(number, LONG)
            if got is None or got.rv != CKR_OK:
                why = "is waiting" if got is None else f"answers {rv_name(got.rv)}"
                raise ProbeError(
                    f"slot {self._slot_id} cannot be locked: CA_LockClusteredSlot {why}. Name a "
                    "slot that is not in use"
                )
            try:
                yield clients
            finally:
                # The waiting processes are killed first, or one of them would get the lock.
                for client in clients[1:]:
                    client.kill()
                if clients[0].is_alive():
                    clients[0].answer(clients[0].begin("unlock", self._slot_id), self._patience)

    def check_that_it_is_free(self) -> None:
        with Client(self._path) as client:
            self._lock_and_unlock(client)

    def _lock_and_unlock(self, client: Client) -> float:
        """Seconds until the client has got the lock, which no process should hold any more."""
        begin = time.monotonic()
        while True:
            got = client.answer(client.begin("lock", self._slot_id), LONG)
            if got is not None and got.rv == CKR_OK:
                took = time.monotonic() - begin
                client.call("unlock", self._slot_id)
                return took
            if got is None or time.monotonic() - begin > LONG:
                raise ProbeError(
                    f"slot {self._slot_id} is still locked, though all processes of this probe "
                    "that held it have ended; find out which other program holds it"
                )
            time.sleep(POLL)

    def ask_contention(self) -> Said:
        with self._clients(2) as (holder, other):
            number = other.begin("lock", self._slot_id)
            got = other.answer(number, self._patience)
            if got is not None:
                self.contention = got.rv
                if got.rv == CKR_OK:
                    says = "is granted as well: THIS LOCK DOES NOT EXCLUDE OTHER PROCESSES"
                    return _answered(says, "granted", got.rv)
                return _answered(f"answers {rv_name(got.rv)}", "error", got.rv)
            self.waits = True
            holder.call("unlock", self._slot_id)
            got = other.answer(number, LONG)
            if got is None:
                return _answered("waits, and does not notice the unlock", "waits")
            says = f"waits, and answers {rv_name(got.rv)} once the lock is unlocked"
            return _answered(says, "waits", got.rv)

    def ask_relock(self) -> Said:
        with self._clients(1) as (holder,):
            got = holder.answer(holder.begin("lock", self._slot_id), self._patience)
            if got is None:
                return _answered("waits for the lock that its own process holds", "waits")
            self.relock = got.rv
            if got.rv == CKR_OK:
                return _answered("is granted", "granted", got.rv)
            return _answered(f"answers {rv_name(got.rv)}", "error", got.rv)

    def ask_unlock(self) -> Said:
        with self._clients(3) as (_, stranger, other):
            rv = stranger.call("unlock", self._slot_id).rv
            if rv != CKR_OK:
                self.owner_is_checked = True
                return _answered(f"answers {rv_name(rv)}: the owner is checked", "refused", rv)
            got = other.answer(other.begin("lock", self._slot_id), self._patience)
            if got is not None and got.rv == CKR_OK:
                return _answered("takes the lock off: THE OWNER IS NOT CHECKED", "unlocked", rv)
            return _answered("answers CKR_OK and does nothing", "ignored", rv)

    def compare_processes(self, has_configuration: bool) -> Said:
        """Whether the device tells two processes apart, by what they were answered before."""
        file, entries = configured() if has_configuration else ("", {})
        ids = ", ".join(f"{key} = {value}" for key, value in entries.items())
        cause = f"; {file} sets {ids} for all processes" if ids else ""

        def answered(text: str, answer: str) -> Said:
            sets = [{"entry": key, "value": value} for key, value in entries.items()]
            return Said(text, {"answer": answer, "application_id": sets})

        if self.contention == CKR_OK:
            return answered(
                "it looks so: a lock that one holds is GRANTED TO THE OTHER AT ONCE, as to itself, or the "
                f"device keeps no process out{cause}",
                "yes",
            )
        if self.owner_is_checked:
            return answered("no: only the process that holds a lock can take it off", "no")
        if self.relock != self.contention:
            return answered(
                "no: a lock call of the process that holds the lock is answered in another way",
                "no",
            )
        return answered(
            "it cannot be told: the device answers both processes alike, but grants neither a lock that "
            f"is held{cause}",
            "unknown",
        )

    def ask_kill(self) -> Said:
        with self._clients(2) as (holder, other):
            holder.kill()
            seconds = self._lock_and_unlock(other)
            return Said(f"{seconds:.3f} s", {"seconds": seconds})

    def ask_delay(self) -> Said:
        def answered(text: str, answer: str, seconds: float | None = None) -> Said:
            return Said(text, {"answer": answer, "seconds": seconds})

        if not self.waits:
            return answered("no lock call waits", "not_asked")
        with self._clients(2) as (_, other):
            if other.answer(other.begin("lock", self._slot_id), self._patience) is not None:
                return answered("the lock call did not wait this time", "unknown")
            got = other.answer(other.begin("token_info", self._slot_id), self._patience)
            if got is None:
                says = f"yes: C_GetTokenInfo has not answered for {self._patience:g} s"
                return answered(says, "yes")
            says = f"no: C_GetTokenInfo takes {got.seconds * 1000:.1f} ms meanwhile"
            return answered(says, "no", got.seconds)

    def ask_claim(self, cluster_id: str) -> Said:
        """Other slots that are claimed stay locked until the question is answered."""
        with self._clients(1) as (holder,):
            others: list[int] = []
            try:
                for _ in range(MOST_CLAIMS):
                    got = holder.call("claim", cluster_id)
                    if got.rv != CKR_OK:
                        if got.rv == CKR_FUNCTION_FAILED:
                            break
                        doubt = (
                            f": is {cluster_id!r} the cluster's ID? The cluster's administrator has it"
                            if got.rv == CKR_ARGUMENTS_BAD
                            else ""
                        )
                        says = f"CA_GetUnassignedSlot answers {rv_name(got.rv)}{doubt}"
                        return _answered(says, "unknown", got.rv)
                    assert isinstance(got.given, int)
                    if got.given == self._slot_id:
                        return _answered("yes: a claim has returned it", "yes")
                    if got.given in others:
                        says = f"yes: a claim has returned slot {got.given}, which it had claimed"
                        return _answered(says, "yes")
                    others.append(got.given)
            finally:
                for slot_id in others:
                    holder.call("unlock", slot_id)
            says = f"no: {len(others)} other slots were claimed, and then none was left or enough"
            return _answered(says, "no")

    def setting(self) -> Said:
        def answered(text: str, contention: str | None) -> Said:
            return Said(text, {"contention": contention})

        if self.waits:
            return answered("--contention block (the default)", "block")
        if self.contention == CKR_OK:
            return answered("none: this lock does not exclude other processes", None)
        if self.contention == CKR_DEVICE_ERROR:
            return answered(
                "--contention poll, for all subcommands LUNA_EXT_CONTENTION=poll, in Python "
                'Library(contention="poll")',
                "poll",
            )
        if self.contention is not None and meaning_of(self.contention) is Meaning.BUSY:
            return answered(
                "--contention block (the default): this answer is asked again in any case", "block"
            )
        return answered("none: luna_ext would raise this answer as an error", None)


def _require(luna: Library, functions: Sequence[str]) -> None:
    for function in functions:
        if function not in luna.cluster_functions:
            raise ProbeError(
                f"{luna.path} has no {function}, so there is nothing to find out; install Luna client 10.6 "
                "or newer"
            )


def _findings(probe: Probe, cluster_id: str | None, is_stub: bool) -> Iterator[Finding]:
    def ask_claim() -> Said:
        if cluster_id is None:
            says = "not asked; --cluster ID asks it, and claims other slots for that"
            return _answered(says, "not_asked")
        return probe.ask_claim(cluster_id)

    questions: list[tuple[str, str, Callable[[], Said]]] = [
        ("lock_by_other", "A lock call while another process holds the lock", probe.ask_contention),
        ("lock_by_holder", "A second lock call of the process that holds it", probe.ask_relock),
        ("unlock_by_other", "An unlock call by a process that does not hold it", probe.ask_unlock),
        (
            "one_application",
            "Are two processes one application to the device",
            lambda: probe.compare_processes(not is_stub),
        ),
        ("free_after_kill", "How long until a killed holder's lock is free", probe.ask_kill),
        (
            "delays_other_calls",
            "Does a lock call that waits delay its process's other calls",
            probe.ask_delay,
        ),
        ("claim_of_held", "Can a claim return a slot that its process holds", ask_claim),
    ]
    for name, question, ask in questions:
        yield Finding(name, question, ask())
    probe.check_that_it_is_free()
    yield Finding("setting", "The setting for this device", probe.setting())


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext probe --slot 42", "luna-ext probe --slot 42 --cluster cluster-1 --yes --json"
    ),
)
@click.option(
    "--slot",
    "slot_id",
    type=SLOT,
    required=True,
    metavar="N",
    help="A slot whose lock no other program needs meanwhile.",
)
@click.option(
    "--cluster",
    type=CLUSTER,
    metavar="ID",
    help="Also claim tokens of this cluster, which are unlocked again at once.",
)
@click.option(
    "--patience",
    type=Number(0.1, LONG),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="A call that takes longer counts as one that waits.",
)
@click.option("--yes", is_flag=True, help="Do not ask before a device is touched.")
@json_option
@settings
def probe(
    options: Settings, slot_id: int, cluster: str | None, patience: float, yes: bool, as_json: bool
) -> None:
    """Find out what the device does where the SDK says nothing.

    Does contention wait or answer an error? What does a second lock call of the same process get?
    Does unlock check the owner? Are two processes one application to it, so that the lock does not
    keep them apart? How long until a killed holder's lock is free? Prints the findings, and the
    setting of --contention to use.

    Locks and unlocks the slot from several processes, for some seconds. Uses no other slot, but for
    --cluster, and leaves it unlocked. Asks before it touches a device that is not the stand-in.
    """
    with ended_at_once(), options.open() as luna:
        path, is_stub = luna.path, luna.is_stub
        _require(luna, (LOCK, UNLOCK) if cluster is None else (LOCK, UNLOCK, CLAIM))
        refuse_nested(luna, [slot_id])
        token = luna.slot(slot_id).token_info
    if not is_stub and not yes:
        click.confirm(
            f"Lock and unlock slot {slot_id} ({printable(token.label)!r}) of a real device?",
            abort=True,
            err=True,
        )
    findings = []
    with ended_by_signals():
        for finding in _findings(Probe(path, slot_id, patience), cluster, is_stub):
            findings.append(finding)
            if not as_json:
                print_paragraph(f"{finding.question}: {finding.said.text}.")
    if as_json:
        print_json({finding.name: finding.said.values for finding in findings})
