"""Each advice in the table of errors, for an answer of the device, followed to the letter: it helps."""

import contextlib
import ctypes
import os

import pkcs11
import pytest
from support import DUAL_IDENTITY, INIT_PIN, LOCK

import luna_ext
from luna_ext.errors import VENDOR_DEFINED, error_for, rv_name

SO_PIN, USER_PIN = "so-pin-1", "user-pin-1"
OTHER_PIN = "another-1"
PIN_LOCKED = 0xA4
WRONG_TRIES = 10


def advice_of(rv):
    """What the error's message says after the code's name and number; "" if that is all."""
    return str(error_for(rv, "C_Function")).partition(")")[2].removeprefix(": ")


# Of all codes that have a name.
CODES = [
    rv
    for first in (0, VENDOR_DEFINED)
    for rv in range(first, first + 0x2000)
    if not rv_name(rv).startswith("0x")
]
# They say what is the matter, and what follows from it depends on the program.
NOTHING_TO_DO = {
    "the client library is out of memory",
    "the device is out of memory",
    "the device did not accept an argument",
    "this client or device does not offer it",
    "the slot has no token any more",
    "the HSM's policy or the token's state forbids it",
}
# The stand-in has no log on demand, no administrator, no PED, one security officer, and no user to log in
# before a token has its user PIN, which is when luna_ext logs in.
NOT_ON_THE_STAND_IN = {
    "see the client library's own log",
    "too many wrong tries; a keyring is unlocked by the crypto officer of the cluster's partition (lunash "
    "keyring unlock)",
    "the role lacks the right; give the PIN of one that has it",
    "the PED is not there to log in with; see to it, or to its connection, on the client's host",
    "another user of this process is logged in to the token; log out first",
}
followed = set()


def follows(*texts):
    """The test does what these say, for each code that they are said for."""
    followed.update(texts)
    codes = [rv for rv in CODES if advice_of(rv) in texts]
    assert {advice_of(rv) for rv in codes} == set(texts)
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
    said = {advice_of(rv) for rv in CODES} - {""}
    assert said == followed | NOTHING_TO_DO | NOT_ON_THE_STAND_IN
    assert not followed & (NOTHING_TO_DO | NOT_ON_THE_STAND_IN)


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


# ---- PINs and roles ----


@follows(
    "the slot is no keyring of a cluster; Library.tokens() lists the tokens that there are",
    "the cluster has no such keyring; Library.tokens() lists the tokens that there are",
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
        # The last one erases the keyring.
        with refused(PIN_LOCKED):
            token.assign("other", so_pin="wrong")
        token.assign("other", so_pin=OTHER_PIN)


@DUAL_IDENTITY
@pytest.mark.parametrize("say", ["min_pin_length", "max_pin_length"])
@follows("the PIN is too short or too long; token_info.min_pin_length and .max_pin_length say")
def test_a_pin_of_a_wrong_length(luna, provision, rv, say):
    error = provision(user_pin="1" if say == "min_pin_length" else "1" * 256)
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    right = "1" * getattr(luna.token("new").slot.token_info, say)
    assert provision(user_pin=right) is None
    assert_logs_in(luna, right)


@DUAL_IDENTITY
@follows(
    "the PIN has a character that the device refuses", "the device's policy wants a stronger PIN"
)
def test_a_pin_that_the_device_does_not_like(luna, cluster, provision, rv):
    cluster.fault(INIT_PIN, rv, times=1)
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    assert provision(user_pin=OTHER_PIN) is None
    assert_logs_in(luna, OTHER_PIN)


@DUAL_IDENTITY
@follows("the PIN has to be changed first (C_SetPIN)")
def test_a_pin_that_has_to_be_changed(luna, cluster, provision, rv):
    cluster.fault("C_Login", rv, times=1)
    error = provision()
    assert (error.rv, str(error).endswith(advice_of(rv))) == (rv, True)
    with luna.token("new").pkcs11().open(rw=True, so_pin=SO_PIN) as session:
        session.set_pin(SO_PIN, OTHER_PIN)
    assert provision(so_pin=OTHER_PIN) is None
    assert_logs_in(luna, USER_PIN)


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
    "a program has a session on the token: close this process's and those of other programs, also a "
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
