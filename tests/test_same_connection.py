"""A lock is held only on the connection on which it was granted: the client library may be finalised and
initialised again by other code of the process, or by `reconnect()`.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import textwrap
import threading
import time

import pytest
from support import (
    AGAIN,
    CLAIM,
    DEVICE_ERROR,
    GENERAL_ERROR,
    HOST_MEMORY,
    INIT_TOKEN,
    LOCK,
    PATIENCE,
    SESSION_HANDLE_INVALID,
    SESSION_INFO,
    TOKEN_INFO,
    UNLOCK,
    enter,
    entry_of,
    finalisations,
    have_returned,
    let_device_forget_us,
    logged,
    nothing_is_locked,
    wait_until,
)

import luna_ext
from luna_ext.stub import library_path

SLOT_ID_INVALID = 0x3
DEVICE_MEMORY = 0x31
SESSION_COUNT = 0xB1
SESSION_EXISTS = 0xB6

OPEN_SESSION = "C_OpenSession"
# After a block as long as this the library looks whether it was finalised.
LONG_BLOCK = 0.1

FORMS = {
    "slot": lambda luna: luna.slot(1),
    "lock": lambda luna: luna.slot(1).lock(timeout=5),
    "token": lambda luna: luna.token("keyring1"),
    "token.lock": lambda luna: luna.token("keyring1").lock(timeout=5),
    "claim": lambda luna: luna.claim("cluster-1"),
}
EACH_FORM = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


def held_slot(luna):
    return next(slot for slot in luna.slots() if slot.locked())


def beside(slot):
    """Another slot: a claim may be given any."""
    return slot.library.slot(slot.slot_id % 8 + 1)


def lock_once(slot):
    with slot.lock(timeout=30):
        return slot.locked()


@EACH_FORM
def test_who_asks_hears_of_it(reinitialise, luna, cluster, make):
    with pytest.raises(luna_ext.LockLostError), make(luna):
        slot = held_slot(luna)
        reinitialise()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            slot.ensure_held()
        assert not slot.locked()
    assert logged(cluster, UNLOCK) == []


@EACH_FORM
def test_the_end_of_a_long_block_tells_and_leaves_the_next_holder_alone(
    reinitialise, luna, cluster, make, hold_elsewhere
):
    with pytest.raises(luna_ext.LockLostError, match="finalised"), make(luna):
        slot = held_slot(luna)
        reinitialise()
        other = hold_elsewhere(slot.slot_id)
        time.sleep(LONG_BLOCK)
    assert logged(cluster, UNLOCK) == []
    assert cluster.tokens()[slot.slot_id - 1].owner == other.pid


def test_long_blocks_that_end_at_the_same_time_leave_the_next_holders_alone(
    reinitialise, luna, cluster, hold_here, hold_elsewhere, call, wait_until_inside
):
    """The threads ask for the session at the same time, and only one of them finds out that it is gone."""
    holders = [hold_here(luna.slot(slot_id)) for slot_id in (1, 2)]
    reinitialise()
    others = [hold_elsewhere(slot_id).pid for slot_id in (1, 2)]
    cluster.latency(1, SESSION_INFO)
    ends = [call(holder.leave) for holder in holders]
    wait_until_inside(SESSION_INFO, 2)
    for end in ends:
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            end.result()
    assert logged(cluster, UNLOCK) == []
    assert [token.owner for token in cluster.tokens()[:2]] == others


@pytest.mark.parametrize("claims", [False, True])
def test_the_end_of_a_long_block_in_a_task_tells(reinitialise, luna, cluster, claims):
    async def main():
        make = luna.claim("cluster-1") if claims else luna.slot(1).lock()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            async with make:
                reinitialise()
                await asyncio.sleep(LONG_BLOCK)

    asyncio.run(main())
    assert logged(cluster, UNLOCK) == []


def test_it_is_told_once(reinitialise, luna):
    slot = luna.slot(1)
    slot.acquire()
    reinitialise()
    for _ in range(2):
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    with pytest.raises(luna_ext.LockLostError):
        slot.release()
    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.release()
    with slot:
        slot.ensure_held()


def test_the_waiters_of_a_lost_lock_go_on(reinitialise, luna, cluster, call, wait_until_queued):
    slot, other = luna.slot(1), luna.slot(2)
    slot.acquire()
    other.acquire()
    waiting = call(lambda: lock_once(slot))
    wait_until_queued(slot, 1)
    reinitialise()
    # It is found out on another slot.
    with pytest.raises(luna_ext.LockLostError):
        other.ensure_held()
    assert waiting.result(30)
    for lost in (slot, other):
        with pytest.raises(luna_ext.LockLostError):
            lost.release()


def test_a_lock_after_a_claim_that_was_given_back_is_watched_too(reinitialise, luna):
    """The library's own session was on the claimed token, and is opened anew with the next lock."""
    with luna.claim("cluster-1"):
        pass
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        reinitialise()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            slot.ensure_held()


def test_what_is_held_beside_a_claim_that_is_given_back_is_not_lost(luna):
    """The library's own session was on the claimed token, and is closed with the claim."""
    claim = luna.claim("cluster-1")
    claimed = claim.__enter__().slot
    with beside(claimed) as slot:
        claim.__exit__(None, None, None)
        slot.ensure_held()
        time.sleep(LONG_BLOCK)


@pytest.mark.parametrize("held_by", ["a lock", "a claim"])
@pytest.mark.parametrize("end", ["given back", "assigned", "assigned and given back"])
def test_what_is_held_beside_a_claim_is_watched_when_that_ends(
    reinitialise, luna, cluster, held_by, end
):
    """The library's own session was on the claimed token, from which it has to be gone."""
    claim = luna.claim("cluster-1")
    claimed = claim.__enter__()
    session = logged(cluster, OPEN_SESSION)[-1]
    assert session.slot_id == claimed.slot.slot_id
    other = beside(claimed.slot) if held_by == "a lock" else luna.claim("cluster-1")
    with pytest.raises(luna_ext.LockLostError), other as held:
        if end != "given back":
            claimed.assign("payments", so_pin="12345678")
        if end != "assigned":
            claim.__exit__(None, None, None)
        reinitialise()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            held.ensure_held()
    if end == "assigned":
        with pytest.raises(luna_ext.LockLostError):
            claim.__exit__(None, None, None)


