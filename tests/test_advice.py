"""Each advice in the table of errors, for an answer of the device, followed to the letter: it helps. The
message says it, or `luna-ext explain`.
"""

import contextlib
import ctypes
import os

import pkcs11
import pytest
from support import DUAL_IDENTITY, INIT_PIN, LOCK

import luna_ext
from luna_ext.errors import error_for, named_codes, rv_name
from luna_ext.explanations import explain

SO_PIN, USER_PIN = "so-pin-1", "user-pin-1"
OTHER_PIN = "another-1"
SESSION_READ_ONLY = 0xB5
ALREADY_LOGGED_IN = 0x100
SERIAL_SESSION, CKU_USER = ctypes.c_ulong(4), ctypes.c_ulong(1)
WRONG_TRIES = 10
LONGEST = 100
"""More often no list is asked for."""


def advice_of(rv):
    """What the error's message says after the code's name and number; "" if that is all."""
    return str(error_for(rv, "C_Function")).partition(")")[2].removeprefix(": ")


def explained(rv):
    """What `luna-ext explain` advises, if the message does not; else ""."""
    advice = explain(rv).advice
    return "" if advice in advice_of(rv) else advice


CODES = named_codes()
# They say what is the matter, and what follows from it depends on the program.
NOTHING_TO_DO = {
    "the client library is out of memory",
    "the device is out of memory",
    "the device did not accept an argument",
    "this client or device does not offer it",
    "the slot has no token any more",
    "the HSM's policy or the token's state forbids it",
    # Of explain.
    "nothing",
    "ask again later",
    "ask the HSM's administrator for its policies",
    "compare the arguments with what the function takes; of a claim, the cluster's ID",
    "do not trust the data: it is not what was signed with this key and mechanism",
    "let the device have less to do at a time, or have its administrator look at it",
    "let the process have more memory, or do less at a time",
    "look the name up in the vendor's documentation, and see the client library's own log",
    "see the application: it or the device's user has ended the call",
    "see the code that initialises the client library, which is not luna_ext's: luna_ext lets it "
    "create threads, and use the system's locks",
    "see to the token, and to the partition's connection to this client",
}
# The stand-in has no log on demand, no administrator, no PED, no keys, one security officer, and no user to
# log in before a token has its user PIN, which is when luna_ext logs in.
NOT_ON_THE_STAND_IN = {
    "see the client library's own log",
    "too many wrong tries; a keyring is unlocked by the crypto officer of the cluster's partition "
    "(lunash keyring unlock)",
    "too many wrong tries to log in as security officer; ten of them erase a partition; a keyring "
    "is unlocked by the crypto officer of the cluster's partition (lunash keyring unlock)",
    "too many wrong tries to log in as auditor; wait until the time is over",
    "too many wrong tries to log in as auditor; the HSM's administrator knows what follows",
    "the role lacks the right; give the PIN of one that has it",
    "the PED is not there to log in with; see to the PED, or to its connection, on the client's "
    "host",
    "another user of this process is logged in to the token; log out first",
    # Of explain.
    "begin each operation once in a session, and end it before the next one; give each thread a "
    "session of its own",
    "correct the attributes of the template",
    "give data of the form and length that the mechanism takes",
    "have the HSM's administrator look at it: the device refuses all work",
    "let several processes do the work, or take another client library; this one does not serve "
    "several threads",
    "look the key or object up again, in a session that is open: handles end with the session, "
    "the connection and the object",
    "see the object's attributes: they, or the HSM's policy, forbid it",
    "take a mechanism that the token has, with its parameters; C_GetMechanismList tells which it "
    "has, and the HSM's policy may forbid some",
    "take random numbers from the operating system, or from a token that gives them",
    "use a key of the kind, size and attributes that the mechanism and the call want",
    "use a token with plain passwords; luna_ext has no one-time passwords",
}
# By tests/commands/test_doctor.py.
FOLLOWED_ELSEWHERE = {
    "call a function that is there; `luna-ext doctor` tells which cluster functions are",
    "open the Library after the fork, if this is a forked child; else let one part of the process "
    "initialise the client library",
}
followed = set()


