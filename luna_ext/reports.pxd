from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

from luna_ext.clock cimport luna_now
from luna_ext.cryptoki cimport CK_SLOT_ID

cdef extern from "Python.h":
    # 0, or what an audit hook raises is pending. A look at two pointers where there is no hook.
    int PySys_Audit(const char *event, const char *format, ...) noexcept
    PyObject *Py_False


# One wait for a slot's lock, from the moment that it was asked for.
cdef struct Wait:
    double began     # seconds of luna_now(); 0: with the device call, whose length is measured
    bint debug       # whether DEBUG records were wanted then
    bint warned      # of its length; once is enough

cdef object _DEBUG
cdef dict _levels
cdef bint look_up_debug() except -1
cdef int warn_of_wait(Wait *wait, object subject) except -1
cdef int tell_locked(Wait *wait, CK_SLOT_ID slot_id) except -1
cdef int tell_unlocked(double began, CK_SLOT_ID slot_id, bint unwanted) except -1
cdef int tell_failed_release(object error) except -1

cdef enum:
    # A longer wait is worth a WARNING.
    LONG_WAIT_SECONDS = 5


cdef inline bint debug_is_on() except -1:
    """Whether DEBUG records are wanted.

    Logger.isEnabledFor() would be a fifth of a lock and unlock; its own cache says no at once.
    """
    if PyDict_GetItemWithError(_levels, _DEBUG) == Py_False:
        return False
    return look_up_debug()


cdef inline int begin_wait(Wait *wait, bint by_device_call) except -1:
    wait.debug = debug_is_on()
    wait.began = 0 if by_device_call and not wait.debug else luna_now()
    wait.warned = False
    return 0


cdef inline int end_wait(Wait *wait, CK_SLOT_ID slot_id) except -1:
    """The lock is held. May run the application's code: a handler, or a filter."""
    if wait.debug or luna_now() - wait.began > LONG_WAIT_SECONDS:
        tell_locked(wait, slot_id)
    return 0