@pytest.mark.parametrize("end", ["given back", "assigned"])
def test_a_claim_whose_end_finds_the_connection_lost_says_so(reinitialise, luna, cluster, end):
    """It asks only because another slot is held, which the library's own session goes on to watch."""
    claim = luna.claim("cluster-1")
    claimed = claim.__enter__()
    with pytest.raises(luna_ext.LockLostError), beside(claimed.slot) as slot:
        reinitialise()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            if end == "assigned":
                claimed.assign("payments", so_pin="12345678")
            else:
                claim.__exit__(None, None, None)
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            slot.ensure_held()
    if end == "assigned":
        with pytest.raises(luna_ext.LockLostError):
            claim.__exit__(None, None, None)
    assert logged(cluster, INIT_TOKEN) == []
    assert logged(cluster, UNLOCK) == []


def test_what_is_held_beside_an_assignment_is_watched_while_that_erases(
    reinitialise, luna, cluster, call, wait_until_inside
):
    def assign():
        with luna.claim("cluster-1") as token:
            claimed.append(token.slot)
            held.wait(30)
            token.assign("payments", so_pin="12345678")

    claimed, held = [], threading.Event()
    assigning = call(assign)
    wait_until(lambda: claimed)
    cluster.latency(0.5, INIT_TOKEN, after=True)
    with pytest.raises(luna_ext.LockLostError), beside(claimed[0]) as slot:
        held.set()
        wait_until_inside(INIT_TOKEN)
        reinitialise()
        with pytest.raises(luna_ext.LunaError):
            assigning.result(30)
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            slot.ensure_held()


def test_a_lost_claim_leaves_the_next_session_on_its_slot_alone(reinitialise, luna, cluster):
    with pytest.raises(luna_ext.LockLostError), luna.claim("cluster-1") as token:
        reinitialise()
        with pytest.raises(luna_ext.LockLostError):
            token.ensure_held()
    for _ in range(2):
        with token.slot:
            pass
    assert len(logged(cluster, OPEN_SESSION)) == 2


def test_a_claim_that_ends_has_no_session_left_where_it_cannot_be_opened_elsewhere(
    luna, cluster, succeed
):
    claim = luna.claim("cluster-1")
    claimed = claim.__enter__()
    with beside(claimed.slot):
        cluster.fault(OPEN_SESSION, SESSION_COUNT)
        claim.__exit__(None, None, None)
        cluster.fault(OPEN_SESSION, 0, times=0)
        assigning = """
            with luna.claim("cluster-1") as token:
                print(token.assign("payments", so_pin="12345678").label)
        """
        assert succeed(assigning) == ["payments"]


def test_a_claim_that_ends_while_the_device_is_busy_leaves_no_session_on_another_slot(
    luna, cluster
):
    claim = luna.claim("cluster-1")
    claimed = claim.__enter__()
    with beside(claimed.slot) as slot:
        # The answer about the session that was there, after that about the one that was opened.
        cluster.fault(SESSION_INFO, AGAIN, every=2, times=1)
        claim.__exit__(None, None, None)
        assert [one.rv for one in logged(cluster, SESSION_INFO)][-2:] == [0, AGAIN]
        assert slot.token_info.session_count == 0


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_that_is_given_back_while_the_session_is_opened_leaves_it_to_the_next_holder(
    reinitialise, luna, cluster, wait_until_inside
):
    cluster.latency(0.5, OPEN_SESSION, after=True)
    asyncio.run(cancel_claim_while_session_is_opened(luna, cluster, wait_until_inside))
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        wait_until(lambda: have_returned(cluster.log()))
        cluster.latency(0, OPEN_SESSION, after=True)
        slot.ensure_held()
        reinitialise()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            slot.ensure_held()


