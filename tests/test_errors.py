"""From a return code to an exception: the hierarchy, the table, the messages, and pickling."""

import copy
import pickle
import re
from pathlib import Path

import pytest

import luna_ext
from luna_ext.errors import Meaning, codes_that_mean, error_for, meaning_of, rv_name

HEADER = Path(__file__).parent.parent / "include" / "cryptoki_v2.h"

# Each class with its direct bases, in their order.
HIERARCHY = {
    "LunaError": ("Exception",),
    "CryptokiError": ("LunaError",),
    "ArgumentsBadError": ("CryptokiError", "ValueError"),
    "SlotIdInvalidError": ("CryptokiError", "LookupError"),
    "DeviceError": ("CryptokiError",),
    "BufferTooSmallError": ("CryptokiError",),
    "FunctionFailedError": ("CryptokiError",),
    "NotInitializedError": ("CryptokiError", "RuntimeError"),
    "PinError": ("CryptokiError",),
    "LibraryLoadError": ("LunaError", "OSError"),
    "UnsupportedFunctionError": ("LunaError", "NotImplementedError"),
    "LibraryClosedError": ("LunaError", "RuntimeError"),
    "LockError": ("LunaError",),
    "LockTimeoutError": ("LockError", "TimeoutError"),
    "LockReentryError": ("LockError", "RuntimeError"),
    "LockNotOwnedError": ("LockError", "RuntimeError"),
    "LockLostError": ("LockError",),
    "LockReleaseError": ("LockError",),
    "NoUnassignedTokenError": ("FunctionFailedError", "LookupError"),
    "TokenNotFoundError": ("LunaError", "LookupError"),
    "AmbiguousLabelError": ("LunaError", "LookupError"),
    "TokenChangedError": ("LunaError",),
    "AssignmentConflictError": ("LunaError",),
}
CLASSES = [getattr(luna_ext, name) for name in HIERARCHY]