def follows(*texts):
    """The test does what these say, for each code that they are said for."""
    followed.update(texts)
    codes = [rv for rv in CODES if {advice_of(rv), explained(rv)} & {*texts}]
    assert {*texts} <= {said(rv) for rv in codes for said in (advice_of, explained)}
    return pytest.mark.parametrize("rv", codes, ids=rv_name)


@contextlib.contextmanager
def refused(rv):
    with pytest.raises(luna_ext.CryptokiError) as caught:
        yield
    assert caught.value.rv == rv
    assert str(caught.value).endswith(advice_of(rv))


@pytest.fixture
def provision(luna, cluster):
    """Give the label "new" to a token, or complete that; the error, if there is one."""

    def call(*, so_pin=SO_PIN, user_pin=USER_PIN):
        report = luna_ext.provision(
            luna, cluster.cluster_id, ["new"], so_pin=so_pin, user_pin=user_pin
        )
        return report.failed.get("new")

    return call


def assert_logs_in(luna, user_pin):
    with luna.token("new").pkcs11().open(user_pin=user_pin) as session:
        assert session.user_type is pkcs11.UserType.USER


def test_every_advice_is_followed_by_a_test():
    said = {text for rv in CODES for text in (advice_of(rv), explained(rv))} - {""}
    groups = [followed, NOTHING_TO_DO, NOT_ON_THE_STAND_IN, FOLLOWED_ELSEWHERE]
    assert said == set().union(*groups)
    assert len(said) == sum(map(len, groups))


# ---- the device and the connection to it ----


@follows("the client knows no such slot; Library.slots() lists the ones that it knows")
def test_a_slot_that_is_not_known(luna, rv):
    with refused(rv):
        _ = luna.slot(999).info
    for slot in luna.slots():
        assert slot.slot_id != 999
        with slot:
            assert slot.info.description


@follows(
    "the device or the connection to it failed; check the network and the HSM's health (vtl verify), "
    "then open a new Library",
    "check the network and the HSM's health (vtl verify), then open a new Library",
    "the HSM's administrator enables it again; then open a new Library",
)
def test_a_device_that_has_come_back(luna, cluster, rv):
    """And does not know this application any more."""
    cluster.fault("C_GetSlotList", rv, times=1)
    with refused(rv):
        luna.slots()
    cluster.disconnect(os.getpid())
    with cluster.library() as new, new.slot(1) as slot:
        slot.ensure_held()
    with luna.slot(1) as slot:
        slot.ensure_held()


@follows(
    "something else in this process finalised the client library; open a new Library",
)
def test_a_library_that_other_code_has_finalised(luna, cluster, rv):
    assert ctypes.CDLL(luna.path).C_Finalize(None) == 0
    with refused(rv):
        luna.slots()
    with cluster.library() as new, new.slot(1) as slot:
        slot.ensure_held()
    with luna.slot(1) as slot:
        slot.ensure_held()


@follows("the device is busy; try again")
def test_a_busy_device(luna, cluster, rv):
    cluster.fault("C_GetSlotList", rv, times=1)
    with refused(rv):
        luna.slots()
    assert len(luna.slots()) == 8


@follows("try again; slots or tokens came while the call was made")
def test_a_list_that_grows(luna, cluster, rv):
    cluster.fault("C_GetSlotList", rv, times=LONGEST)
    with refused(rv):
        luna.slots()
    cluster.fault("C_GetSlotList", rv, times=0)
    assert len(luna.slots()) == 8


# ---- PINs and roles ----


@follows(
    "the slot is no keyring of a cluster; Library.tokens() lists the tokens that there are",
    "the slot is no keyring that the cluster has; Library.tokens() lists the tokens that there are",
)
def test_a_slot_that_is_no_keyring(luna, cluster, rv):
    cluster.fault("C_GetSlotInfo", rv, times=1)
    with refused(rv):
        _ = luna.slot(3).info
    assert len(luna.tokens()) == len(cluster.tokens())
    for token in luna.tokens():
        with token:
            token.ensure_held()