def test_a_grant_of_an_earlier_connection_is_asked_for_again(luna, cluster, call, owner_of):
    """Its answer is on its way when another thread finds out that the connection is another one."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        cluster.latency(2, LOCK, after=True)
        locking = call(lambda: lock_once(luna.slot(2)))
        wait_until(lambda: owner_of(2) == os.getpid())
        cluster.fault(SESSION_INFO, SESSION_HANDLE_INVALID, times=1)
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
        cluster.latency(0, LOCK, after=True)
        assert locking.result(30)
    assert [one.rv for one in logged(cluster, LOCK) if one.slot_id == 2] == [0, 0]
    # The stand-in still has the first lock.
    luna.reconnect()


def test_a_claim_of_an_earlier_connection_is_made_sure_of(luna, cluster, call, owner_of):
    """Its answer is on its way when another thread finds out that the connection is another one."""
    claimed, done = [], threading.Event()

    def claim():
        with luna.claim("cluster-1") as token:
            claimed.append(token.slot.slot_id)
            assert done.wait(PATIENCE)

    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        cluster.latency(0.3, CLAIM, after=True)
        claiming = call(claim)
        wait_until(lambda: sum(token.owner is not None for token in cluster.tokens()) == 2)
        cluster.reinitialise(os.getpid())
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    wait_until(lambda: claimed)
    owners = [owner_of(slot_id) for slot_id in claimed]
    done.set()
    claiming.result()
    assert owners == [os.getpid()]
    luna.reconnect()


def test_a_grant_of_an_earlier_connection_that_no_thread_waits_for_comes_off(
    luna, cluster, hold_elsewhere, wait_until_inside, owner_of
):
    """The call went out when the connection was another one already, so that the lock is set."""
    holder = hold_elsewhere(2)
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        assert not luna.slot(2).acquire(timeout=0.05)
        wait_until_inside(LOCK)
        cluster.reinitialise(os.getpid())
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    holder.release()
    wait_until(lambda: have_returned(logged(cluster, LOCK)))
    wait_until(lambda: owner_of(2) is None, 5)
    luna.reconnect()


@pytest.mark.luna_cluster(keyrings=2)
def test_a_claim_of_an_earlier_connection_that_cannot_be_made_sure_of_comes_off(
    luna, cluster, call, owner_of
):
    """An unlock of its slot is still out, which holds the lock call back that would show it."""
    cluster.switch("regrant", "off")
    with pytest.raises(luna_ext.LockLostError), luna.slot(2) as slot:
        cluster.latency(8, UNLOCK, after=True)
        leaving = call(lambda: enter(luna.slot(1)))
        wait_until(lambda: logged(cluster, UNLOCK) and owner_of(1) is None)
        cluster.latency(1, CLAIM, after=True)
        claiming = call(lambda: enter(luna.claim("cluster-1")))
        wait_until(lambda: owner_of(1) == os.getpid())
        cluster.fault(SESSION_INFO, SESSION_HANDLE_INVALID, times=1)
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
        with pytest.raises(luna_ext.NoUnassignedTokenError):
            claiming.result(30)
        assert not have_returned(logged(cluster, UNLOCK))
        cluster.latency(0, UNLOCK, after=True)
        leaving.result()
    wait_until(lambda: owner_of(1) is None, 10)
    luna.reconnect()


def test_a_grant_of_an_earlier_connection_that_cannot_be_made_sure_of_is_told_of(
    program, cluster, hold_elsewhere
):
    """On a device that gives a lock once, and lets the second call wait for an unlock. None may be made, as
    nothing shows that the lock is this process's. In a process of its own, where the kind of the device is
    not known.
    """
    cluster.switch("relock", "wait")
    holder = hold_elsewhere(2)
    body = f"""
    def lock():
        with luna.slot(2).lock(timeout=40):
            pass

    told = []
    logging.getLogger("luna_ext").addFilter(lambda record: told.append(record.getMessage()))
    slot.acquire()
    locking = in_thread(lock)
    wait_until_inside({LOCK!r})
    cluster.reinitialise(os.getpid())
    for call in (slot.ensure_held, slot.release):
        try:
            call()
        except luna_ext.LockLostError:
            print("lost", flush=True)
    wait_until(lambda: any("slot 2: it was granted" in text for text in told))
    print(cluster.tokens()[1].owner == os.getpid())
    cluster.switch("relock", "granted")
    locking.join()
    """
    running = program(body)
    running.expect("lost")
    running.expect("lost")
    holder.release()
    done = running.ended()
    assert (done.returncode, done.words, done.stderr) == (0, ["True"], ""), done


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_is_given_the_token_whose_lock_another_claim_has_lost(luna, cluster, call):
    """The device has dropped that lock, and gives the token anew: it would stay locked."""

    def claim():
        with luna.claim("cluster-1") as token:
            token.ensure_held()
            return token.slot.slot_id

    with pytest.raises(luna_ext.LockLostError), luna.claim("cluster-1"):
        cluster.reinitialise(os.getpid())
        time.sleep(LONG_BLOCK)
        assert call(claim).result() == 1
    assert nothing_is_locked(cluster)
    luna.reconnect()


def test_a_short_block_costs_no_call_more(luna, cluster):
    with luna.slot(1):
        pass
    for _ in range(5):
        before = len(cluster.log())
        began = time.monotonic()
        with luna.slot(1):
            pass
        made = [entry.function for entry in cluster.log()[before:]]
        if time.monotonic() - began < LONG_BLOCK / 4:
            break
    assert made == [LOCK, UNLOCK]


def test_a_long_block_costs_one_call_more(luna, cluster):
    with luna.slot(1):
        # Asked for as soon as it is open.
        before = len(logged(cluster, SESSION_INFO))
        time.sleep(LONG_BLOCK)
    assert len(logged(cluster, SESSION_INFO)) == before + 1
    assert len(logged(cluster, UNLOCK)) == 1


def test_a_device_without_a_free_session_is_told_of_once(luna, cluster, caplog):
    cluster.fault(OPEN_SESSION, 0xB1)
    for slot in luna.slots():
        with slot:
            slot.ensure_held()
    wait_until(lambda: caplog.records)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "CKR_SESSION_COUNT" in record.getMessage()
    assert len(logged(cluster, OPEN_SESSION)) == 1


class CountedSessions:
    """Sessions of a module that counts them from 1, as some do after each C_Initialize."""

    functions = ()
    """Its C functions, which stay alive as long as it."""

    def __init__(self):
        self.begin_anew()

    def begin_anew(self):
        self.opened, self.open = 0, {}


@pytest.fixture
def counted(luna, monkeypatch):
    word = ctypes.c_ulong
    counted = CountedSessions()

    @ctypes.CFUNCTYPE(word, word, word, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(word))
    def open_session(slot_id, flags, application, notify, handle):
        counted.opened += 1
        handle[0] = counted.opened
        counted.open[counted.opened] = (slot_id, 2, flags, 0)
        return 0

    @ctypes.CFUNCTYPE(word, word)
    def close_session(handle):
        return 0 if counted.open.pop(handle, None) else SESSION_HANDLE_INVALID

    @ctypes.CFUNCTYPE(word, word, ctypes.POINTER(word))
    def get_session_info(handle, info):
        if handle not in counted.open:
            return SESSION_HANDLE_INVALID
        for index, value in enumerate(counted.open[handle]):
            info[index] = value
        return 0

    functions = {12: open_session, 13: close_session, 15: get_session_info}
    for index, function in functions.items():
        address = ctypes.cast(function, ctypes.c_void_p).value
        monkeypatch.setattr(entry_of(luna, index), "value", address)
    counted.functions = functions
    return counted


def test_sessions_that_are_counted_anew_are_told_apart(luna, counted):
    """Another user has opened three by then."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(2) as slot:
        slot.ensure_held()
        assert len(counted.open) == 1
        counted.begin_anew()
        counted.opened = 3
        counted.open = dict.fromkeys((1, 2, 3), (2, 2, 6, 0))
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    luna.reconnect()


def test_four_to_twelve_sessions_are_opened_to_tell_them_apart(luna, counted):
    """A random number, and one of them stays open."""
    for _ in range(100):
        counted.begin_anew()
        with luna.slot(1):
            assert len(counted.open) == 1
        assert 4 <= counted.opened <= 12
        luna.reconnect()


FUNCTION_NOT_SUPPORTED = 0x54


