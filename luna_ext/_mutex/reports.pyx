# How an application learns about its locks: log records, audit events (sys.audit), and errors.
#
# All of it may run the application's code, which may raise. So the audit event of a lock comes
# before anything is done; a lock that is held while a record is written is given back if that fails;
# and the event and the record of a release come after it.

log = logging.getLogger("luna_ext")
cdef object DEBUG = logging.DEBUG
# The logger's own cache of enabled levels, which logging empties when a level changes. If a logger has
# none, it is asked each time.
cdef dict levels = getattr(log, "_cache", {})
cdef luna_watch level_watch
luna_begin_watch(&level_watch, levels, DEBUG)

LOCK = "CA_LockClusteredSlot"
UNLOCK = "CA_UnlockClusteredSlot"
CLAIM = "CA_GetUnassignedSlot"
TOKEN_INFO = "C_GetTokenInfo"

cdef tuple LOSSES = (
    "it was not lost",
    "the device does not answer any more",
    "its library was finalised",
    "its Library was closed",
    "the interpreter exits",
    "the thread that held it had ended",
)


cdef inline bint debug_may_be_on() noexcept:
    """Whether DEBUG records may be wanted; the logger is not asked, so no Python code runs."""
    return luna_watched(&level_watch) != Py_False


cdef bint debug_is_on() except -1:
    """Whether DEBUG records are wanted.

    Logger.isEnabledFor() is Python code. It is called only if the logger's cache does not say no.
    """
    if not debug_may_be_on():
        return False
    return log.isEnabledFor(DEBUG)


cdef inline Wait new_wait() noexcept nogil:
    """One that begins with the device call, which is timed."""
    cdef Wait wait
    wait.began = 0
    wait.debug = wait.warned = False
    return wait


cdef int begin_wait(Wait *wait) except -1:
    wait.debug = debug_is_on()
    wait.began = luna_now()
    wait.warned = False
    return 0


cdef int audit_lock(CK_SLOT_ID slot_id) except -1:
    if PySys_Audit("luna_ext.lock", "K", <unsigned long long> slot_id) != 0:
        luna_raise_pending()
    return 0


cdef int audit_unlock(CK_SLOT_ID slot_id) except -1:
    if PySys_Audit("luna_ext.unlock", "K", <unsigned long long> slot_id) != 0:
        luna_raise_pending()
    return 0


cdef int end_wait(Wait *wait, CK_SLOT_ID slot_id) except -1:
    """The lock is held now: write the records of the wait."""
    cdef double seconds
    if wait.began == 0:
        return 0
    seconds = luna_now() - wait.began
    if seconds > LONG_WAIT_SECONDS and not wait.warned:
        wait.warned = True
        log.warning("slot %d: locked, after a wait of %.3f s", slot_id, seconds)
    if wait.debug:
        log.debug("slot %d: locked after %.6f s", slot_id, seconds)
    return 0


cdef int warn_of_wait(Wait *wait, object subject, object holder) except -1:
    """Warn, once, of a wait that has become long: for a slot's lock or for a cluster's token."""
    if wait.warned:
        return 0
    wait.warned = True
    tell_of_wait(subject, luna_now() - wait.began, holder)
    return 0


cdef int tell_of_wait(object subject, double seconds, object holder) except -1:
    if isinstance(subject, int):
        log.warning(
            "slot %d: still waiting for the lock after %.0f s; %s",
            subject,
            seconds,
            holder or "another thread, process or host holds it",
        )
    else:
        log.warning(
            "cluster %r: still waiting for an unassigned token after %.0f s",
            subject.decode(),
            seconds,
        )
    return 0


cdef int tell_unlocked(double began, CK_SLOT_ID slot_id, bint unwanted) except -1:
    if not debug_is_on():
        return 0
    if unwanted:
        log.debug("slot %d: unlocked, for no thread or task waits for the lock any more", slot_id)
    else:
        log.debug("slot %d: unlocked in %.6f s", slot_id, luna_now() - began)
    return 0


cdef int tell_handed_over(CK_SLOT_ID slot_id) except -1:
    if debug_is_on():
        log.debug("slot %d: handed over to the next waiter of this process", slot_id)
    return 0


cdef int tell_failed_release(object error) except -1:
    # The exit tells of the locks that it takes off by warnings of its own.
    if isinstance(error, LockReleaseError | LockLostError) and not exit_has_begun():
        log.error("%s", error)
    return 0


# ---- errors, in one wording ----


def may_pass(rv, poll):
    """Whether the error means "not now": by its code, or because the caller says so."""
    return meaning_of(rv) is Meaning.BUSY or (poll and rv == CKR_DEVICE_ERROR)


def means_lost(error):
    """Whether the device does not know this application, or this token, any more."""
    return meaning_of(error.rv) in (Meaning.LOST, Meaning.GONE)


def closed_error(slot_id, path):
    return LibraryClosedError(
        f"the Library for {path!r} is closed; open a new one to lock slot {slot_id}",
        function=LOCK,
        slot_id=slot_id,
    )


def reentry_error(slot_id, what):
    return LockReentryError(
        f"slot {slot_id}: {what}; waiting for it would never end", function=LOCK, slot_id=slot_id
    )


# The advice for a greenlet that would have to wait.
GREENLET_ADVICE = (
    "let a native thread wait: gevent.get_hub().threadpool.apply(function), or "
    "eventlet.tpool.execute(function)"
)


def greenlet_error(what, function, slot_id):
    return LockReentryError(
        f"{what}, and to wait would stop all greenlets of this thread, perhaps the holder's. "
        f"Nothing is locked; {GREENLET_ADVICE}",
        function=function,
        slot_id=slot_id,
    )


def not_owned_error(slot_id, holder, function):
    return LockNotOwnedError(
        f"slot {slot_id} is not held by the caller: {holder}. Nothing was done",
        function=function,
        slot_id=slot_id,
    )


def lost_error(slot_id, reason, *, rv=None, function=UNLOCK):
    return LockLostError(
        f"slot {slot_id}: the lock was lost while it was held: {reason}. Another process may have "
        "worked on the token meanwhile; check it before you go on",
        rv=rv,
        function=function,
        slot_id=slot_id,
    )


def nameless_error():
    return CryptokiError(
        f"{CLAIM}: CKR_OK, but the client has not written which slot it gives. It is no client to rely "
        "on; a lock may stay set until this process disconnects: Library.reconnect() does that, and "
        "drops all its locks",
        rv=CKR_OK,
        function=CLAIM,
    )


def release_error(cause):
    error = LockReleaseError(
        f"{cause}. The lock may stay set until this process disconnects: Library.reconnect() does that, "
        "and drops all its locks",
        rv=cause.rv,
        function=cause.function,
        slot_id=cause.slot_id,
    )
    error.__cause__ = cause
    return error