STANDARD_CODES = [
    (0x003, "CKR_SLOT_ID_INVALID", luna_ext.SlotIdInvalidError),
    (0x006, "CKR_FUNCTION_FAILED", luna_ext.FunctionFailedError),
    (0x007, "CKR_ARGUMENTS_BAD", luna_ext.ArgumentsBadError),
    (0x030, "CKR_DEVICE_ERROR", luna_ext.DeviceError),
    (0x150, "CKR_BUFFER_TOO_SMALL", luna_ext.BufferTooSmallError),
    (0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", luna_ext.NotInitializedError),
]
VENDOR_CODES = [
    (0x80000004, "CKR_RC_ERROR", luna_ext.DeviceError),
    (0x80000007, "CKR_USER_LOCKED_OUT", luna_ext.PinError),
    (0x8000001A, "CKR_USER_NOT_AUTHORIZED", luna_ext.CryptokiError),
    (0x8000001F, "CKR_UNABLE_TO_CONNECT", luna_ext.DeviceError),
    (0x80000020, "CKR_PARTITION_DISABLED", luna_ext.DeviceError),
    (0x80000024, "CKR_TIMEOUT", luna_ext.DeviceError),
    (0x8000002B, "CKR_DEVICE_TIMEOUT", luna_ext.DeviceError),
    (0x80000030, "CKR_OPERATION_NOT_ALLOWED", luna_ext.CryptokiError),
    (0x80000041, "CKR_AGAIN", luna_ext.DeviceError),
    (0x80000043, "CKR_SLOT_NOT_EMPTY", luna_ext.CryptokiError),
    (0x8000006F, "CKR_OBJECT_ALREADY_EXISTS", luna_ext.CryptokiError),
    (0x80000305, "CKR_OBJECT_NOT_KEYRING", luna_ext.CryptokiError),
    (0x80000306, "CKR_KEYRING_NOT_FOUND", luna_ext.CryptokiError),
    (0x80000307, "CKR_KEYRING_NOT_AUTHORIZED", luna_ext.CryptokiError),
    (0x80001604, "CKR_BUSY", luna_ext.DeviceError),
    # Names alone.
    (0x80000005, "CKR_CONTAINER_HANDLE_INVALID", luna_ext.CryptokiError),
    (0x80000044, "CKR_USER_ALREADY_ACTIVATED", luna_ext.CryptokiError),
    (0x80000066, "CKR_STC_ACTIVATE_RESP_GEN_FAIL", luna_ext.CryptokiError),
    (0x8000008D, "CKR_HSM_RESTART_REQUIRED", luna_ext.CryptokiError),
    (0x800000A2, "CKR_STC_KEY_EXPIRED", luna_ext.CryptokiError),
    (0x80000100, "CKR_KEY_INVALID_FOR_HA_LOGIN", luna_ext.CryptokiError),
    (0x80000124, "CKR_CLOCK_NOT_IN_SYNC", luna_ext.CryptokiError),
    (0x80000136, "CKR_KEY_NOT_ACTIVE", luna_ext.CryptokiError),
    (0x80000300, "CKR_IS6_GROUP_ALREADY_EXISTS", luna_ext.CryptokiError),
]
PIN_CODES = [
    (0x0A0, "CKR_PIN_INCORRECT", luna_ext.PinError),
    (0x0A1, "CKR_PIN_INVALID", luna_ext.PinError),
    (0x0A2, "CKR_PIN_LEN_RANGE", luna_ext.PinError),
    (0x0A3, "CKR_PIN_EXPIRED", luna_ext.PinError),
    (0x0A4, "CKR_PIN_LOCKED", luna_ext.PinError),
    (0x8000001C, "CKR_SO_LOGIN_FAILURE_THRESHOLD", luna_ext.PinError),
    (0x8000002D, "CKR_PED_CLIENT_NOT_RUNNING", luna_ext.PinError),
    (0x8000002E, "CKR_PED_UNPLUGGED", luna_ext.PinError),
    (0x8000003B, "CKR_AUDIT_LOGIN_TIMEOUT_IN_PROGRESS", luna_ext.PinError),
    (0x8000003C, "CKR_AUDIT_LOGIN_FAILURE_THRESHOLD", luna_ext.PinError),
    (0x80000067, "CKR_CHALLENGE_INCORRECT", luna_ext.PinError),
    (0x8000009D, "CKR_PED_UNSUPPORTED", luna_ext.PinError),
    (0x8000009E, "CKR_PED_ERROR", luna_ext.PinError),
]
OTHER_CODES = [
    (0x031, "CKR_DEVICE_MEMORY", luna_ext.DeviceError),
    (0x032, "CKR_DEVICE_REMOVED", luna_ext.DeviceError),
    (0x1B6, "CKR_FIPS_SELF_TEST_FAILED", luna_ext.DeviceError),
    (0x1B8, "CKR_PIN_TOO_WEAK", luna_ext.PinError),
    (0x052, "CKR_FUNCTION_PARALLEL", luna_ext.CryptokiError),
    (0x0B2, "CKR_SESSION_EXCLUSIVE_EXISTS", luna_ext.CryptokiError),
    (0x141, "CKR_INSERTION_CALLBACK_NOT_SUPPORTED", luna_ext.CryptokiError),
    (0x201, "CKR_TOKEN_RESOURCE_EXCEEDED", luna_ext.CryptokiError),
    (0x202, "CKR_OPERATION_CANCEL_FAILED", luna_ext.CryptokiError),
]
KNOWN_CODES = [*STANDARD_CODES, *VENDOR_CODES, *PIN_CODES, *OTHER_CODES]
# All others mean what their names say, and no more.
MEANINGS = {
    Meaning.BUSY: {0x80000041, 0x80001604},
    Meaning.LOST: {
        *(0x030, 0x031, 0x032, 0x190, 0x1B6),
        *(0x80000004, 0x8000001F, 0x80000020, 0x80000024, 0x8000002B),
    },
    Meaning.GONE: {0x003, 0x0E0, 0x0E1},
    Meaning.PIN: {
        *(0x0A0, 0x0A1, 0x0A2, 0x0A3, 0x0A4, 0x1B8, 0x80000007, 0x8000001C, 0x80000067),
        *(0x8000002D, 0x8000002E, 0x8000003B, 0x8000003C, 0x8000009D, 0x8000009E),
    },
    Meaning.NONE_LEFT: {0x006},
}
UNKNOWN_CODES = [
    0x04,
    0x1FF,
    0x80000000,
    0x80000003,
    0x800000A3,
    0x8000FFFF,
    0xFFFFFFFF,
    0x100000003,
    2**64 - 1,
]


def header_codes():
    """The return codes of the header: (name, number)."""
    defines = re.findall(
        r"^#define\s+(CKR_\w+)\s+\(\(CK_RV\)(0x[0-9A-Fa-f]+)UL\)$", HEADER.read_text(), re.MULTILINE
    )
    return [(name, int(number, 16)) for name, number in defines]


def filled(kind):
    """An error of this class with everything set that an error can carry."""
    error = kind("what happened", rv=0x80000041, function="CA_LockClusteredSlot", slot_id=2**64 - 1)
    error.add_note("luna_ext: what else happened")
    if isinstance(error, luna_ext.AmbiguousLabelError):
        error.slot_ids = (3, 2**64 - 1)
    return error


def everything_of(error):
    return {
        "class": type(error),
        "message": str(error),
        "args": error.args,
        "rv": error.rv,
        "rv_name": error.rv_name,
        "function": error.function,
        "slot_id": error.slot_id,
        "slot_ids": getattr(error, "slot_ids", None),
        "notes": error.__notes__,
    }


# ---- the hierarchy ----


@pytest.mark.parametrize("name", HIERARCHY)
def test_class_has_exactly_the_documented_bases(name):
    bases = getattr(luna_ext, name).__bases__

    assert tuple(base.__name__ for base in bases) == HIERARCHY[name]


def test_no_exception_is_public_beside_the_documented_ones():
    public = {
        name
        for name in luna_ext.__all__
        if isinstance(getattr(luna_ext, name), type)
        and issubclass(getattr(luna_ext, name), BaseException)
    }

    assert public == set(HIERARCHY)


@pytest.mark.parametrize("kind", CLASSES)
def test_attributes_are_none_when_the_device_was_not_asked(kind):
    error = kind("what happened")

    assert (error.rv, error.rv_name, error.function, error.slot_id) == (None, None, None, None)
    assert str(error) == "what happened"


def test_ambiguous_label_has_no_slots_unless_told():
    assert luna_ext.AmbiguousLabelError("two of them").slot_ids == ()


# ---- what the device answers ----


@pytest.mark.parametrize(("rv", "name", "kind"), KNOWN_CODES)
def test_code_on_a_slot_becomes_its_exception(luna, cluster, rv, name, kind):
    cluster.fault("C_GetSlotInfo", rv)

    with pytest.raises(luna_ext.CryptokiError) as caught:
        _ = luna.slot(3).info

    error = caught.value
    assert type(error) is kind
    assert (error.rv, error.rv_name) == (rv, name)
    assert (error.function, error.slot_id) == ("C_GetSlotInfo", 3)
    assert str(error).startswith(f"C_GetSlotInfo on slot 3: {name} (0x{rv:X})")


@pytest.mark.parametrize(("rv", "name", "kind"), KNOWN_CODES)
def test_code_without_a_slot_becomes_its_exception(luna, cluster, rv, name, kind):
    cluster.fault("CA_GetSlotId", rv)

    with pytest.raises(luna_ext.CryptokiError) as caught:
        luna.find("keyring1")

    error = caught.value
    assert type(error) is kind
    assert (error.rv, error.rv_name) == (rv, name)
    assert (error.function, error.slot_id) == ("CA_GetSlotId", None)
    assert str(error).startswith(f"CA_GetSlotId: {name} (0x{rv:X})")


@pytest.mark.parametrize("rv", UNKNOWN_CODES)
def test_unknown_code_is_shown_as_its_number_vendor_bit_and_all(luna, cluster, rv):
    cluster.fault("C_GetSlotInfo", rv)

    with pytest.raises(luna_ext.CryptokiError) as caught:
        _ = luna.slot(3).info

    error = caught.value
    assert type(error) is luna_ext.CryptokiError
    assert error.rv == rv
    assert error.rv_name == f"0x{rv:08X}"
    assert str(error) == f"C_GetSlotInfo on slot 3: unknown return code 0x{rv:08X}"


@pytest.mark.parametrize(
    ("rv", "kind"), [(0x3, luna_ext.SlotIdInvalidError), (0x30, luna_ext.DeviceError)]
)
def test_lock_call_raises_what_the_device_answers(luna, cluster, rv, kind):
    cluster.fault("CA_LockClusteredSlot", rv, times=1)

    with pytest.raises(kind) as caught:
        luna.slot(3).acquire()

    error = caught.value
    assert (error.rv, error.function, error.slot_id) == (rv, "CA_LockClusteredSlot", 3)


@pytest.mark.parametrize(("rv", "name"), [(0x3, "CKR_SLOT_ID_INVALID"), (0x30, "CKR_DEVICE_ERROR")])
def test_refused_unlock_is_a_lock_release_error_with_the_code(luna, cluster, rv, name):
    slot = luna.slot(3)
    slot.acquire()
    cluster.fault("CA_UnlockClusteredSlot", rv, times=1)

    with pytest.raises(luna_ext.LockReleaseError) as caught:
        slot.release()

    error = caught.value
    assert (error.rv, error.rv_name) == (rv, name)
    assert (error.function, error.slot_id) == ("CA_UnlockClusteredSlot", 3)
    assert "CA_UnlockClusteredSlot on slot 3" in str(error)
    assert name in str(error)


@pytest.mark.parametrize(
    ("rv", "kind"),
    [
        (0x006, luna_ext.NoUnassignedTokenError),
        (0x007, luna_ext.ArgumentsBadError),
        (0x030, luna_ext.DeviceError),
        (0x150, luna_ext.BufferTooSmallError),
        (0x190, luna_ext.NotInitializedError),
    ],
)
def test_claim_raises_what_the_device_answers(luna, cluster, rv, kind):
    cluster.fault("CA_GetUnassignedSlot", rv)

    with pytest.raises(kind) as caught, luna.claim("cluster-1"):
        pytest.fail("nothing was claimed")

    error = caught.value
    assert type(error) is kind
    assert (error.rv, error.function, error.slot_id) == (rv, "CA_GetUnassignedSlot", None)


def test_errors_are_counted_by_name(luna, cluster):
    cluster.fault("C_GetSlotInfo", 0x80000041, times=2)
    before = luna.stats().get("C_GetSlotInfo", luna_ext.FunctionStats())
    for _ in range(2):
        with pytest.raises(luna_ext.DeviceError):
            _ = luna.slot(1).info
    _ = luna.slot(1).info

    after = luna.stats()["C_GetSlotInfo"]

    assert after.calls - before.calls == 3
    assert after.errors["CKR_AGAIN"] - before.errors.get("CKR_AGAIN", 0) == 2


# ---- the table ----


def test_header_defines_the_codes_of_the_standard():
    assert len(header_codes()) > 90
    assert ("CKR_BUFFER_TOO_SMALL", 0x150) in header_codes()


@pytest.mark.parametrize(
    ("name", "number"), [code for code in header_codes() if code[0] != "CKR_VENDOR_DEFINED"]
)
def test_table_has_every_code_of_the_header_under_its_name(name, number):
    assert rv_name(number) == name
    assert error_for(number, "C_GetInfo").rv_name == name


def test_vendor_defined_is_a_bit_and_no_code():
    assert dict(header_codes())["CKR_VENDOR_DEFINED"] == 0x80000000
    assert rv_name(0x80000000) == "0x80000000"


def test_every_code_has_its_class():
    classes = {number: kind for number, _, kind in KNOWN_CODES}
    for number in {number for _, number in header_codes()} | set(classes):
        expected = classes.get(number, luna_ext.CryptokiError)
        assert type(error_for(number, "C_GetInfo")) is expected, hex(number)


def test_every_code_has_its_meaning():
    assert set(MEANINGS) == set(Meaning)
    for meaning, codes in MEANINGS.items():
        assert set(codes_that_mean(meaning)) == codes
        assert {meaning_of(code) for code in codes} == {meaning}
    others = {number for _, number in header_codes()} - set().union(*MEANINGS.values())
    assert {meaning_of(number) for number in others} == {None}


# ---- pickling and copying ----


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", CLASSES)
def test_pickle_keeps_everything(kind, protocol):
    error = filled(kind)

    assert everything_of(pickle.loads(pickle.dumps(error, protocol))) == everything_of(error)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", CLASSES)
def test_copy_keeps_everything(kind, duplicate):
    error = filled(kind)

    assert everything_of(duplicate(error)) == everything_of(error)


def test_deep_copy_has_notes_of_its_own():
    error = filled(luna_ext.DeviceError)

    copy.deepcopy(error).add_note("only the copy's")

    assert error.__notes__ == ["luna_ext: what else happened"]


def test_error_of_a_real_call_pickles(luna):
    with pytest.raises(luna_ext.SlotIdInvalidError) as caught:
        _ = luna.slot(2**64 - 1).info

    error = pickle.loads(pickle.dumps(caught.value))

    assert type(error) is luna_ext.SlotIdInvalidError
    assert (error.rv, error.function, error.slot_id) == (0x3, "C_GetSlotInfo", 2**64 - 1)
    assert str(error) == str(caught.value)


def test_ambiguous_label_of_a_real_call_pickles_with_its_slots(luna):
    for _ in range(2):
        with luna.claim("cluster-1") as token:
            token.assign("twice", so_pin="12345678", unique=False)
    with pytest.raises(luna_ext.AmbiguousLabelError) as caught:
        luna.token("twice")

    error = pickle.loads(pickle.dumps(caught.value))

    assert len(error.slot_ids) == 2
    assert error.slot_ids == caught.value.slot_ids
    assert sorted(error.slot_ids) == sorted(token.slot.slot_id for token in luna.find("twice"))