@pytest.mark.parametrize("rv", [FUNCTION_NOT_SUPPORTED, SESSION_HANDLE_INVALID, 0])
def test_a_client_that_cannot_tell_of_its_sessions_is_locked_without_one(
    luna, caplog, monkeypatch, rv
):
    """0: it answers, and tells nothing."""
    word = ctypes.c_ulong
    answer = ctypes.CFUNCTYPE(word, word, ctypes.c_void_p)(lambda session, info: rv)
    address = ctypes.cast(answer, ctypes.c_void_p).value
    monkeypatch.setattr(entry_of(luna, 15), "value", address)
    with luna.slot(2) as slot:
        slot.ensure_held()
        time.sleep(LONG_BLOCK)
    wait_until(lambda: "C_GetSessionInfo" in caplog.text)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("told", [(9, 2, 6, 0), (2, 2, 4, 0)], ids=["slot", "flags"])
def test_a_client_that_tells_of_another_session_is_locked_without_one(
    luna, caplog, monkeypatch, told
):
    """One that tells of a session in another slot, or of a read-only one."""
    word = ctypes.c_ulong

    @ctypes.CFUNCTYPE(word, word, ctypes.POINTER(word))
    def tell(session, info):
        for index, value in enumerate(told):
            info[index] = value
        return 0

    monkeypatch.setattr(entry_of(luna, 15), "value", ctypes.cast(tell, ctypes.c_void_p).value)
    with luna.slot(2) as slot:
        slot.ensure_held()
        time.sleep(LONG_BLOCK)
    wait_until(lambda: "C_GetSessionInfo: CKR_FUNCTION_FAILED" in caplog.text)


@pytest.mark.parametrize("index", [12, 15], ids=["C_OpenSession", "C_GetSessionInfo"])
def test_a_client_without_a_function_for_sessions_is_locked_without_one(
    luna, caplog, monkeypatch, index
):
    monkeypatch.setattr(entry_of(luna, index), "value", None)
    with luna.slot(2) as slot:
        slot.ensure_held()
        time.sleep(LONG_BLOCK)
    wait_until(lambda: "CKR_FUNCTION_NOT_SUPPORTED" in caplog.text)


def test_a_slot_that_is_not_there_leaves_it_to_the_next_lock(luna, cluster):
    with pytest.raises(luna_ext.SlotIdInvalidError), luna.slot(99):
        pass
    with luna.slot(1):
        assert [entry.slot_id for entry in logged(cluster, OPEN_SESSION)] == [99, 1]


@pytest.mark.parametrize("rv", [SLOT_ID_INVALID, 0xE0, 0xE1])
def test_a_slot_without_a_token_leaves_it_to_the_next_lock(luna, cluster, rv):
    cluster.fault(OPEN_SESSION, rv, times=1)
    with luna.slot(1), luna.slot(2):
        assert [entry.slot_id for entry in logged(cluster, OPEN_SESSION)] == [1, 2]


def test_another_program_may_assign_what_a_claim_has_given_back(luna, succeed):
    with luna.claim("cluster-1"):
        pass
    assigning = """
        for number in range(8):
            with luna.claim("cluster-1") as token:
                print(token.assign(f"label{number}", so_pin="12345678").label)
    """
    assert len(succeed(assigning)) == 8


async def cancel_claim_while_session_is_opened(luna, cluster, wait_until_inside):
    """The claim has its token, and is given back before the library's own session is open."""

    async def claim():
        async with luna.claim("cluster-1"):
            pass

    task = asyncio.create_task(claim())
    await asyncio.to_thread(wait_until_inside, OPEN_SESSION)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_until, lambda: logged(cluster, UNLOCK))


@pytest.mark.luna_cluster(keyrings=1)
def test_another_program_may_assign_what_a_claim_gives_back_while_the_session_is_opened(
    luna, cluster, succeed, wait_until_inside
):
    cluster.latency(0.5, OPEN_SESSION, after=True)
    asyncio.run(cancel_claim_while_session_is_opened(luna, cluster, wait_until_inside))
    cluster.latency(0, OPEN_SESSION, after=True)
    wait_until(lambda: have_returned(cluster.log()))
    assigning = """
        with luna.claim("cluster-1") as token:
            print(token.assign("payments", so_pin="12345678").label)
    """
    assert succeed(assigning) == ["payments"]


def test_assign_is_not_hindered_by_the_librarys_own_session(luna, cluster):
    for number in range(4):
        with luna.claim("cluster-1") as token:
            assigned = token.assign(f"label{number}", so_pin="12345678", user_pin="87654321")
            assigned.ensure_held()
            time.sleep(LONG_BLOCK)
    assert len(logged(cluster, INIT_TOKEN)) == 4
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("tries", [1, 2])
def test_a_holder_hears_of_it_after_its_assignment_as_well(reinitialise, luna, cluster, tries):
    """The library's own session is closed for the assignment, and opened again."""
    # Another program's session is still there.
    cluster.fault(INIT_TOKEN, SESSION_EXISTS, times=tries - 1)
    with pytest.raises(luna_ext.LockLostError), luna.claim("cluster-1") as token:
        assigned = token.assign("payments", so_pin="12345678")
        reinitialise()
        with pytest.raises(luna_ext.LockLostError, match="finalised"):
            assigned.ensure_held()
    assert logged(cluster, UNLOCK) == []


@pytest.mark.luna_cluster(keyrings=1)
def test_the_session_of_an_earlier_library_is_not_closed_again(cluster):
    """Its number may be that of another program's session."""
    with cluster.library() as luna, luna.slot(1):
        pass
    cluster.fault("C_OpenSession", SESSION_COUNT)
    with cluster.library() as luna, luna.claim("cluster-1") as token:
        token.assign("payments", so_pin="so-pin-1")
    closed = logged(cluster, "C_CloseSession")
    assert [call for call in closed if call.rv == SESSION_HANDLE_INVALID] == []


def test_the_session_of_an_earlier_library_is_not_closed_among_other_codes(cluster):
    with cluster.library() as luna, luna.slot(1):
        pass
    other = ctypes.CDLL(library_path())
    assert other.C_Initialize(None) == 0
    with cluster.library():
        pass
    assert other.C_Finalize(None) == 0
    closed = logged(cluster, "C_CloseSession")
    assert [call for call in closed if call.rv == SESSION_HANDLE_INVALID] == []


