"""The cluster layer: what users hold, over the mutex layer."""

import operator
import os
import sys
import threading
import time
import warnings
import weakref
from _queue import Empty, SimpleQueue
from collections import deque
from types import GenericAlias

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from luna_ext._device cimport (
    C_SET_PIN,
    CA_CHANGE_LABEL,
    CA_GET_SLOT_ID,
    CA_GET_UNASSIGNED_SLOT,
    CA_UNLOCK_CLUSTERED_SLOT,
    CK_SLOT_ID,
    CK_TOKEN_INFO,
    CK_ULONG,
    CK_UNAVAILABLE_INFORMATION,
    CKF_PROTECTED_AUTHENTICATION_PATH,
    CKF_SO_PIN_FINAL_TRY,
    CKF_SO_PIN_LOCKED,
    CKF_TOKEN_INITIALIZED,
    CKF_USER_PIN_INITIALIZED,
    CKR_FUNCTION_FAILED,
    CKR_OK,
    CKR_SESSION_EXISTS,
    CKU_SO,
    CKU_USER,
    CLOSING,
    READY,
    Client,
    Pin,
    PyThread_free_lock,
    Deadline,
    PyErr_CheckSignals,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    LONG_WAIT_SECONDS,
    SIGNAL_SECONDS,
    Share,
    SlotCall,
    as_pin,
    as_security_officer,
    deadline_in,
    blank_padded,
    close_canary,
    count_timeout,
    do_in_child,
    end_slot_call,
    ensure_user_pin,
    hear_of_fork,
    hold_back_at_exit,
    init_token,
    is_lost,
    left_of,
    left_of_exit,
    library_info,
    load_client,
    luna_bell,
    luna_guard_lock,
    luna_guard_unlock,
    luna_make_immortal,
    luna_now,
    luna_raise_pending,
    luna_shared_add,
    luna_shared_get,
    luna_shared_set,
    luna_shared_set8,
    luna_shared_set_once,
    new_signal,
    on_main_thread,
    read_token_info,
    same_pins,
    set_pin,
    slot_ids,
    slot_info,
    slots_with_label,
    token_info_of,
    token_label,
    wait_on,
    want_canary,
    wraps_stand_in,
)
from luna_ext._mutex cimport (
    FAILED,
    GRANTED,
    HANDED_OVER,
    HEARD,
    LOST,
    NOT_HEARD,
    NOT_LOST,
    NOT_MINE,
    UNLOCK_DUE,
    UNLOCK_DUE_LATER,
    WAITING,
    Backoff,
    Heard,
    Heartbeat,
    Leave,
    Locks,
    Outcome,
    Record,
    Release,
    Request,
    SlotMutex,
    TaskMark,
    Waiter,
    answer_by,
    audit_lock,
    audit_unlock,
    begin_leave_of,
    begin_wait,
    call_came_back,
    call_on_worker,
    caller_number,
    close_client,
    debug_may_be_on,
    finish_closing,
    forks,
    in_greenlet_hub,
    join_lineage,
    locks_of,
    mark_of_task,
    new_heartbeat,
    next_pause,
    note_place,
    outcome_of,
    patience_here,
    run_on_worker,
    seen,
    signal_anew,
    sit_out,
    task_number,
    tell_failed_release,
    tell_handed_over,
    tell_unlocked,
    thread_number,
    warn_of_wait,
)

from ._mutex import (
    CLAIM,
    GREENLET_ADVICE,
    LOCK,
    TOKEN_INFO,
    UNLOCK,
    LostEvent,  # no-cython-lint: for luna_ext
    closed_error,
    current_task,
    greenlet_error,
    log,
    settle,
    start_thread,  # no-cython-lint: for provisioning
)
from .discovery import find_library
from .errors import (
    LOCKED_OUT,
    AmbiguousLabelError,
    ArgumentsBadError,
    AssignmentConflictError,
    CryptokiError,
    LibraryClosedError,
    LockNotOwnedError,
    LockReentryError,
    LockTimeoutError,
    LunaError,
    Meaning,
    NoUnassignedTokenError,
    PinError,
    SlotIdInvalidError,
    TokenChangedError,
    TokenNotFoundError,
    meaning_of,
)
from .labels import decode_label, encode_label

# How long assign() waits while the token still has sessions, in which another program has just worked.
cdef double SESSIONS_SECONDS = 0.5
# How long reconnect() waits for calls that are at the device.
cdef double DRAIN_SECONDS = 1.0
# How long a new Library waits for calls of an earlier one that were given up.
cdef double REOPEN_SECONDS = 1.0

include "_cluster/lock.pyx"
include "_cluster/slot.pyx"
include "_cluster/token.pyx"
include "_cluster/claim.pyx"
include "_cluster/lock_all.pyx"
include "_cluster/library.pyx"

# Python counts references of a method at each call of it; see luna_make_immortal().
cdef object _class, _method
for _class in (ClusterSlot, SlotLock, Token, Claim, LockAll):
    for _method in vars(_class).values():
        luna_make_immortal(_method)
