"""What each CK_RV means, and what to do: for `luna-ext explain` and docs/errors.md.

`errors` has what an error's message says. This module adds the rest, and is loaded only to explain.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import CryptokiError, named_codes, rv_name, what_is_said_of


class Explanation(NamedTuple):
    """A CK_RV in words."""

    rv: int
    name: str
    exception: type[CryptokiError] | None
    """What is raised for it; None: nothing, for it is CKR_OK."""
    meaning: str
    advice: str


# ---- PKCS #11 v2.40, section 5.1, in our words ----

# In groups by what to do. An advice in `errors` is better, and is given instead; where a group has no
# advice of its own, each of its codes has one there.

_STANDARD: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "ask again later",
        {
            "CKR_NO_EVENT": "Nothing has happened at any slot since the last question.",
        },
    ),
    (
        "let several processes do the work, or take another client library; this one does not serve "
        "several threads",
        {
            "CKR_CANT_LOCK": (
                "The client library cannot be used by several threads in the way that C_Initialize "
                "has asked for."
            ),
        },
    ),
    (
        "nothing",
        {
            "CKR_OK": "The call has done what it was made for.",
        },
    ),
    (
        "let the process have more memory, or do less at a time",
        {
            "CKR_HOST_MEMORY": "The client library got no memory on this host.",
        },
    ),
    (
        "see the client library's own log",
        {
            "CKR_GENERAL_ERROR": (
                "Something went wrong that the client library cannot describe; the library or the "
                "device may not be usable any more."
            ),
            "CKR_FUNCTION_FAILED": (
                "The device could not do it, and does not say why. In answer to a claim "
                "(CA_GetUnassignedSlot): no unassigned token is left; luna_ext raises "
                "NoUnassignedTokenError then."
            ),
            "CKR_LIBRARY_LOAD_FAILED": (
                "The client library could not load another library that it needs."
            ),
        },
    ),
    (
        "compare the arguments with what the function takes; of a claim, the cluster's ID",
        {
            "CKR_ARGUMENTS_BAD": (
                "An argument has a value or a form that the function does not take."
            ),
        },
    ),
    (
        "see the code that initialises the client library, which is not luna_ext's: luna_ext lets "
        "it create threads, and use the system's locks",
        {
            "CKR_NEED_TO_CREATE_THREADS": (
                "The client library needs threads of its own, and C_Initialize was told that it "
                "may create none."
            ),
            "CKR_MUTEX_BAD": (
                "A mutex that was handed to the client library, or to the application's functions "
                "for mutexes, is none."
            ),
            "CKR_MUTEX_NOT_LOCKED": "A mutex was to be unlocked that is not locked.",
        },
    ),
    (
        "open the Library after the fork, if this is a forked child; else let one part of the "
        "process initialise the client library",
        {
            "CKR_CRYPTOKI_ALREADY_INITIALIZED": (
                "C_Initialize was called before, by other code of the process, or by the parent of "
                "a forked child. luna_ext goes on with what other code has initialised, and leaves "
                "C_Finalize to it."
            ),
        },
    ),
    (
        "call a function that is there; `luna-ext doctor` tells which cluster functions are",
        {
            "CKR_FUNCTION_NOT_SUPPORTED": (
                "This client library or device does not offer the function."
            ),
            "CKR_FUNCTION_NOT_PARALLEL": (
                "No function is executed beside the others in this session; the functions that ask "
                "for that are always answered so."
            ),
            "CKR_FUNCTION_PARALLEL": (
                "A function is executed beside the others in this session. No version of the "
                "standard that luna_ext knows has such functions."
            ),
            "CKR_SESSION_PARALLEL_NOT_SUPPORTED": (
                "A session was asked for without CKF_SERIAL_SESSION. luna_ext always sets it."
            ),
            "CKR_INSERTION_CALLBACK_NOT_SUPPORTED": (
                "The client library does not call back when a token is inserted."
            ),
        },
    ),
    (
        "see the application: it or the device's user has ended the call",
        {
            "CKR_CANCEL": "The call was ended by the application's own callback.",
            "CKR_FUNCTION_CANCELED": "The call was ended while it was executed.",
            "CKR_FUNCTION_REJECTED": "The device's user has refused the call.",
            "CKR_OPERATION_CANCEL_FAILED": (
                "An operation under way could not be ended before its time."
            ),
        },
    ),
    (
        "correct the attributes of the template",
        {
            "CKR_ATTRIBUTE_READ_ONLY": "An attribute cannot be set, or not changed any more.",
            "CKR_ATTRIBUTE_TYPE_INVALID": "An object of this kind has no such attribute.",
            "CKR_ATTRIBUTE_VALUE_INVALID": "An attribute cannot have this value.",
            "CKR_TEMPLATE_INCOMPLETE": (
                "The template lacks an attribute that is needed to make the object."
            ),
            "CKR_TEMPLATE_INCONSISTENT": "Two attributes of the template exclude each other.",
            "CKR_DOMAIN_PARAMS_INVALID": (
                "The domain parameters of the key are not allowed, or not supported."
            ),
            "CKR_CURVE_NOT_SUPPORTED": "The token does not know this elliptic curve.",
            "CKR_PUBLIC_KEY_INVALID": (
                "The public key is not valid, or not acceptable to the token."
            ),
        },
    ),
    (
        "see the object's attributes: they, or the HSM's policy, forbid it",
        {
            "CKR_ATTRIBUTE_SENSITIVE": (
                "An attribute may not be read, because the object is sensitive or not extractable."
            ),
            "CKR_ACTION_PROHIBITED": (
                "The object may not be treated so: it may not be copied, changed or destroyed."
            ),
            "CKR_INFORMATION_SENSITIVE": "What was asked for is secret, and is not given out.",
        },
    ),
    (
        "give data of the form and length that the mechanism takes",
        {
            "CKR_DATA_INVALID": "The data are not of the form that the mechanism takes.",
            "CKR_DATA_LEN_RANGE": "The data are too long, too short, or no multiple of the block.",
            "CKR_ENCRYPTED_DATA_INVALID": (
                "The encrypted data are no result of this mechanism and key."
            ),
            "CKR_ENCRYPTED_DATA_LEN_RANGE": (
                "The encrypted data are of a length that this mechanism and key never give."
            ),
        },
    ),
    (
        "do not trust the data: it is not what was signed with this key and mechanism",
        {
            "CKR_SIGNATURE_INVALID": "The signature is not that of the data.",
            "CKR_SIGNATURE_LEN_RANGE": (
                "The signature is of a length that this mechanism and key never give."
            ),
        },
    ),
    (
        "use a key of the kind, size and attributes that the mechanism and the call want",
        {
            "CKR_KEY_SIZE_RANGE": (
                "The key is too small or too large for the mechanism, or for the token."
            ),
            "CKR_KEY_TYPE_INCONSISTENT": "The key is of another kind than the mechanism takes.",
            "CKR_KEY_NOT_NEEDED": "A key was given that the call does not take.",
            "CKR_KEY_CHANGED": "The key is not the one with which the saved operation began.",
            "CKR_KEY_NEEDED": "The saved operation can only go on with its key.",
            "CKR_KEY_INDIGESTIBLE": "The key's value may not be digested.",
            "CKR_KEY_FUNCTION_NOT_PERMITTED": "The key's attributes do not allow this use of it.",
            "CKR_KEY_NOT_WRAPPABLE": (
                "The token does not wrap this key, though its attributes allow it."
            ),
            "CKR_KEY_UNEXTRACTABLE": (
                "The key's attributes forbid that it leaves the token, also wrapped."
            ),
            "CKR_UNWRAPPING_KEY_SIZE_RANGE": (
                "The key to unwrap with has the wrong size for the mechanism."
            ),
            "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT": (
                "The key to unwrap with is of another kind than the mechanism takes."
            ),
            "CKR_WRAPPED_KEY_INVALID": "The wrapped key is not valid.",
            "CKR_WRAPPED_KEY_LEN_RANGE": "The wrapped key has a length that cannot be right.",
            "CKR_WRAPPING_KEY_SIZE_RANGE": (
                "The key to wrap with has the wrong size for the mechanism."
            ),
            "CKR_WRAPPING_KEY_TYPE_INCONSISTENT": (
                "The key to wrap with is of another kind than the mechanism takes."
            ),
        },
    ),
    (
        "look the key or object up again, in a session that is open: handles end with the session, "
        "the connection and the object",
        {
            "CKR_KEY_HANDLE_INVALID": "No key has this handle.",
            "CKR_OBJECT_HANDLE_INVALID": "No object has this handle.",
            "CKR_UNWRAPPING_KEY_HANDLE_INVALID": "No key to unwrap with has this handle.",
            "CKR_WRAPPING_KEY_HANDLE_INVALID": "No key to wrap with has this handle.",
        },
    ),
    (
        "take a mechanism that the token has, with its parameters; C_GetMechanismList tells which "
        "it has, and the HSM's policy may forbid some",
        {
            "CKR_MECHANISM_INVALID": (
                "The token does not know the mechanism, or not for this purpose."
            ),
            "CKR_MECHANISM_PARAM_INVALID": "The parameters of the mechanism are not right.",
        },
    ),
    (
        "begin each operation once in a session, and end it before the next one; give each thread "
        "a session of its own",
        {
            "CKR_OPERATION_ACTIVE": "Another operation is under way in the session.",
            "CKR_OPERATION_NOT_INITIALIZED": "No operation of this kind was begun in the session.",
            "CKR_SAVED_STATE_INVALID": "The saved state of an operation cannot be restored.",
            "CKR_STATE_UNSAVEABLE": "The state of the operation cannot be saved.",
            "CKR_EXCEEDED_MAX_ITERATIONS": (
                "The token has given up a calculation after its largest number of tries."
            ),
        },
    ),
    (
        "choose another PIN, as the HSM's policy wants it",
        {
            "CKR_PIN_INVALID": "The new PIN has a character that the device does not take.",
            "CKR_PIN_TOO_WEAK": "The new PIN is too easy to guess for the device's policy.",
        },
    ),
    (
        "",
        {
            "CKR_PIN_INCORRECT": (
                "The PIN is not that of this role of the token. A keyring whose crypto officer's "
                "password has up to 16 characters is locked after 10 wrong tries; wrong logins of "
                "the security officer count, too, and ten of them erase a partition."
            ),
            "CKR_PIN_LEN_RANGE": (
                "The PIN is too short or too long. A keyring's password has 8 to 255 characters."
            ),
            "CKR_PIN_EXPIRED": (
                "The PIN was set by the security officer, or is too old, and has to be changed "
                "before it is used. The token's flags may say so before the login: "
                "USER_PIN_TO_BE_CHANGED, SO_PIN_TO_BE_CHANGED."
            ),
            "CKR_PIN_LOCKED": (
                "Too many wrong PINs in a row: the device takes none any more, not even the right "
                "one. A keyring whose crypto officer's password has up to 16 characters is locked "
                "after 10 wrong tries. Longer passwords do not count their tries, nor do tries of "
                "up to 6 characters count."
            ),
        },
    ),
    (
        "open a new session",
        {
            "CKR_SESSION_CLOSED": "The session was closed while the call was executed.",
            "CKR_SESSION_HANDLE_INVALID": (
                "No session has this handle: it was closed, or went with its token, the connection "
                "or C_Finalize."
            ),
            "CKR_SESSION_READ_ONLY": (
                "A read-only session cannot change what is on the token; open a read-write session."
            ),
        },
    ),
    (
        "wait until that session is closed, or open a read-write session",
        {
            "CKR_SESSION_EXCLUSIVE_EXISTS": "A session is open that admits no other beside it.",
            "CKR_SESSION_READ_WRITE_SO_EXISTS": (
                "While the security officer is logged in, no read-only session can be opened."
            ),
        },
    ),
    (
        "see to the token, and to the partition's connection to this client",
        {
            "CKR_TOKEN_NOT_PRESENT": "The slot has no token, or none any more.",
            "CKR_TOKEN_NOT_RECOGNIZED": "The client library does not know the token in the slot.",
            "CKR_TOKEN_WRITE_PROTECTED": "The token cannot be written to.",
            "CKR_TOKEN_RESOURCE_EXCEEDED": (
                "A resource of the token is used up, such as its room for objects."
            ),
        },
    ),
    (
        "log in once for each process and token, with the right role; a login ends with the last "
        "session",
        {
            "CKR_USER_ALREADY_LOGGED_IN": (
                "This process is logged in to the token already, in this role."
            ),
            "CKR_USER_NOT_LOGGED_IN": "The call needs a login to the token.",
            "CKR_USER_ANOTHER_ALREADY_LOGGED_IN": (
                "This process is logged in to the token in another role."
            ),
            "CKR_USER_TYPE_INVALID": "The token has no such role, or it may not do this.",
            "CKR_USER_TOO_MANY_TYPES": "More roles are logged in at a time than the token allows.",
        },
    ),
    (
        "have the security officer set it: provision(..., user_pin=...) completes such a token, or "
        "C_InitPIN",
        {
            "CKR_USER_PIN_NOT_INITIALIZED": "The token's user has no PIN yet.",
        },
    ),
    (
        "take random numbers from the operating system, or from a token that gives them",
        {
            "CKR_RANDOM_SEED_NOT_SUPPORTED": "The token's random numbers cannot be seeded.",
            "CKR_RANDOM_NO_RNG": "The token gives no random numbers.",
        },
    ),
    (
        "try again; slots or tokens came while the call was made",
        {
            "CKR_BUFFER_TOO_SMALL": (
                "The result is larger than the room for it. luna_ext asks again with more room, so "
                "an error with this code says that the client library's own size is never enough."
            ),
        },
    ),
    (
        "use a token with plain passwords; luna_ext has no one-time passwords",
        {
            "CKR_NEW_PIN_MODE": "The token wants a new PIN for its one-time passwords.",
            "CKR_NEXT_OTP": "The token wants the next one-time password as well.",
        },
    ),
    (
        "have the HSM's administrator look at it: the device refuses all work",
        {
            "CKR_FIPS_SELF_TEST_FAILED": (
                "The device has failed its own test, which FIPS 140 demands."
            ),
        },
    ),
    (
        "let the device have less to do at a time, or have its administrator look at it",
        {
            "CKR_DEVICE_MEMORY": "The device got no memory for the call.",
        },
    ),
    (
        "",
        {
            "CKR_SLOT_ID_INVALID": (
                "The client library knows no slot with this ID, or not any more."
            ),
            "CKR_DEVICE_ERROR": (
                "The device, or the connection to it, has failed. Some devices answer so to a lock "
                'call while another process holds the lock: then say Library(contention="poll").'
            ),
            "CKR_DEVICE_REMOVED": "The device is not there any more.",
            "CKR_SESSION_COUNT": "The token allows no more sessions.",
            "CKR_SESSION_EXISTS": (
                "A token with an open session cannot be initialised, and a program has one."
            ),
            "CKR_SESSION_READ_ONLY_EXISTS": (
                "While a read-only session is open on the token, the security officer cannot log "
                "in."
            ),
            "CKR_CRYPTOKI_NOT_INITIALIZED": (
                "The client library is not initialised: other code of this process has finalised "
                "it, and every lock of the process went with that."
            ),
        },
    ),
)

# ---- the vendor's: those of which more is known than the name ----

_VENDOR: dict[str, tuple[str, str]] = {
    "CKR_RC_ERROR": ("The connection to the device has failed.", ""),
    "CKR_USER_LOCKED_OUT": (
        "Too many wrong tries: the role is locked out. A keyring whose crypto officer's password "
        "has up to 16 characters is locked after 10 wrong tries.",
        "",
    ),
    "CKR_USER_NOT_AUTHORIZED": ("The role that is logged in lacks the right.", ""),
    "CKR_SO_LOGIN_FAILURE_THRESHOLD": (
        "Too many wrong tries to log in as security officer. Ten wrong logins of its security "
        "officer erase a partition.",
        "",
    ),
    "CKR_UNABLE_TO_CONNECT": ("The client library reaches no HSM.", ""),
    "CKR_PARTITION_DISABLED": ("The partition was disabled by the HSM's administrator.", ""),
    "CKR_TIMEOUT": ("The device has not answered in the client library's own time.", ""),
    "CKR_DEVICE_TIMEOUT": ("The device has not answered in the client library's own time.", ""),
    "CKR_PED_CLIENT_NOT_RUNNING": ("The PED cannot be reached.", ""),
    "CKR_PED_UNPLUGGED": ("The PED is not connected.", ""),
    "CKR_PED_UNSUPPORTED": ("The PED does not fit the HSM.", ""),
    "CKR_PED_ERROR": ("The PED has failed.", ""),
    "CKR_OPERATION_NOT_ALLOWED": (
        "The HSM's policy, or the state of the token, forbids it.",
        "ask the HSM's administrator for its policies",
    ),
    "CKR_AUDIT_LOGIN_TIMEOUT_IN_PROGRESS": (
        "After wrong logins of the auditor no login of that role is taken for a while. A keyring "
        "has no such role.",
        "",
    ),
    "CKR_AUDIT_LOGIN_FAILURE_THRESHOLD": (
        "Too many wrong logins of the auditor. A keyring has no such role.",
        "",
    ),
    "CKR_AGAIN": ("The device is busy, and has done nothing. luna_ext makes the call again.", ""),
    "CKR_BUSY": ("The device is busy, and has done nothing. luna_ext makes the call again.", ""),
    "CKR_CHALLENGE_INCORRECT": (
        "The challenge password, which goes with a login by PED, is wrong.",
        "",
    ),
    "CKR_OBJECT_NOT_KEYRING": ("The slot is no keyring of a cluster.", ""),
    "CKR_KEYRING_NOT_FOUND": ("The slot is no keyring that the cluster has, or has any more.", ""),
    "CKR_KEYRING_NOT_AUTHORIZED": ("The call needs a login to the keyring.", ""),
}

# ---- the vendor's others: what they are about, by their names ----

_TOPICS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("STC_",), "secure trusted channels, the vendor's encrypted connections to a partition"),
    (("LOG_",), "the HSM's audit log"),
    (("SIM_",), "keys that are kept outside of the HSM"),
    (("MTK_",), "the HSM's master tamper key"),
    (("ECC_",), "an elliptic curve"),
    (("BIP32_",), "keys that are derived from one another (BIP 32)"),
    (("FM_", "HSM_RESTART"), "functionality modules, code of its owner that runs in the HSM"),
    (("PARTITION_ROLE_",), "the roles of a partition and their policies"),
    (("SESSION_NEGOTIATION_", "SESSION_ID_", "CPV4_", "CLONE_", "FAILED_TO_CLONE"), "cloning"),
    (("CLONING_", "DOMAIN_", "ATTESTATION_", "PROTOCOL_"), "cloning, and its domains"),
    (("ASSIGNED_KEY_", "AUTH_DATA_", "OH_AUTH", "ROLE_CANNOT"), "keys with passwords of their own"),
    (("KEY_",), "a key, and what it may be used for"),
    (("INVALID_FUF_",), "an update of the HSM's firmware"),
    (("IS6_",), "the groups of a cluster"),
    (
        ("DAC_", "DAK_", "CITS_", "SSK_", "MAC_", "BAD_", "CERTIFICATE_"),
        "the certificates and keys of the HSM",
    ),
    (("CONTAINER_", "TOO_MANY_CONTAINERS"), "the HSM's containers, in which partitions are kept"),
    (("UTILIZATION_", "INVALID_UTILIZATION"), "the HSM's counters of its use"),
    (("CONFIG_", "POLICY_"), "a policy of the HSM or partition"),
    (("ACCESS_ID_",), "application IDs"),
    (("OBJECT_", "MAX_OBJECT"), "an object, or the number of objects"),
    (("SLOT_NOT_EMPTY", "TOKEN_COPIED", "USER_ALREADY"), "the state of a slot, token or role"),
    (("HSM_", "LICENSE_", "CMD_NOT", "RNG_", "CLOCK_", "TIME_"), "the state of the HSM"),
)
_ANYTHING = "the HSM"
_UNKNOWN_MEANING = "A code of the vendor's. By its name it is about {}; no more is known here."
_UNKNOWN_ADVICE = (
    "look the name up in the vendor's documentation, and see the client library's own log"
)


def explain(rv: int) -> Explanation | None:
    """What the code means, and what to do; None: neither the standard nor the vendor has named it."""
    name = rv_name(rv)
    if not name.startswith("CKR_"):
        return None
    exception, says, advice = what_is_said_of(rv)
    meaning, general = _meaning_of(name)
    return Explanation(
        rv,
        name,
        None if rv == 0 else exception,
        meaning or says,
        advice or general,
    )


def _meaning_of(name: str) -> tuple[str, str]:
    for advice, meanings in _STANDARD:
        if name in meanings:
            return meanings[name], advice
    if name in _VENDOR:
        meaning, advice = _VENDOR[name]
        return meaning, advice or _UNKNOWN_ADVICE
    word = name.removeprefix("CKR_")
    about = next((topic for heads, topic in _TOPICS if word.startswith(heads)), _ANYTHING)
    return _UNKNOWN_MEANING.format(about), _UNKNOWN_ADVICE


def all_explanations() -> list[Explanation]:
    """Of each code that has a name, in the order of their numbers."""
    found = (explain(rv) for rv in named_codes())
    return [one for one in found if one is not None]