@pytest.mark.luna_cluster(keyrings=1)
def test_assign_is_not_hindered_by_a_session_that_is_being_opened(
    luna, cluster, call, wait_until_inside
):
    """A thread that is about to lock the slot opens it, and a claim gives the slot to another thread."""
    cluster.latency(0.1, "C_OpenSession", after=True)
    locking = call(lambda: enter(luna.slot(1)))
    wait_until_inside("C_OpenSession")
    with luna.claim("cluster-1") as token:
        token.assign("payments", so_pin="so-pin-1")
    locking.result()


def test_one_passing_error_is_no_loss(luna, cluster):
    with luna.slot(1) as slot:
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=1)
        slot.ensure_held()
    assert len(logged(cluster, UNLOCK)) == 1


@pytest.mark.parametrize("rv", [HOST_MEMORY, GENERAL_ERROR, 0x8000BEEF], ids=hex)
def test_one_passing_error_of_the_librarys_own_session_is_no_loss(luna, cluster, rv):
    """It says nothing of the session. Two in a row, and the worst is taken for true."""
    with luna.slot(1) as slot, luna.slot(2):
        cluster.fault(SESSION_INFO, rv, times=1)
        slot.ensure_held()
        time.sleep(LONG_BLOCK)
        cluster.fault(SESSION_INFO, rv, times=1)
    assert len(logged(cluster, UNLOCK)) == 2
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        cluster.fault(SESSION_INFO, rv, times=2)
        slot.ensure_held()
    luna.reconnect()


def test_a_lock_that_is_lost_while_its_unlock_is_repeated_is_not_unlocked(
    reinitialise, luna, cluster, hold_here, call, hold_elsewhere, owner_of
):
    """Another process may have it by then."""
    holder = hold_here(luna.slot(1))
    elsewhere = call(lambda: hold_elsewhere(1))
    wait_until(lambda: len([one for one in cluster.log() if one.function == LOCK]) == 2)
    cluster.fault(UNLOCK, AGAIN)
    releasing = call(holder.leave)
    wait_until(lambda: logged(cluster, UNLOCK))
    reinitialise()
    next_holder = elsewhere.result()
    cluster.fault(UNLOCK, AGAIN, times=0)
    releasing.result()
    assert owner_of(1) == next_holder.pid


def test_a_token_that_goes_with_the_librarys_own_session_is_no_loss_of_others(
    reinitialise, luna, cluster
):
    """The session is on the first slot that was locked. The next lock call opens another."""
    with luna.slot(2):
        pass
    with luna.slot(1) as slot, luna.slot(3):
        # Another token has the slot by the second end of a block.
        cluster.fault(SESSION_INFO, SESSION_HANDLE_INVALID, times=2)
        cluster.fault(TOKEN_INFO, SLOT_ID_INVALID, times=1)
        time.sleep(LONG_BLOCK)
    assert [one.slot_id for one in logged(cluster, UNLOCK)] == [2, 3, 1]
    cluster.fault(SESSION_INFO, 0, times=0)
    opened = len(logged(cluster, OPEN_SESSION))
    with pytest.raises(luna_ext.LockLostError), slot:
        assert len(logged(cluster, OPEN_SESSION)) > opened
        reinitialise()
        slot.ensure_held()


def test_a_loss_is_told_at_each_question_though_the_device_answers_again(luna, cluster):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        let_device_forget_us(cluster)
        for _ in range(2):
            with pytest.raises(luna_ext.LockLostError, match="does not answer any more"):
                slot.ensure_held()
    assert logged(cluster, UNLOCK) == []
    luna.reconnect()


def test_errors_while_the_session_lives_are_no_loss(luna, cluster):
    with luna.slot(1) as slot:
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=2)
        with pytest.raises(luna_ext.DeviceError):
            slot.ensure_held()
        slot.ensure_held()
    assert len(logged(cluster, UNLOCK)) == 1


def test_a_connection_that_is_gone_is_a_loss(luna, cluster):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        cluster.disconnect(os.getpid())
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    assert logged(cluster, UNLOCK) == []


@EACH_FORM
def test_a_client_that_connects_anew_by_itself_is_noticed(luna, cluster, make):
    with pytest.raises(luna_ext.LockLostError), make(luna):
        slot = held_slot(luna)
        cluster.reinitialise(os.getpid())
        assert nothing_is_locked(cluster)
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    assert logged(cluster, UNLOCK) == []
    luna.reconnect()


def test_close_leaves_other_code_no_session(reinitialise, cluster):
    """The library stays initialised, so that nothing else would end the one that was opened for a lock."""
    with cluster.library() as luna:
        with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
            reinitialise()
            slot.ensure_held()
        with luna.slot(1) as slot:
            assert slot.token_info.session_count == 1
    # That was the other code's.
    assert finalisations(cluster) == [0]
    with cluster.library() as luna:
        assert luna.slot(1).token_info.session_count == 0


# ---- reconnect() ----


@pytest.mark.parametrize("fails", [False, True])
@EACH_FORM
def test_reconnect_loses_what_is_held(luna, cluster, make, fails):
    """Also where C_Initialize fails: C_Finalize has dropped the lock, and the next call tries it again."""
    with pytest.raises(luna_ext.LockLostError), make(luna):
        slot = held_slot(luna)
        if fails:
            cluster.fault("C_Initialize", DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError) if fails else contextlib.nullcontext():
            luna.reconnect()
        assert nothing_is_locked(cluster)
        assert not slot.locked()
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    assert logged(cluster, UNLOCK) == []
    with luna.slot(1) as slot:
        slot.ensure_held()


SHARED = {
    "lock": lambda luna: luna.slot(1).lock(timeout=5),
    "token.lock": lambda luna: luna.token("keyring1").lock(timeout=5),
    "lock_all": lambda luna: luna.lock_all([luna.slot(1), luna.slot(2)], timeout=5),
}
EACH_SHARED = pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)


@EACH_SHARED
def test_a_lost_block_hears_of_it_after_another_of_the_same_object_within_it(luna, cluster, make):
    shared = make(luna)

    def nest():
        with shared:
            luna.reconnect()
            enter(shared)

    async def nest_in_task():
        async with shared:
            luna.reconnect()
            async with shared:
                pass

    with pytest.raises(luna_ext.LockLostError):
        nest()
    with pytest.raises(luna_ext.LockLostError):
        asyncio.run(nest_in_task())
    assert nothing_is_locked(cluster)


