"""The mutex layer: the lock of one slot in this process, over the device layer.

It knows nothing of Library, ClusterSlot and Token. The layer above asks it for a slot's lock on behalf
of a thread or task, and passes the result on to the user.
"""

import atexit
import logging
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from contextvars import ContextVar
from functools import partial

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from luna_ext._device cimport (
    CA_GET_UNASSIGNED_SLOT,
    CA_LOCK_CLUSTERED_SLOT,
    CA_UNLOCK_CLUSTERED_SLOT,
    CK_FUNCTION_LIST,
    CK_RV,
    CK_SLOT_ID,
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_DEVICE_ERROR,
    CKR_FUNCTION_FAILED,
    CKR_OK,
    CKR_SESSION_HANDLE_INVALID,
    CLOSING,
    LONG_WAIT_SECONDS,
    NOWAIT_LOCK,
    PY_LOCK_ACQUIRED,
    PYTHREAD_INVALID_THREAD_ID,
    READY,
    RECONNECTING,
    WAIT_LOCK,
    CA_UnlockClusteredSlot_t,
    ALIVE,
    GONE,
    Canary,
    Client,
    Life,
    PyErr_CheckSignals,
    PyThread_acquire_lock,
    PyThread_acquire_lock_timed,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    PyThread_start_new_thread,
    PyThread_type_lock,
    Share,
    SlotCall,
    ask_canary,
    average_seconds,
    LUNA_FAST,
    LUNA_GIL,
    count_hold,
    count_wait,
    become_worker,
    begin_exit,
    begin_slot_call,
    blank_padded,
    canary_is_on,
    close_canary,
    do_in_child,
    drop_slot_call,
    end_slot_call,
    error_of,
    deadline_in,
    exit_has_begun,
    gives_way,
    left_of,
    left_of_exit,
    move_canary,
    open_canary,
    wait_for_none,
    want_canary,
    hear_of_fork,
    hold_back_at_exit,
    introduce,
    loaded_clients,
    lock_slot,
    luna_answer_bell,
    luna_asks_for,
    luna_at_fork_in_child,
    luna_bell,
    luna_bell_fd,
    luna_begin_watch,
    luna_bits,
    luna_coarse_nanoseconds,
    luna_count_add,
    luna_count_get,
    luna_drop_bell,
    luna_guard,
    luna_guard_forget,
    luna_guard_lock,
    luna_guard_unlock,
    luna_introduce,
    luna_is_main,
    luna_item,
    luna_keep_bell,
    luna_leads_process,
    luna_look_up,
    luna_mark_as,
    luna_marked_as,
    luna_nanoseconds,
    luna_new_bell,
    luna_note_asking,
    luna_note_joined,
    luna_now,
    luna_number,
    luna_pause,
    luna_push,
    luna_raise_pending,
    luna_ring,
    luna_shared_add,
    luna_is_marked,
    luna_joined_number,
    luna_mark,
    luna_shared_get,
    luna_shared_get32,
    luna_shared_get64,
    luna_shared_get_pointer,
    luna_shared_set,
    luna_shared_set32,
    luna_shared_set64,
    luna_shared_set8,
    luna_shared_set_pointer,
    luna_shared_set_once,
    luna_shared_take,
    luna_take_all,
    luna_take_mark,
    make_slot_call,
    luna_thread_exists,
    luna_thread_id,
    luna_watch,
    luna_watched,
    names_a_slot,
    new_signal,
    next_unassigned,
    read_token_info,
    release_and_wait_on,
    says_busy,
    shows_loss,
    token_label,
    unlock_slot,
    wait_on,
)

from .errors import (
    CryptokiError,
    LibraryClosedError,
    LockLostError,
    LockNotOwnedError,
    LockReentryError,
    LockReleaseError,
    Meaning,
    meaning_of,
    rv_name,
)

cdef extern from "<assert.h>":
    void holds "assert"(bint condition) noexcept nogil

cdef extern from "Python.h":
    # Not 0: an audit hook has raised, and the exception is set. Without a hook it takes two pointer reads.
    int PyGC_Disable() noexcept
    int PyGC_Enable() noexcept
    int PySys_Audit(const char *event, const char *format, ...) noexcept
    PyObject *PyThreadState_GetDict() noexcept
    PyObject *PyImport_GetModuleDict() noexcept
    int PyContextVar_Get(PyObject *var, PyObject *default, PyObject **value) noexcept
    PyObject *Py_False
    PyObject *Py_None

    ctypedef struct PyFrameObject:
        pass

    ctypedef struct PyCodeObject:
        pass

    PyFrameObject *PyEval_GetFrame() noexcept
    PyCodeObject *PyFrame_GetCode(PyFrameObject *frame) noexcept
    int PyFrame_GetLasti(PyFrameObject *frame) noexcept
    int PyCode_Addr2Line(PyCodeObject *code, int lasti) noexcept

include "_mutex/state.pyx"
include "_mutex/reports.pyx"
include "_mutex/workers.pyx"
include "_mutex/queue.pyx"
include "_mutex/mutex.pyx"
include "_mutex/table.pyx"
include "_mutex/claims.pyx"
include "_mutex/heartbeat.pyx"
include "_mutex/exit.pyx"
