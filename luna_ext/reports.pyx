"""What an application is told about its locks: log records, and audit events (sys.audit).

Both may run the application's code, which may raise: audit events come before anything is done, and
a lock that is held while a record is written is given back if that fails.
"""

import logging

from luna_ext.clock cimport luna_now
from luna_ext.cryptoki cimport CK_SLOT_ID

from .errors import LockLostError, LockReleaseError

_log = logging.getLogger("luna_ext")
_DEBUG = logging.DEBUG
# What the logger has found out about its levels; it is emptied when a level changes. Without it,
# the logger is asked each time.
_levels = getattr(_log, "_cache", {})


cdef bint look_up_debug() except -1:
    return _log.isEnabledFor(_DEBUG)


cdef int warn_of_wait(Wait *wait, object subject) except -1:
    """To be called while a wait, for a slot's lock or a cluster's token, has become long."""
    if wait.warned:
        return 0
    wait.warned = True
    seconds = luna_now() - wait.began
    if isinstance(subject, int):
        _log.warning(
            "slot %d: still waiting for the lock after %.0f s; another thread, process or host "
            "holds it",
            subject,
            seconds,
        )
    else:
        _log.warning(
            "cluster %r: still waiting for an unassigned token after %.0f s",
            subject.decode(),
            seconds,
        )
    return 0


cdef int tell_locked(Wait *wait, CK_SLOT_ID slot_id) except -1:
    cdef double seconds = luna_now() - wait.began
    if seconds > LONG_WAIT_SECONDS and not wait.warned:
        # A device call on the caller's own thread: nobody could tell while it lasted.
        wait.warned = True
        _log.warning("slot %d: locked, after a wait of %.3f s", slot_id, seconds)
    if wait.debug:
        _log.debug("slot %d: locked after %.6f s", slot_id, seconds)
    return 0


cdef int tell_unlocked(double began, CK_SLOT_ID slot_id, bint unwanted) except -1:
    if unwanted:
        _log.debug("slot %d: unlocked, for nobody waits for the lock any more", slot_id)
    else:
        _log.debug("slot %d: unlocked in %.6f s", slot_id, luna_now() - began)
    return 0


cdef int tell_failed_release(object error) except -1:
    if isinstance(error, LockReleaseError | LockLostError):
        _log.error("%s", error)
    return 0