@EACH_SHARED
def test_a_lost_block_that_ends_leaves_the_next_holder_of_the_same_object_alone(
    luna, cluster, make, call
):
    """Both blocks are of one lock object, in two threads."""
    lock, slot = make(luna), luna.slot(1)
    entered, lost, ended = threading.Event(), threading.Event(), threading.Event()

    def lose():
        with pytest.raises(luna_ext.LockLostError), lock:
            entered.set()
            assert lost.wait(PATIENCE)
        ended.set()

    losing = call(lose)
    assert entered.wait(PATIENCE)
    luna.reconnect()
    with lock:
        lost.set()
        assert ended.wait(PATIENCE)
        slot.ensure_held()
        assert not nothing_is_locked(cluster)
    losing.result()
    assert nothing_is_locked(cluster)


async def lose(lock, entered, lost):
    with pytest.raises(luna_ext.LockLostError):
        async with lock:
            entered.set()
            await lost.wait()


@EACH_SHARED
def test_a_lost_block_of_a_task_leaves_the_next_holder_of_the_same_object_alone(
    luna, cluster, make
):
    async def main():
        lock, slot = make(luna), luna.slot(1)
        entered, lost = asyncio.Event(), asyncio.Event()
        losing = asyncio.create_task(lose(lock, entered, lost))
        await entered.wait()
        await asyncio.to_thread(luna.reconnect)
        async with lock:
            lost.set()
            await losing
            slot.ensure_held()
            assert not nothing_is_locked(cluster)
        assert nothing_is_locked(cluster)

    asyncio.run(main())


@EACH_SHARED
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)], ids=str)
def test_lost_blocks_of_tasks_may_end_in_any_order(luna, cluster, make, order):
    """All are of the same object, beside the block that holds it."""

    async def main():
        lock, slot = make(luna), luna.slot(1)
        losing = []
        for _ in order:
            entered, lost = asyncio.Event(), asyncio.Event()
            losing.append((asyncio.create_task(lose(lock, entered, lost)), lost))
            await entered.wait()
            await asyncio.to_thread(luna.reconnect)
        async with lock:
            for index in order:
                task, lost = losing[index]
                lost.set()
                await task
                slot.ensure_held()
            assert not nothing_is_locked(cluster)
        assert nothing_is_locked(cluster)

    asyncio.run(main())


@EACH_SHARED
def test_the_newest_block_may_end_before_the_lost_ones(luna, cluster, make):
    """All are of the same object."""

    async def main():
        lock = make(luna)
        entered, lost = asyncio.Event(), asyncio.Event()
        losing = asyncio.create_task(lose(lock, entered, lost))
        await entered.wait()
        await asyncio.to_thread(luna.reconnect)
        async with lock:
            assert not nothing_is_locked(cluster)
        assert nothing_is_locked(cluster)
        lost.set()
        await losing

    asyncio.run(main())


def test_reconnect_takes_off_what_an_unlock_has_left(luna, cluster):
    cluster.switch("relock", "wait")
    cluster.fault(UNLOCK, GENERAL_ERROR, times=1)
    with pytest.raises(luna_ext.LockReleaseError, match=r"reconnect\(\)"), luna.slot(1):
        pass
    assert not nothing_is_locked(cluster)
    luna.reconnect()
    assert nothing_is_locked(cluster)
    with luna.slot(1).lock(timeout=20):
        pass


def test_reconnect_lets_waiters_go_on(luna, cluster, call, wait_until_queued):
    slot = luna.slot(1)
    slot.acquire()
    waiting = call(lambda: lock_once(slot))
    wait_until_queued(slot, 1)
    luna.reconnect()
    assert waiting.result(30)
    with pytest.raises(luna_ext.LockLostError):
        slot.release()


@pytest.mark.parametrize(
    "use",
    [
        lambda luna: luna.slots(),
        lambda luna: enter(luna.slot(1)),
        lambda luna: enter(luna.slot(1).lock(timeout=30)),
        lambda luna: enter(luna.claim("cluster-1")),
    ],
    ids=["slots", "slot", "lock", "claim"],
)
def test_calls_wait_while_a_reconnect_lasts(luna, cluster, call, wait_until_inside, use):
    cluster.latency(1, "C_Finalize")
    reconnecting = call(luna.reconnect)
    wait_until_inside("C_Finalize")
    call(lambda: use(luna)).result(30)
    reconnecting.result(30)


@pytest.mark.parametrize(
    ("function", "loss"),
    [("C_Initialize", "its library was finalised"), ("C_Finalize", "its library was")],
)
def test_a_release_while_a_reconnect_lasts_says_what_has_become_of_the_lock(
    luna, cluster, call, wait_until_inside, function, loss
):
    """No call may be made beside C_Finalize."""
    slot = luna.slot(1)
    slot.acquire()
    cluster.latency(1, function)
    reconnecting = call(luna.reconnect)
    wait_until_inside(function)
    with pytest.raises(luna_ext.LockLostError, match=loss):
        slot.release()
    reconnecting.result(30)
    assert logged(cluster, UNLOCK) == []


def test_a_release_that_a_reconnect_overtakes_is_judged_by_what_was_then(succeed):
    """An audit hook lets the reconnect end before the holder is told."""
    body = """
        reconnected = threading.Event()

        def wait_for_reconnect(event, arguments):
            if event == "luna_ext.unlock":
                assert reconnected.wait(20)

        def reconnect():
            luna.reconnect()
            reconnected.set()

        slot.acquire()
        cluster.latency(0.5, "C_Finalize")
        in_thread(reconnect)
        wait_until_inside("C_Finalize")
        sys.addaudithook(wait_for_reconnect)
        logging.getLogger("luna_ext").addHandler(logging.NullHandler())
        try:
            slot.release()
        except luna_ext.LunaError as error:
            print(type(error).__name__)
        luna.close()
    """
    assert succeed(body) == ["LockLostError"]


