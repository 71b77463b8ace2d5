"""Every code that a device can answer, at every device call of every operation."""

import asyncio
import ctypes
import itertools
from typing import NamedTuple

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    FIND,
    LOCK,
    SESSION_INFO,
    TOKEN_INFO,
    UNLOCK,
    enter,
    enter_async,
)

import luna_ext
from luna_ext.errors import rv_name
from luna_ext.stub import library_path

LIST = "C_GetSlotList"

SLOT_ID_INVALID = 0x3
BUFFER_TOO_SMALL = 0x150
BUSY = (0x80000041, 0x80001604)

# What docs and docstrings say that each code is.
CODES = {
    SLOT_ID_INVALID: luna_ext.SlotIdInvalidError,
    0x6: luna_ext.FunctionFailedError,
    0x7: luna_ext.ArgumentsBadError,
    DEVICE_ERROR: luna_ext.DeviceError,
    BUFFER_TOO_SMALL: luna_ext.BufferTooSmallError,
    0x190: luna_ext.NotInitializedError,
    0x80000004: luna_ext.DeviceError,
    0x80000007: luna_ext.PinError,
    0x8000001A: luna_ext.CryptokiError,
    0x8000001F: luna_ext.DeviceError,
    0x80000020: luna_ext.DeviceError,
    0x80000024: luna_ext.DeviceError,
    0x8000002B: luna_ext.DeviceError,
    0x80000030: luna_ext.CryptokiError,
    0x80000041: luna_ext.DeviceError,
    0x80000043: luna_ext.CryptokiError,
    0x8000006F: luna_ext.CryptokiError,
    0x80000305: luna_ext.CryptokiError,
    0x80000306: luna_ext.CryptokiError,
    0x80000307: luna_ext.CryptokiError,
    0x80001604: luna_ext.DeviceError,
    0x8000BEEF: luna_ext.CryptokiError,
}
CONNECTION_LOST = [
    rv
    for rv, kind in CODES.items()
    if rv not in BUSY
    and kind in (luna_ext.DeviceError, luna_ext.SlotIdInvalidError, luna_ext.NotInitializedError)
]
OF_THE_LIBRARY = ("C_GetInfo", LIST, FIND, CLAIM)


# ---- what becomes of a code, by the call that answers it: an exception's class, or None ----


def raised(rv):
    return CODES[rv]


def ignored(rv):
    return None


def asked_again(rv):
    return None if rv in BUSY else CODES[rv]


def asked_again_or_none_left(rv):
    return luna_ext.NoUnassignedTokenError if rv == 0x6 else asked_again(rv)


def asked_again_in_time(rv):
    return None if rv == 0x6 else asked_again(rv)


def not_released(rv):
    return None if rv in BUSY else luna_ext.LockReleaseError


def more_room(rv):
    return None if rv == BUFFER_TOO_SMALL else CODES[rv]


def left_out(rv):
    return None if rv == SLOT_ID_INVALID else CODES[rv]


def asked_once_more(rv):
    """One passing error is no lost lock."""
    return None if rv in CONNECTION_LOST else CODES[rv]


class Step(NamedTuple):
    """The n-th call of a C function within an operation."""

    function: str
    nth: int
    outcome: object


def steps(*calls):
    """In the order in which the operation makes them."""
    seen = []
    for function, outcome in calls:
        seen.append(function)
        yield Step(function, seen.count(function), outcome)


LOCKED = (LOCK, asked_again)
CHECKED = (TOKEN_INFO, raised)
# The session shows whether the library was finalised; test_same_connection has its answers.
ALIVE = ((TOKEN_INFO, asked_once_more), (SESSION_INFO, None))
UNLOCKED = (UNLOCK, not_released)
CLAIMED = (CLAIM, asked_again_or_none_left)
LISTED = (LIST, more_room)
IS_UNIQUE = (FIND, more_room)
INITIALISED = ("C_InitToken", raised)
USER_PIN_SET = (
    ("C_OpenSession", raised),
    ("C_Login", raised),
    ("C_InitPIN", raised),
    ("C_Logout", ignored),
    ("C_CloseSession", ignored),
)