@follows("the challenge password is wrong; each further try counts towards a lock-out")
def test_a_wrong_challenge(luna, cluster, rv):
    cluster.fault("C_InitToken", rv, times=1)
    with luna.claim(cluster.cluster_id) as token:
        with refused(rv):
            token.assign("new", so_pin=SO_PIN)
        token.assign("new", so_pin=SO_PIN)


@follows("the PIN is wrong; each further try counts towards a lock-out")
def test_a_wrong_pin(luna, cluster, rv):
    # Initialised, and not assigned.
    client, pin = ctypes.CDLL(luna.path), SO_PIN.encode()
    for token in cluster.tokens():
        label = token.original_label.ljust(32).encode()
        assert client.C_InitToken(ctypes.c_ulong(token.slot_id), pin, len(pin), label) == 0
    with luna.claim(cluster.cluster_id) as token:
        with refused(rv):
            token.assign("new", so_pin="wrong")
        # The right PIN is the way, and forgets the wrong tries.
        token.assign("new", so_pin=SO_PIN)
    with luna.claim(cluster.cluster_id) as token:
        for _ in range(WRONG_TRIES - 1):
            with refused(rv):
                token.assign("other", so_pin="wrong")
        # The last one would erase the keyring, and is not made.
        with pytest.raises(luna_ext.PinError, match="one try left"):
            token.assign("other", so_pin="wrong")


@DUAL_IDENTITY
@pytest.mark.parametrize("say", ["min_pin_length", "max_pin_length"])
@follows("the PIN is too short or too long; token_info.min_pin_length and .max_pin_length say")
def test_a_pin_of_a_wrong_length(luna, cluster, provision, rv, say):
    # What is out of the range that the token tells is refused before the device is asked.
    error = provision(user_pin="1" if say == "min_pin_length" else "1" * 256)
    assert (error.rv, "takes 8 to 255" in str(error)) == (None, True)
    # A device may take less than it tells.
    cluster.fault(INIT_PIN, rv, times=1)
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    right = "1" * getattr(luna.token("new").slot.token_info, say)
    assert provision(user_pin=right) is None
    assert_logs_in(luna, right)


@DUAL_IDENTITY
@follows(
    "the PIN has a character that the device refuses",
    "the device's policy wants a stronger PIN",
    "choose another PIN, as the HSM's policy wants it",
)
def test_a_pin_that_the_device_does_not_like(luna, cluster, provision, rv):
    cluster.fault(INIT_PIN, rv, times=1)
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    assert provision(user_pin=OTHER_PIN) is None
    assert_logs_in(luna, OTHER_PIN)


@DUAL_IDENTITY
@follows(
    "the PIN has to be changed first; token.change_pin(old, new) does that, and with "
    'role="so" the same for the SO\'s'
)
def test_a_pin_that_has_to_be_changed(luna, cluster, provision, rv):
    cluster.fault("C_Login", rv, times=1)
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    with luna.token("new") as token:
        token.change_pin(SO_PIN, OTHER_PIN, role="so")
    assert provision(so_pin=OTHER_PIN) is None
    with luna.token("new") as token:
        token.change_pin(USER_PIN, OTHER_PIN)
    assert_logs_in(luna, OTHER_PIN)


@follows("log in to the keyring first")
def test_a_keyring_that_wants_a_login(luna, cluster, provision, rv):
    assert provision() is None
    cluster.fault(LOCK, rv, times=1)
    token = luna.token("new")
    with refused(rv), token:
        pass
    with token.pkcs11().open(user_pin=USER_PIN), token:
        token.ensure_held()


# ---- sessions ----