@pytest.mark.parametrize("make", [FORMS["lock"], FORMS["claim"]])
def test_a_lost_block_of_a_generator_ends_nothing_that_its_task_has_locked_since(
    luna, cluster, make
):
    async def lose():
        async with make(luna):
            yield held_slot(luna)

    async def main():
        losing = lose()
        slot = await anext(losing)
        await asyncio.to_thread(luna.reconnect)
        async with slot.lock():
            await losing.aclose()
            slot.ensure_held()
            assert not nothing_is_locked(cluster)
        assert nothing_is_locked(cluster)

    asyncio.run(main())


def test_a_holder_that_asks_while_a_reconnect_lasts_hears_of_its_loss_at_once(
    luna, cluster, call, wait_until_inside
):
    slot, losses = luna.slot(1), luna.lock_stats().losses
    slot.acquire()
    cluster.latency(1, "C_Initialize")
    connecting = call(luna.reconnect)
    wait_until_inside("C_Initialize")
    with pytest.raises(luna_ext.LockLostError, match="finalised"):
        slot.ensure_held()
    assert not have_returned(logged(cluster, "C_Initialize"))
    assert luna.lock_stats().losses == losses + 1
    connecting.result()
    with pytest.raises(luna_ext.LockLostError):
        slot.release()


def test_reconnect_beside_a_call_at_the_device_does_nothing(luna, cluster, call, wait_until_inside):
    cluster.latency(2, TOKEN_INFO)
    slot = luna.slot(2)
    slot.acquire()
    reading = call(lambda: luna.slot(1).token_info)
    wait_until_inside(TOKEN_INFO)
    with pytest.raises(luna_ext.DeviceError, match="restart"):
        luna.reconnect()
    cluster.latency(0, TOKEN_INFO)
    assert reading.result(30).label == "keyring1"
    slot.ensure_held()
    slot.release()
    luna.reconnect()


def test_a_reconnect_that_cannot_finalise_leaves_the_locks_to_their_holders(luna, cluster):
    """It has dropped none: the device would keep what no holder unlocks."""
    with luna.slot(1) as slot:
        cluster.fault("C_Finalize", DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError, match="C_Finalize"):
            luna.reconnect()
        slot.ensure_held()
    assert [one.rv for one in logged(cluster, UNLOCK)] == [0]
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("holds", ["thread", "task"])
def test_a_block_that_ends_beside_a_c_finalize_that_fails_unlocks(
    luna, cluster, call, wait_until_inside, holds
):
    """It has dropped no lock; no call is made beside it."""
    slot = luna.slot(1)

    def reconnect():
        cluster.latency(0.5, "C_Finalize")
        cluster.fault("C_Finalize", DEVICE_ERROR, times=1)
        reconnecting = call(luna.reconnect)
        wait_until_inside("C_Finalize")
        return reconnecting

    async def main():
        async with slot.lock():
            return reconnect()

    if holds == "task":
        reconnecting = asyncio.run(main())
    else:
        with slot:
            reconnecting = reconnect()
    assert have_returned(logged(cluster, "C_Finalize"))
    assert nothing_is_locked(cluster)
    with pytest.raises(luna_ext.DeviceError, match="C_Finalize"):
        reconnecting.result(30)


def test_what_is_logged_in_beside_a_c_finalize_that_fails_is_logged_out(
    luna, cluster, call, wait_until_inside, monkeypatch
):
    """It comes as the error is made for which the login ends."""
    make, reconnecting = luna_ext.DeviceError.__init__, []

    def reconnect(error, *arguments, **options):
        if not reconnecting:
            cluster.latency(0.5, "C_Finalize")
            cluster.fault("C_Finalize", DEVICE_ERROR, times=1)
            reconnecting.append(call(luna.reconnect))
            wait_until_inside("C_Finalize")
        make(error, *arguments, **options)

    with luna.claim("cluster-1") as claimed:
        token = claimed.assign("payments", so_pin="so-pin-1")
        opened = len(logged(cluster, OPEN_SESSION)) - len(logged(cluster, "C_CloseSession"))
        monkeypatch.setattr(luna_ext.DeviceError, "__init__", reconnect)
        cluster.fault("C_SetPIN", DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError, match="C_SetPIN"):
            token.change_pin("so-pin-1", "so-pin-2", role="so")
        with pytest.raises(luna_ext.DeviceError, match="C_Finalize"):
            reconnecting[0].result(30)
    assert cluster.log()[-1].function == UNLOCK
    assert [one.rv for one in logged(cluster, "C_Logout")][-1:] == [0]
    assert len(logged(cluster, OPEN_SESSION)) - len(logged(cluster, "C_CloseSession")) == opened


def test_a_reconnect_that_cannot_finalise_leaves_it_to_close(luna, cluster):
    """Nothing shows whether the locks are gone; those that are not come off then."""
    cluster.fault(OPEN_SESSION, SESSION_COUNT)
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        cluster.fault("C_Finalize", DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError, match="C_Finalize"):
            luna.reconnect()
    assert logged(cluster, UNLOCK) == []
    luna.close()
    assert nothing_is_locked(cluster)


def test_a_reconnect_that_finds_the_library_finalised_initialises_it(reinitialise, luna, cluster):
    """By other code. C_Finalize fails, and the session that was kept is gone."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        reinitialise()
        assert ctypes.CDLL(luna.path).C_Finalize(None) == 0
        luna.reconnect()
    with luna.slot(1) as slot:
        slot.ensure_held()


def test_reconnect_of_a_closed_library(luna, cluster):
    """Another Library's locks are none of its business."""
    with cluster.library() as other, other.slot(1) as slot:
        luna.close()
        with pytest.raises(luna_ext.LibraryClosedError):
            luna.reconnect()
        slot.ensure_held()
    with pytest.raises(luna_ext.LibraryClosedError):
        luna.reconnect()


def test_a_reconnect_that_fails_is_tried_again_by_the_next_call(luna, cluster):
    cluster.fault("C_Initialize", DEVICE_ERROR, times=2)
    with pytest.raises(luna_ext.DeviceError):
        luna.reconnect()
    with pytest.raises(luna_ext.DeviceError):
        luna.slots()
    assert len(luna.slots()) == 8
    with luna.slot(1):
        pass


def test_reconnect_also_takes_over_what_other_code_has_initialised(reinitialise, luna):
    reinitialise()
    luna.reconnect()
    with luna.slot(1) as slot:
        slot.ensure_held()


# ---- what a new Library does by itself ----