# ---- the operations ----


class Given(NamedTuple):
    luna: luna_ext.Library
    slot: luna_ext.ClusterSlot
    token: luna_ext.Token


def acquire_and_release(slot, *arguments, **options):
    if slot.acquire(*arguments, **options):
        slot.release()
    else:
        raise luna_ext.LockTimeoutError("as a context manager would say")


def hold_and_ensure(block):
    with block as held:
        held.ensure_held()


def hold_async_and_ensure(block):
    async def main():
        async with block as held:
            held.ensure_held()

    asyncio.run(main())


numbers = itertools.count()


def assign(luna, **pins):
    with luna.claim("cluster-1") as token:
        token.assign(f"new{next(numbers)}", so_pin="12345678", **pins)


OPERATIONS = {
    "info": (lambda given: given.luna.info, [("C_GetInfo", raised)]),
    "slots": (lambda given: given.luna.slots(), [LISTED, LISTED]),
    "find": (lambda given: given.luna.find("keyring1"), [(FIND, more_room)]),
    "token": (lambda given: given.luna.token("keyring1"), [(FIND, more_room)]),
    "tokens": (
        lambda given: given.luna.tokens(),
        [LISTED, LISTED, *4 * [(TOKEN_INFO, left_out)]],
    ),
    "claim": (lambda given: enter(given.luna.claim("cluster-1")), [CLAIMED, UNLOCKED]),
    "timed claim": (
        lambda given: enter(given.luna.claim("cluster-1", timeout=5)),
        [(CLAIM, asked_again_in_time), UNLOCKED],
    ),
    "async claim": (
        lambda given: enter_async(given.luna.claim("cluster-1")),
        [CLAIMED, UNLOCKED],
    ),
    "slot.info": (lambda given: given.slot.info, [("C_GetSlotInfo", raised)]),
    "slot.token_info": (lambda given: given.slot.token_info, [CHECKED]),
    "acquire": (lambda given: acquire_and_release(given.slot), [LOCKED, UNLOCKED]),
    "timed acquire": (
        lambda given: acquire_and_release(given.slot, timeout=5),
        [LOCKED, UNLOCKED],
    ),
    "acquire(False)": (
        lambda given: acquire_and_release(given.slot, False),
        [LOCKED, UNLOCKED],
    ),
    "with slot": (lambda given: enter(given.slot), [LOCKED, UNLOCKED]),
    "slot.lock": (lambda given: enter(given.slot.lock()), [LOCKED, UNLOCKED]),
    "timed slot.lock": (lambda given: enter(given.slot.lock(timeout=5)), [LOCKED, UNLOCKED]),
    "slot.lock at once": (lambda given: enter(given.slot.lock(timeout=0)), [LOCKED, UNLOCKED]),
    "async slot.lock": (
        lambda given: enter_async(given.slot.lock(timeout=5)),
        [LOCKED, UNLOCKED],
    ),
    "slot.ensure_held": (lambda given: hold_and_ensure(given.slot), [LOCKED, *ALIVE, UNLOCKED]),
    "async slot.ensure_held": (
        lambda given: hold_async_and_ensure(given.slot.lock()),
        [LOCKED, *ALIVE, UNLOCKED],
    ),
    "token.info": (lambda given: given.token.info, [CHECKED]),
    "with token": (lambda given: enter(given.token), [LOCKED, CHECKED, UNLOCKED]),
    "token.lock": (
        lambda given: enter(given.token.lock(timeout=5)),
        [LOCKED, CHECKED, UNLOCKED],
    ),
    "async token.lock": (
        lambda given: enter_async(given.token.lock()),
        [LOCKED, CHECKED, UNLOCKED],
    ),
    "token.ensure_held": (
        lambda given: hold_and_ensure(given.token),
        [LOCKED, CHECKED, *ALIVE, UNLOCKED],
    ),
    "assign": (
        lambda given: assign(given.luna),
        [CLAIMED, *ALIVE, IS_UNIQUE, INITIALISED, CHECKED, UNLOCKED],
    ),
    "assign with a user PIN": (
        lambda given: assign(given.luna, user_pin="87654321"),
        [CLAIMED, *ALIVE, IS_UNIQUE, INITIALISED, CHECKED, *USER_PIN_SET, UNLOCKED],
    ),
}
# The operations that end with an unlock.
UNLOCKING = [name for name, (_, calls) in OPERATIONS.items() if UNLOCKED in calls]

