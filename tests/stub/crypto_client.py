"""Keys and signatures by the module's C interface, on top of pkcs11_client."""

import ctypes
from pathlib import Path

from pkcs11_client import OK, USER, Module

SOFTHSM = next(
    (
        path
        for path in (
            "/usr/lib/softhsm/libsofthsm2.so",
            "/usr/lib64/pkcs11/libsofthsm2.so",
            "/usr/lib64/softhsm/libsofthsm2.so",
            "/usr/local/lib/softhsm/libsofthsm2.so",
        )
        if Path(path).exists()
    ),
    None,
)
SO_PIN, USER_PIN = b"officer-1", b"user-pin-1"
KEY_LABEL, EC_PARAMS, CLASS, TOKEN, PRIVATE = 0x3, 0x180, 0x0, 0x1, 0x2
ALWAYS_AUTHENTICATE = 0x202
PUBLIC_KEY, PRIVATE_KEY = 2, 3
EC_KEY_PAIR_GEN, ECDSA = 0x1040, 0x1041
SECP256R1 = bytes.fromhex("06082a8648ce3d030107")
YES = b"\1"
DIGEST = bytes(range(32))


class Attribute(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_ulong),
        ("value", ctypes.c_char_p),
        ("length", ctypes.c_ulong),
    )


class Mechanism(ctypes.Structure):
    _fields_ = (
        ("mechanism", ctypes.c_ulong),
        ("parameter", ctypes.c_void_p),
        ("length", ctypes.c_ulong),
    )


def template(attributes):
    values = [Attribute(key, value, len(value)) for key, value in attributes.items()]
    return (Attribute * len(values))(*values), len(values)


class CryptoModule(Module):
    """The module, with the calls for elliptic curve keys that stay in the token."""

    def assign(self, slot_id, label="token"):
        """C_InitToken and both PINs."""
        assert self.init_token(slot_id, label, SO_PIN) == OK
        session = self.open_session(slot_id)
        assert self.login(session, pin=SO_PIN) == OK
        assert self.init_pin(session, USER_PIN) == OK
        assert self.C_CloseSession(session) == OK

    def user_session(self, slot_id):
        session = self.open_session(slot_id)
        assert self.login(session, USER, USER_PIN) == OK
        return session

    def make_key(self, session, label=b"key", more=None):
        """The handles of public and private key; `more`: attributes of the private one."""
        public, private = ctypes.c_ulong(), ctypes.c_ulong()
        rv = self.C_GenerateKeyPair(
            session,
            ctypes.byref(Mechanism(EC_KEY_PAIR_GEN)),
            *template({KEY_LABEL: label, TOKEN: YES, EC_PARAMS: SECP256R1}),
            *template({KEY_LABEL: label, TOKEN: YES, PRIVATE: YES, **(more or {})}),
            ctypes.byref(public),
            ctypes.byref(private),
        )
        assert rv == OK, hex(rv)
        return public.value, private.value

    def sign(self, session, private, data=DIGEST):
        """The code, and the signature."""
        rv = self.C_SignInit(session, ctypes.byref(Mechanism(ECDSA)), private)
        if rv != OK:
            return rv, b""
        place, length = ctypes.create_string_buffer(128), ctypes.c_ulong(128)
        rv = self.C_Sign(session, data, len(data), place, ctypes.byref(length))
        return rv, place.raw[: length.value]

    def verify(self, session, public, signature, data=DIGEST):
        assert self.C_VerifyInit(session, ctypes.byref(Mechanism(ECDSA)), public) == OK
        return self.C_Verify(session, data, len(data), signature, len(signature))

    def find(self, session, **wanted):
        """The objects with this label, or all: (class, label) of each, sorted."""
        attributes = {KEY_LABEL: wanted["label"]} if wanted else {}
        assert self.C_FindObjectsInit(session, *template(attributes)) == OK
        places, count = (ctypes.c_ulong * 100)(), ctypes.c_ulong()
        assert self.C_FindObjects(session, places, 100, ctypes.byref(count)) == OK
        assert self.C_FindObjectsFinal(session) == OK
        return sorted((*self._described(session, each), each) for each in places[: count.value])

    def _described(self, session, key):
        kind, label = ctypes.create_string_buffer(8), ctypes.create_string_buffer(40)
        wanted = (Attribute * 2)(
            Attribute(CLASS, ctypes.cast(kind, ctypes.c_char_p), 8),
            Attribute(KEY_LABEL, ctypes.cast(label, ctypes.c_char_p), 40),
        )
        assert self.C_GetAttributeValue(session, key, wanted, 2) == OK
        return int.from_bytes(kind.raw, "little"), label.value

    def key_pair(self, session, label=b"key"):
        """The handles of public and private key."""
        (kind, _, public), (other, _, private) = self.find(session, label=label)
        assert (kind, other) == (PUBLIC_KEY, PRIVATE_KEY)
        return public, private