@pytest.mark.luna_cluster(keyrings=1)
@follows(
    "a program has a session on the token; close this process's and those of other programs, also a "
    "Library that has locked this very slot"
)
def test_sessions_on_a_token_that_is_to_be_erased(luna, cluster, program, rv):
    other = program(
        """
        with slot:
            pass
        print("was locked", flush=True)
        sys.stdin.readline()
        luna.close()
        print("closed", flush=True)
        """
    )
    other.expect("was locked")
    (here,) = luna.pkcs11().get_tokens()
    session = here.open()
    with luna.claim(cluster.cluster_id) as token:
        with refused(rv):
            token.assign("new", so_pin=SO_PIN)
        session.close()
        with refused(rv):
            token.assign("new", so_pin=SO_PIN)
        other.process.stdin.write("\n")
        other.process.stdin.flush()
        other.expect("closed")
        token.assign("new", so_pin=SO_PIN)


@DUAL_IDENTITY
@follows("close this process's read-only sessions on the token first")
def test_read_only_sessions_beside_the_security_officer(luna, provision, rv):
    assert provision(user_pin=None) is None
    session = luna.token("new").pkcs11().open()
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    session.close()
    assert provision() is None
    assert_logs_in(luna, USER_PIN)


@DUAL_IDENTITY
@follows("the token allows no further session; close some")
def test_as_many_sessions_as_there_may_be(luna, provision, rv):
    assert provision(user_pin=None) is None
    token = luna.token("new").pkcs11()
    sessions = []
    with pytest.raises(pkcs11.SessionCount):
        while True:
            sessions.append(token.open(rw=True))
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    sessions.pop().close()
    assert provision() is None
    for session in sessions:
        session.close()
    assert_logs_in(luna, USER_PIN)


# ---- what a program does that uses python-pkcs11 beside it ----


@DUAL_IDENTITY
@follows(
    "have the security officer set it: provision(..., user_pin=...) completes such a token, or "
    "C_InitPIN"
)
def test_a_token_without_a_user_pin(luna, provision, rv):
    assert provision(user_pin=None) is None
    with pytest.raises(pkcs11.UserPinNotInitialized):
        luna.token("new").pkcs11().open(rw=True, user_pin=USER_PIN)
    assert provision() is None
    assert_logs_in(luna, USER_PIN)


@DUAL_IDENTITY
@follows("open a new session")
def test_a_session_that_cannot_be_used(luna, provision, rv):
    assert provision() is None
    session = luna.token("new").pkcs11().open(rw=rv != SESSION_READ_ONLY)
    if rv != SESSION_READ_ONLY:
        session.close()
    with pytest.raises((pkcs11.SessionReadOnly, pkcs11.SessionHandleInvalid)):
        session.set_pin(USER_PIN, OTHER_PIN)
    with luna.token("new").pkcs11().open(rw=True, user_pin=USER_PIN) as new:
        new.set_pin(USER_PIN, OTHER_PIN)
    assert_logs_in(luna, OTHER_PIN)


@DUAL_IDENTITY
@follows("wait until that session is closed, or open a read-write session")
def test_a_session_beside_the_security_officer(luna, provision, rv):
    assert provision() is None
    token = luna.token("new").pkcs11()
    officer = token.open(rw=True, so_pin=SO_PIN)
    with pytest.raises(pkcs11.SessionReadWriteSOExists):
        token.open()
    token.open(rw=True).close()
    officer.close()
    token.open().close()


@DUAL_IDENTITY
@follows(
    "log in once for each process and token, with the right role; a login ends with the last session"
)
def test_a_second_login(luna, provision, rv):
    assert provision() is None
    token, client, pin = luna.token("new"), ctypes.CDLL(luna.path), USER_PIN.encode()
    first = token.pkcs11().open(user_pin=USER_PIN)
    second = ctypes.c_ulong()
    # Of python-pkcs11, a session would stay open whose login fails.
    arguments = ctypes.c_ulong(token.slot.slot_id), SERIAL_SESSION, None, None, ctypes.byref(second)
    assert client.C_OpenSession(*arguments) == 0
    assert client.C_Login(second, CKU_USER, pin, len(pin)) == ALREADY_LOGGED_IN
    assert client.C_CloseSession(second) == 0
    token.pkcs11().open().close()
    first.close()
    token.pkcs11().open(rw=True, so_pin=SO_PIN).close()