pytestmark = pytest.mark.luna_cluster(keyrings=4)


def case(name, step, rv):
    where = f"{step.function}{'' if step.nth == 1 else f' {step.nth}'}"
    return pytest.param(name, step, rv, id=f"{name}-{where}-{rv:#x}")


def prepare(luna):
    # The library's own session is opened with the first lock, and stays on a token that was assigned.
    assigned = False
    while not assigned:
        with luna.claim("cluster-1") as token:
            if token.slot.slot_id == 4:
                assigned = token.assign("elsewhere", so_pin="12345678")
    return Given(luna, luna.slot(1), luna.token("keyring1"))


def outcome_of(operation, given):
    """The exception that it raises, or None."""
    try:
        operation(given)
    except luna_ext.LunaError as error:
        return error
    return None


def held_here(luna):
    return [slot.slot_id for slot in luna.slots() if slot.locked()]


def held_on_device(cluster):
    return [token.slot_id for token in cluster.tokens() if token.owner is not None]


def but_for_sessions(functions):
    """A block that takes long on a busy machine asks for the session once more."""
    return [function for function in functions if function != SESSION_INFO]


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_table_has_all_calls_of_an_operation(cluster, luna, name):
    operation, calls = OPERATIONS[name]
    given = prepare(luna)
    before = len(cluster.log())
    operation(given)
    made = [call.function for call in cluster.log()[before:]]
    expected = [function for function, _ in calls]
    assert made.count(SESSION_INFO) >= expected.count(SESSION_INFO)
    assert but_for_sessions(made) == but_for_sessions(expected)


@pytest.mark.parametrize(
    ("name", "step", "rv"),
    [
        case(name, step, rv)
        for name, (_, calls) in OPERATIONS.items()
        for step in steps(*calls)
        if step.outcome is not None
        for rv in CODES
    ],
)
def test_a_code_is_the_documented_exception_and_leaves_nothing_locked(cluster, name, step, rv):
    operation, _ = OPERATIONS[name]
    expected = step.outcome(rv)
    with cluster.library() as luna:
        given = prepare(luna)
        for _ in range(5):
            before = len(cluster.log())
            cluster.fault(step.function, rv, every=step.nth, times=1)
            error = outcome_of(operation, given)
            made = cluster.log()[before:]
            # Without a timeout a busy device is asked again for a moment, which a busy machine may miss.
            late = isinstance(error, luna_ext.LockTimeoutError) and rv in BUSY
            if not (late and name.endswith("at once")):
                break
        struck = [call for call in made if (call.function, call.rv) == (step.function, rv)]
        assert struck != []
        # A call for a session that is struck is logged without its slot.
        slot_ids = [call.slot_id for call in struck + made if call.slot_id is not None]
        assert (None if error is None else type(error)) is expected
        if error is not None:
            assert (error.rv, error.function) == (rv, step.function)
            assert error.slot_id == (None if step.function in OF_THE_LIBRARY else slot_ids[0])
        assert held_here(luna) == []
        # A device that claims to be gone is not asked to unlock; one that refused has not done it.
        if expected in (luna_ext.LockReleaseError, luna_ext.LockLostError):
            assert held_on_device(cluster) == slot_ids[:1]
        else:
            assert held_on_device(cluster) == []
        assert outcome_of(operation, given) is None
        assert held_here(luna) == []
    assert held_on_device(cluster) == []