def test_a_new_library_recovers_beside_an_old_one(luna, cluster):
    cluster.disconnect(os.getpid())
    with pytest.raises(luna_ext.DeviceError, match="open a new Library"):
        luna.slots()
    with cluster.library() as new:
        assert len(new.slots()) == 8
        assert len(luna.slots()) == 8


@pytest.mark.parametrize(
    "slots",
    [pytest.param(n, marks=pytest.mark.luna_cluster(keyrings=n)) for n in (1, 2, 8)],
)
def test_a_new_library_recovers_where_the_list_of_slots_is_all_that_is_left(luna, cluster, slots):
    """A client may answer that one by itself."""
    cluster.fault(OPEN_SESSION, SESSION_COUNT)
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        cluster.fault(TOKEN_INFO, DEVICE_ERROR)
        with pytest.raises(luna_ext.DeviceError):
            luna.slot(slots).token_info.label  # noqa: B018
        cluster.library().close()
    assert finalisations(cluster) == [0]
    cluster.fault(TOKEN_INFO, 0, times=0)


def test_libraries_that_open_at_once_on_a_lost_connection_initialise_anew_once(luna, cluster, call):
    """What the first one has locked by then would be lost again."""
    listing = "C_GetSlotList"
    cluster.latency(0.5, listing)
    cluster.fault(listing, DEVICE_ERROR, times=5)
    with pytest.raises(luna_ext.DeviceError):
        luna.slots()
    first = call(cluster.library)
    # Each asks twice.
    wait_until(lambda: len(logged(cluster, listing)) == 3)
    second = call(cluster.library)
    for opening in (first, second):
        opening.result(30).close()
    assert len(logged(cluster, listing)) == 5
    assert finalisations(cluster) == [0]


def test_a_new_library_works_after_other_code_has_finalised(luna, cluster):
    assert ctypes.CDLL(luna.path).C_Finalize(None) == 0
    with pytest.raises(luna_ext.NotInitializedError, match="open a new Library"):
        luna.slots()
    with cluster.library() as new, new.slot(1):
        assert len(luna.slots()) == 8


def test_a_new_library_leaves_a_connection_alone_that_works(luna, cluster):
    with luna.slot(1) as slot:
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError):
            luna.slot(2).token_info.label  # noqa: B018
        cluster.library().close()
        slot.ensure_held()
    assert len(logged(cluster, UNLOCK)) == 1


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("rv", [DEVICE_ERROR, DEVICE_MEMORY], ids=hex)
def test_a_new_library_leaves_a_connection_alone_that_fails_once_to_list_the_slots(
    luna, cluster, rv, nth
):
    with luna.slot(1) as slot:
        # Where CKR_DEVICE_ERROR means that the lock is not free, each refusal raises such doubts.
        cluster.fault(LOCK, DEVICE_ERROR, times=1)
        with cluster.library(contention="poll") as polling, polling.slot(2):
            pass
        cluster.fault("C_GetSlotList", rv, every=nth, times=1)
        cluster.library().close()
        assert rv in [one.rv for one in logged(cluster, "C_GetSlotList")]
        slot.ensure_held()
    assert len(logged(cluster, UNLOCK)) == 2


def test_a_new_library_leaves_a_connection_alone_on_which_there_is_no_token(
    luna, cluster, monkeypatch
):
    word = ctypes.c_ulong

    @ctypes.CFUNCTYPE(word, ctypes.c_ubyte, ctypes.c_void_p, ctypes.POINTER(word))
    def list_no_slots(token_present, slots, count):
        count[0] = 0
        return 0

    address = ctypes.cast(list_no_slots, ctypes.c_void_p).value
    monkeypatch.setattr(entry_of(luna, 4), "value", address)
    cluster.fault("C_GetInfo", DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.DeviceError):
        luna.info  # noqa: B018
    with cluster.library() as new:
        assert finalisations(cluster) == []
        assert new.tokens() == []


def test_a_new_library_leaves_it_to_other_code_that_has_initialised_anew(
    reinitialise, luna, cluster
):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        reinitialise()
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError):
            luna.slot(2).token_info.label  # noqa: B018
        before = len(logged(cluster, "C_Finalize"))
        cluster.library().close()
        assert not slot.locked()
        assert len(logged(cluster, "C_Finalize")) == before
    assert logged(cluster, UNLOCK) == []


def test_one_token_that_is_out_of_order_is_no_lost_connection(luna, cluster):
    """Not even where there is no session to ask for."""
    cluster.fault(OPEN_SESSION, 0xB1)
    with luna.slot(1) as slot:
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=2)
        with pytest.raises(luna_ext.DeviceError):
            luna.slot(2).token_info.label  # noqa: B018
        cluster.library().close()
        slot.ensure_held()


def test_a_new_library_beside_a_hung_call_says_that_only_a_restart_helps(cluster, succeed):
    """A call that the device never answers, and that its caller has given up."""
    body = f"""
        cluster.latency(3600, {LOCK!r})
        with contextlib.suppress(luna_ext.LockTimeoutError), slot.lock(timeout=0.1):
            pass
        for function in ("C_GetSlotList", "C_GetTokenInfo", "C_GetSessionInfo"):
            cluster.fault(function, {DEVICE_ERROR})
        with contextlib.suppress(luna_ext.DeviceError):
            luna.slots()
        luna.close()
        try:
            cluster.library()
        except luna_ext.DeviceError as error:
            print("restart" in str(error), flush=True)
        os._exit(0)
    """
    assert succeed("import contextlib\n" + textwrap.dedent(body)) == ["True"]


def test_a_session_that_was_closed_while_it_was_asked_for_shows_no_loss(
    luna, cluster, call, wait_until_inside
):
    """A claim that is given back closes the library's own on its token: another is open by then."""

    def ask(slot):
        with slot:
            slot.ensure_held()

    with luna.claim("cluster-1") as token:
        cluster.latency(1, SESSION_INFO)
        other = beside(token.slot)
        asking = call(lambda: ask(other))
        wait_until_inside(SESSION_INFO)
        cluster.latency(0, SESSION_INFO)
    asking.result()
    opened = [token.slot.slot_id, other.slot_id]
    assert [each.slot_id for each in logged(cluster, OPEN_SESSION)] == opened
