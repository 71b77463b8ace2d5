"""python-pkcs11 uses the stand-in, each time in a process of its own."""

import json
import re
import subprocess
import sys

import pytest
from foreign_clients import MANUFACTURER, SECONDS, SO_PIN, USER_PIN

PREAMBLE = """
import json
import os
import subprocess
import sys

import pkcs11

from luna_ext.stub import Cluster, library_path

PATH = library_path()
"""


@pytest.fixture
def python_pkcs11(cluster):
    """Runs a program that uses python-pkcs11, and gives the lines that it prints."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (PyPI: python-pkcs11)")

    def run(program, *arguments):
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", PREAMBLE + program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        return finished.stdout.splitlines()

    return run


LISTING = """
client = pkcs11.lib(PATH)
print(client.manufacturer_id)
print(client.cryptoki_version)
for slot in client.get_slots(token_present=True):
    token = slot.get_token()
    texts = [slot.slot_description, token.label, token.serial.decode()]
    texts += [token.manufacturer_id, token.model]
    print(json.dumps([slot.slot_id, *texts, int(token.flags), list(slot.get_mechanisms())]))
"""


def test_python_pkcs11_lists_slots_and_tokens(python_pkcs11, luna, payments):
    manufacturer, version, *slots = python_pkcs11(LISTING)

    assert manufacturer == MANUFACTURER
    assert version == "(2, 40)"
    assert [json.loads(line) for line in slots] == [
        [
            slot.slot_id,
            slot.info.description,
            slot.token_info.label,
            slot.token_info.serial_number,
            slot.token_info.manufacturer,
            slot.token_info.model,
            slot.token_info.flags,
            [],
        ]
        for slot in luna.slots()
    ]


FINDING = """
client = pkcs11.lib(PATH)
by_label = client.get_token(token_label="payments")
print(client.get_token(token_serial=by_label.serial).slot.slot_id == by_label.slot.slot_id)
print(pkcs11.TokenFlag.USER_PIN_INITIALIZED in by_label.flags)
print([token.label for token in client.get_tokens(token_flags=pkcs11.TokenFlag.TOKEN_INITIALIZED)])
try:
    client.get_token(token_label="nowhere")
except pkcs11.exceptions.NoSuchToken:
    print("no such token")
"""


@pytest.mark.usefixtures("payments")
def test_python_pkcs11_finds_a_token(python_pkcs11):
    assert python_pkcs11(FINDING) == ["True", "True", "['payments']", "no such token"]


SESSIONS = """
token = pkcs11.lib(PATH).get_token(token_label="payments")
with token.open() as session:
    print(len(session.generate_random(128)), session.generate_random(128).hex())
    print(list(session.get_objects()))
    print(list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})))
    for call in (
        lambda: session.seed_random(b"seed"),
        lambda: session.generate_key(pkcs11.KeyType.AES, 256),
        lambda: session.digest(b"text", mechanism=pkcs11.Mechanism.SHA256),
    ):
        try:
            call()
        except pkcs11.exceptions.PKCS11Error as error:
            print(type(error).__name__)
"""


@pytest.mark.usefixtures("payments")
def test_python_pkcs11_gets_random_numbers_and_no_objects(python_pkcs11):
    first, *answers = python_pkcs11(SESSIONS)
    second = python_pkcs11(SESSIONS)[0]

    assert re.fullmatch("16 [0-9a-f]{32}", first)
    assert first != second
    assert answers == ["[]", "[]", "RandomSeedNotSupported", *["FunctionNotSupported"] * 2]


LOGINS = """
from pkcs11.exceptions import PinIncorrect, UserNotLoggedIn

so_pin, user_pin = sys.argv[1:]
token = pkcs11.lib(PATH).get_token(token_label="payments")
for pin in ({"user_pin": user_pin}, {"user_pin": "wrong"}, {"so_pin": so_pin}, {"so_pin": "wrong"}):
    try:
        with token.open(rw=True, **pin) as session:
            print(session.user_type.name)
    except PinIncorrect:
        print("incorrect")

with token.open(rw=True, user_pin=user_pin) as session:
    session.set_pin(user_pin, "changed-1")
    try:
        session.init_pin("by the user")
    except UserNotLoggedIn:
        print("not the officer")
with token.open(rw=True, user_pin="changed-1"):
    print("changed-1")
with token.open(rw=True, so_pin=so_pin) as session:
    session.init_pin("by the officer")
with token.open(user_pin="by the officer"):
    print("set")