@pytest.mark.parametrize(
    ("name", "rv"),
    [
        *(("with slot", rv) for rv in CODES),
        *((name, rv) for name in UNLOCKING for rv in (0x6, DEVICE_ERROR)),
    ],
)
def test_a_failed_unlock_is_told_from_a_lost_lock_by_the_next_call(cluster, luna, name, rv):
    operation, calls = OPERATIONS[name]
    asked_before = [function for function, _ in calls].count(TOKEN_INFO)
    given = prepare(luna)
    cluster.fault(UNLOCK, 0x6, times=1)
    cluster.fault(TOKEN_INFO, rv, every=asked_before + 1, times=1)
    cluster.fault(SESSION_INFO, DEVICE_ERROR)
    error = outcome_of(operation, given)
    assert type(error) is (
        luna_ext.LockLostError if rv in CONNECTION_LOST else luna_ext.LockReleaseError
    )
    assert (error.rv, error.function) == (0x6, UNLOCK)
    assert type(error.__cause__) is luna_ext.FunctionFailedError
    assert [error.slot_id] == held_on_device(cluster)
    assert held_here(luna) == []
    luna.close()
    assert held_on_device(cluster) == []


@pytest.mark.parametrize("rv", CONNECTION_LOST, ids=hex)
def test_a_device_that_answers_twice_that_it_knows_us_no_more_has_dropped_the_lock(
    cluster, luna, rv
):
    given = prepare(luna)
    cluster.fault(TOKEN_INFO, rv, times=2)
    cluster.fault(SESSION_INFO, DEVICE_ERROR, times=1)
    error = outcome_of(OPERATIONS["slot.ensure_held"][0], given)
    assert type(error) is luna_ext.LockLostError
    assert (error.rv, error.function) == (rv, TOKEN_INFO)
    assert held_on_device(cluster) == [1]
    luna.close()


@pytest.mark.parametrize("name", ["with token", "token.lock", "async token.lock"])
def test_an_unlock_that_fails_after_a_failed_check_is_a_note(cluster, luna, name):
    operation, _ = OPERATIONS[name]
    given = prepare(luna)
    cluster.fault(TOKEN_INFO, 0x8000001A, times=1)
    cluster.fault(UNLOCK, 0x6, times=1)
    error = outcome_of(operation, given)
    assert (error.rv, error.function) == (0x8000001A, TOKEN_INFO)
    assert "CKR_FUNCTION_FAILED" in error.__notes__[0]
    assert held_here(luna) == []
    assert outcome_of(operation, given) is None
    assert held_on_device(cluster) == []


# ---- a device that stays busy ----

AT_ONCE_OR_SOON = {
    "acquire(timeout)": lambda given: acquire_and_release(given.slot, timeout=0.05),
    "acquire(False)": OPERATIONS["acquire(False)"][0],
    "slot.lock": lambda given: enter(given.slot.lock(timeout=0.05)),
    "slot.lock at once": OPERATIONS["slot.lock at once"][0],
    "async slot.lock": lambda given: enter_async(given.slot.lock(timeout=0.05)),
    "async slot.lock at once": lambda given: enter_async(given.slot.lock(timeout=0)),
    "token.lock": lambda given: enter(given.token.lock(timeout=0.05)),
    "async token.lock": lambda given: enter_async(given.token.lock(timeout=0.05)),
}


@pytest.mark.parametrize("rv", BUSY, ids=hex)
@pytest.mark.parametrize("name", AT_ONCE_OR_SOON)
def test_a_device_that_stays_busy_is_a_timeout(cluster, luna, name, rv):
    operation, given = AT_ONCE_OR_SOON[name], prepare(luna)
    cluster.fault(LOCK, rv)
    assert type(outcome_of(operation, given)) is luna_ext.LockTimeoutError
    assert held_here(luna) == held_on_device(cluster) == []
    cluster.fault(LOCK, rv, times=0)
    enter(given.slot.lock(timeout=10))
    assert held_on_device(cluster) == []


@pytest.mark.parametrize("rv", BUSY, ids=hex)
@pytest.mark.parametrize("name", ["claim", "async claim"])
def test_a_claim_of_a_device_that_stays_busy_ends(cluster, luna, name, rv):
    operation, given = OPERATIONS[name][0], prepare(luna)
    cluster.fault(CLAIM, rv)
    error = outcome_of(operation, given)
    assert type(error) is luna_ext.DeviceError
    assert (error.rv, error.function, error.slot_id) == (rv, CLAIM, None)
    assert held_here(luna) == held_on_device(cluster) == []
    cluster.fault(CLAIM, rv, times=0)
    assert outcome_of(operation, given) is None


@pytest.mark.parametrize(("name", "rv"), [("with slot", BUSY[0]), ("async claim", BUSY[1])])
def test_an_unlock_of_a_device_that_stays_busy_ends(cluster, luna, name, rv):
    operation, given = OPERATIONS[name][0], prepare(luna)
    cluster.fault(UNLOCK, rv)
    error = outcome_of(operation, given)
    assert type(error) is luna_ext.LockReleaseError
    assert (error.rv, error.function) == (rv, UNLOCK)
    assert [error.slot_id] == held_on_device(cluster)
    assert held_here(luna) == []
    cluster.fault(UNLOCK, rv, times=0)
    luna.close()
    assert held_on_device(cluster) == []


@pytest.mark.parametrize("name", [name for name in UNLOCKING if LOCKED in OPERATIONS[name][1]])
def test_polling_asks_again_after_a_device_error(cluster, name):
    with cluster.library(contention="poll") as luna:
        given = prepare(luna)
        cluster.fault(LOCK, DEVICE_ERROR, times=1)
        assert outcome_of(OPERATIONS[name][0], given) is None
        assert held_here(luna) == held_on_device(cluster) == []


# ---- the life of a library ----


@pytest.mark.parametrize("rv", CODES, ids=hex)
def test_a_library_that_cannot_be_initialised_can_be_opened_later(cluster, rv):
    cluster.fault("C_Initialize", rv, times=1)
    with pytest.raises(luna_ext.CryptokiError) as caught:
        cluster.library()
    error = caught.value
    assert type(error) is CODES[rv]
    assert (error.rv, error.function, error.slot_id) == (rv, "C_Initialize", None)
    with cluster.library() as luna, luna.slot(1):
        pass
    made = [call.function for call in cluster.log()]
    assert made.index(SESSION_INFO) < made.index(LOCK)
    assert but_for_sessions(made) == [
        "C_Initialize",
        "C_Initialize",
        "C_OpenSession",
        LOCK,
        UNLOCK,
        "C_Finalize",
    ]


@pytest.mark.parametrize("rv", CODES, ids=hex)
def test_a_library_that_cannot_be_finalised_is_closed_all_the_same(cluster, caplog, rv):
    luna = cluster.library()
    slot = luna.slot(1)
    slot.acquire()
    cluster.fault("C_Finalize", rv, times=1)
    try:
        with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
            luna.close()
        assert luna.closed
        assert held_on_device(cluster) == []
        (record,) = (record for record in caplog.records if record.levelname == "WARNING")
        assert (record.name, rv_name(rv) in record.getMessage()) == ("luna_ext", True)
        with cluster.library() as again, again.slot(1):
            assert held_on_device(cluster) == [1]
        assert held_on_device(cluster) == []
    finally:
        # The stand-in is still initialised: it said so.
        ctypes.CDLL(library_path()).C_Finalize(None)