"""


@pytest.mark.usefixtures("payments")
def test_python_pkcs11_logs_in_and_sets_pins(python_pkcs11):
    assert python_pkcs11(LOGINS, SO_PIN, USER_PIN) == [
        "USER",
        "incorrect",
        "SO",
        "incorrect",
        "not the officer",
        "changed-1",
        "set",
    ]


# python-pkcs11 has no call for C_InitToken, so another process sets the label.
RELABELLING = """
CHANGE = '''
import os
from luna_ext.stub import Cluster

with Cluster(os.environ["LUNA_STUB_STATE"]).library() as luna:
    with luna.claim("cluster-1") as token:
        token.assign("renamed", so_pin="officer-1", user_pin="user-pin-1")
'''

client = pkcs11.lib(PATH)
slots = client.get_slots()
print([slot.get_token().label for slot in slots].count("renamed"))
subprocess.run([sys.executable, "-W", "error", "-c", CHANGE], check=True, timeout=20)
print([slot.get_token().label for slot in slots].count("renamed"))
with client.get_token(token_label="renamed").open(user_pin="user-pin-1"):
    print("logged in")
"""


def test_python_pkcs11_sees_what_another_process_changes(python_pkcs11):
    assert python_pkcs11(RELABELLING) == ["0", "1", "logged in"]


# luna_ext opens nothing here: it never unloads a client library, so the module would stay loaded.
UNLOADING = """
for _ in range(2):
    with pkcs11.lib(PATH).get_token(token_label="keyring1").open() as session:
        print(len(session.generate_random(64)))
    pkcs11.unload(PATH)
    print(os.WEXITSTATUS(os.system("exit 3")))
    child = os.fork()
    if child == 0:
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_module_is_unloaded_and_loaded_again(python_pkcs11):
    assert python_pkcs11(UNLOADING) == ["8", "3", "0"] * 2


# ---- python-pkcs11 and luna_ext in one process ----

# The code that initialised the module has to finalise it, so python-pkcs11 is loaded first.
STRANGER_FIRST = """
client = pkcs11.lib(PATH)
cluster = Cluster(os.environ["LUNA_STUB_STATE"])
earlier = client.get_token(token_label="keyring2").open()
with cluster.library() as luna:
    with luna.token("keyring2") as token:
        found = client.get_token(token_label="keyring2")
        print("the same", found.slot.slot_id == token.slot.slot_id)
        with found.open() as session:
            print("random", len(session.generate_random(64)))
        token.ensure_held()
        print("held", [each.slot_id for each in cluster.tokens() if each.owner == os.getpid()])
    luna.slot(3).acquire()
    luna.slot(3).release()
print("held", [each.slot_id for each in cluster.tokens() if each.owner == os.getpid()])
print("slots", len(client.get_slots()))
print("random", len(earlier.generate_random(64)))
earlier.close()
pkcs11.unload(PATH)
with cluster.library() as luna, luna.slot(2):
    print("again", len(luna.slots()))
"""


def test_luna_ext_joins_python_pkcs11(python_pkcs11):
    assert python_pkcs11(STRANGER_FIRST) == [
        "the same True",
        "random 8",
        "held [2]",
        "held []",
        "slots 8",
        "random 8",
        "again 8",
    ]


# python-pkcs11 takes CKR_CRYPTOKI_ALREADY_INITIALIZED for an error; this subclass does not.
STRANGER_SECOND = """
import contextlib
from pkcs11 import _pkcs11

class Guest(_pkcs11.lib):
    def initialize(self):
        try:
            super().initialize()
        except pkcs11.exceptions.PKCS11Error as error:
            if "already initialized" not in str(error):
                raise

cluster = Cluster(os.environ["LUNA_STUB_STATE"])
with cluster.library() as luna:
    with luna.slot(2) as slot:
        with contextlib.suppress(pkcs11.exceptions.PKCS11Error):
            pkcs11.lib(PATH)
        slot.ensure_held()
        guest = Guest(PATH)
        with guest.get_token(token_label="keyring2").open() as session:
            print("random", len(session.generate_random(64)))
        guest.unload()
        slot.ensure_held()
        print("held", [each.slot_id for each in cluster.tokens() if each.owner == os.getpid()])
    print("slots", len(luna.slots()))
# Freed at the interpreter's end, it may find that its class is gone already.
del guest, session
"""


def test_python_pkcs11_joins_luna_ext(python_pkcs11):
    assert python_pkcs11(STRANGER_SECOND) == ["random 8", "held [2]", "slots 8"]
