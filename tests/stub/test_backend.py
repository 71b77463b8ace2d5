"""The stand-in over SoftHSM2: real keys and signatures under the cluster's locks."""

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from crypto_client import (
    ALWAYS_AUTHENTICATE,
    DIGEST,
    ECDSA,
    SO_PIN,
    SOFTHSM,
    USER_PIN,
    YES,
    CryptoModule,
    Mechanism,
)
from foreign_clients import SECONDS
from pkcs11_client import (
    CONTEXT_SPECIFIC,
    DEVICE_ERROR,
    FUNCTION_NOT_SUPPORTED,
    OK,
    OPERATION_NOT_INITIALIZED,
    PIN_INCORRECT,
    PIN_LOCKED,
    SESSION_EXISTS,
    SESSION_HANDLE_INVALID,
    SO,
    USER,
    USER_NOT_LOGGED_IN,
)

import luna_ext
from luna_ext.stub import BACKEND_VARIABLE, STATE_VARIABLE, Cluster, library_path

pytestmark = [
    pytest.mark.skipif(SOFTHSM is None, reason="SoftHSM2 is not installed (Debian: softhsm2)"),
    pytest.mark.luna_cluster(backend=SOFTHSM, keyrings=4),
]
USER_PIN_INITIALIZED, TOKEN_INITIALIZED = 0x8, 0x400


@pytest.fixture
def module(cluster, dual_identity):
    module = CryptoModule()
    assert module.C_Initialize(None) == OK
    yield module
    cluster.fault("C_Finalize", OK, times=0)
    module.C_Finalize(None)


@pytest.fixture
def session(module):
    """Of the logged in user of slot 1, which has a key pair."""
    module.assign(1)
    session = module.user_session(1)
    module.make_key(session)
    return session


def restart(module):
    assert module.C_Finalize(None) == OK
    assert module.C_Initialize(None) == OK


def run(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **environment},
        cwd=Path(__file__).parent,
    )


# ---- keys and signatures ----


def test_a_signature_is_verified_and_another_text_s_is_not(module, session):
    public, private = module.key_pair(session)

    rv, signature = module.sign(session, private)

    assert (rv, len(signature)) == (OK, 64)
    assert module.verify(session, public, signature) == OK
    assert module.verify(session, public, signature, DIGEST[::-1]) != OK


def test_private_keys_are_there_for_the_user_alone(module, session):
    _, private = module.key_pair(session)
    assert module.C_Logout(session) == OK

    assert [label for _, label, _ in module.find(session)] == [b"key"]
    assert module.sign(session, private)[0] != OK
    assert module.login(session, USER, USER_PIN) == OK
    assert module.sign(session, module.key_pair(session)[1])[0] == OK


def test_a_key_may_want_the_pin_at_each_use(module, session):
    assert module.login(session, CONTEXT_SPECIFIC, USER_PIN) == OPERATION_NOT_INITIALIZED
    _, private = module.make_key(session, b"careful", {ALWAYS_AUTHENTICATE: YES})

    assert module.sign(session, private)[0] == USER_NOT_LOGGED_IN
    module.C_SignInit(session, ctypes.byref(Mechanism(ECDSA)), private)
    assert module.login(session, CONTEXT_SPECIFIC, b"wrong") == PIN_INCORRECT
    assert module.login(session, CONTEXT_SPECIFIC, USER_PIN) == OK
    place, length = ctypes.create_string_buffer(128), ctypes.c_ulong(128)
    assert module.C_Sign(session, DIGEST, 32, place, ctypes.byref(length)) == OK
    assert length.value == 64


def test_keys_are_found_again_in_their_slots(module):
    for slot_id in (3, 1, 4):
        module.assign(slot_id)
        module.make_key(module.user_session(slot_id), b"%d" % slot_id)

    # SoftHSM2 now has its slots in another order.
    for _ in range(2):
        restart(module)
        for slot_id in (1, 3, 4):
            session = module.user_session(slot_id)
            assert {label for _, label, _ in module.find(session)} == {b"%d" % slot_id}
            assert module.sign(session, module.key_pair(session, b"%d" % slot_id)[1])[0] == OK


def test_it_says_what_it_is(module, luna):
    assert luna.is_stub
    assert module.token_info(1).manufacturer == b"luna_ext stand-in, not an HSM   "
    assert luna.slot(1).info.description == "luna_ext stand-in, keyring 1"


def test_mechanisms_are_the_backend_s(module):
    count = ctypes.c_ulong()
    assert module.C_GetMechanismList(1, None, ctypes.byref(count)) == OK
    assert count.value > 10
    mechanisms = (ctypes.c_ulong * count.value)()
    assert module.C_GetMechanismList(1, mechanisms, ctypes.byref(count)) == OK
    info = (ctypes.c_ulong * 3)()
    assert module.C_GetMechanismInfo(1, ECDSA, info) == OK
    assert ECDSA in mechanisms


def test_sessions_are_those_of_the_stand_in(module, session):
    _, private = module.key_pair(session)
    assert module.C_CloseSession(session) == OK
    assert module.sign(session, private)[0] == SESSION_HANDLE_INVALID
    assert module.sign(99, private)[0] == SESSION_HANDLE_INVALID


# ---- C_InitToken ----


def test_fresh_keyring_is_not_initialised_and_takes_any_pin(module):
    assert module.token_info(1).flags & (TOKEN_INITIALIZED | USER_PIN_INITIALIZED) == 0
    assert module.init_token(1, "new", b"any pin at all") == OK

    info = module.token_info(1)
    assert info.label == b"new".ljust(32)
    assert info.flags & (TOKEN_INITIALIZED | USER_PIN_INITIALIZED) == TOKEN_INITIALIZED
    assert module.get_slot_id("new", 1)[2][0] == 1
    assert module.init_token(1, "newer", b"another pin") == PIN_INCORRECT


def test_init_token_destroys_all_keys(module, session):
    assert module.init_token(1, "again", SO_PIN) == SESSION_EXISTS
    assert module.C_CloseSession(session) == OK

    module.assign(1, "again")

    session = module.user_session(1)
    assert module.find(session) == []
    module.make_key(session)
    assert module.sign(session, module.key_pair(session)[1])[0] == OK


def test_wrong_tries_of_the_security_officer_destroy_all_keys(module, session):
    for _ in range(9):
        assert module.set_pin(session, b"a wrong one", b"another-12") == PIN_INCORRECT
    assert module.C_Logout(session) == OK
    for _ in range(9):
        assert module.login(session, SO, b"wrong") == PIN_INCORRECT
    assert module.login(session, SO, b"wrong") == PIN_LOCKED
    assert module.sign(session, 1)[0] == SESSION_HANDLE_INVALID

    module.assign(1, "again")

    session = module.user_session(1)
    assert module.find(session) == []
    module.make_key(session)
    assert module.sign(session, module.key_pair(session)[1])[0] == OK


def test_a_running_process_notices_that_a_keyring_was_erased(module, session):
    with another_process() as ask:
        assert ask("(session := module.user_session(1))").isdigit()
        assert ask("module.sign(session, module.key_pair(session)[1])[0]") == "0"
        assert module.C_Logout(session) == OK
        assert [module.login(session, SO, b"wrong") for _ in range(10)][-1] == PIN_LOCKED
        module.assign(1, "again")
        module.make_key(module.user_session(1), b"new")

        assert ask("module.sign(session, 1)[0]") == str(SESSION_HANDLE_INVALID)
        assert ask("(session := module.user_session(1))").isdigit()
        assert ask("{label for _, label, _ in module.find(session)}") == "{b'new'}"
        assert ask("module.sign(session, module.key_pair(session, b'new')[1])[0]") == "0"


def test_a_changed_label_destroys_no_keys(module, cluster, session):
    cluster.switch("change_label", "on")
    assert module.C_Logout(session) == OK
    assert module.login(session, SO, SO_PIN) == OK
    assert module.CA_ChangeLabel(session, 1, b"other", 5) == OK
    assert module.C_CloseSession(session) == OK

    session = module.user_session(1)
    assert module.token_info(1).label == b"other".ljust(32)
    assert module.sign(session, module.key_pair(session)[1])[0] == OK


ELSEWHERE = """
import sys
from crypto_client import OK, SO_PIN, CryptoModule

module = CryptoModule()
assert module.C_Initialize(None) == OK
print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@contextlib.contextmanager
def another_process():
    """Gives a function that evaluates an expression there, where `module` is initialised."""
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    ) as process:

        def ask(expression):
            process.stdin.write(expression + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert process.stdout.readline() == "ready\n"
        yield ask
        process.stdin.close()
    assert process.returncode == 0


def test_a_running_process_sees_what_another_assigns(module):
    with another_process() as ask:
        for label in ("first", "second"):
            module.assign(1, label)
            session = module.user_session(1)
            module.make_key(session, label.encode())

            assert ask("module.token_info(1).label.strip().decode()") == label
            assert ask("(session := module.user_session(1))").isdigit()
            assert ask("[label for _, label, _ in module.find(session)]") == str(
                [label.encode()] * 2
            )
            pair = f"module.key_pair(session, {label.encode()!r})"
            assert ask(f"module.sign(session, {pair}[1])[0]") == "0"
            assert ask("module.make_key(session, b'of the other') and 1") == "1"
            assert len(module.find(session)) == 4
            assert ask("module.C_CloseSession(session)") == "0"
            assert module.C_CloseSession(session) == OK


def test_a_running_process_sees_that_a_pin_is_another(module):
    module.assign(1)
    with another_process() as ask:
        session = module.open_session(1)
        assert module.set_pin(session, USER_PIN, b"changed-1") == OK

        assert ask("(session := module.open_session(1))").isdigit()
        assert ask("module.login(session, 1, b'user-pin-1')") == str(PIN_INCORRECT)
        assert ask("module.login(session, 1, b'changed-1')") == "0"
        assert module.login(session, USER, USER_PIN) == PIN_INCORRECT


# A process that is killed between the two leaves it so: C_InitToken takes the user's PIN off.
HALF_MADE = """
import sys
from pkcs11_client import OK, Module

class Backend(Module):
    def __init__(self, path):
        import ctypes
        self.library = ctypes.CDLL(path)

backend = Backend(sys.argv[1])
assert backend.C_Initialize(None) == OK
import ctypes
slots, count = (ctypes.c_ulong * 9)(), ctypes.c_ulong(9)
assert backend.C_GetSlotList(1, slots, ctypes.byref(count)) == OK
for slot in slots[: count.value]:
    label = backend.token_info(slot).label
    if label.strip():
        assert backend.init_token(slot, label.decode(), b"luna_ext stand-in") == OK
"""


def test_twins_that_were_half_made_are_completed(module, cluster):
    module.assign(2)
    assert module.C_Finalize(None) == OK
    configuration = f"{cluster.path}.tokens/softhsm2.conf"
    done = run(HALF_MADE, SOFTHSM, SOFTHSM2_CONF=configuration)
    assert (done.returncode, done.stderr) == (0, "")

    assert module.C_Initialize(None) == OK

    module.make_key(module.user_session(2))


def test_damaged_twins_are_replaced_by_empty_ones(module, cluster):
    for slot_id in (1, 2):
        module.assign(slot_id)
        module.make_key(module.user_session(slot_id))
    assert module.C_Finalize(None) == OK
    # SoftHSM2 writes this file at each login; a process may be killed meanwhile.
    for file in Path(f"{cluster.path}.tokens").glob("*/token.object"):
        os.truncate(file, 100)

    assert module.C_Initialize(None) == OK

    for slot_id in (1, 2):
        session = module.user_session(slot_id)
        assert module.find(session) == []
        module.make_key(session)


# ---- faults, latencies, the log, lost connections ----


def test_fault_strikes_in_place_of_the_backend(module, session, cluster):
    _, private = module.key_pair(session)
    cluster.fault("C_SignInit", DEVICE_ERROR, times=1)

    assert module.sign(session, private)[0] == DEVICE_ERROR
    assert module.sign(session, private)[0] == OK


def test_lost_reply_comes_after_the_effect(module, session, cluster):
    before = len(module.find(session))
    cluster.fault("C_GenerateKeyPair", DEVICE_ERROR, times=1, lost_reply=True)

    with pytest.raises(AssertionError, match="0x30"):
        module.make_key(session, b"second")
    assert len(module.find(session)) == before + 2


def test_latency_is_added(module, session, cluster):
    _, private = module.key_pair(session)
    cluster.latency(0.2, "C_Sign")

    start = time.monotonic()
    assert module.sign(session, private)[0] == OK
    assert time.monotonic() - start >= 0.2


def test_calls_are_logged_with_the_slot_of_their_session(module, session, cluster):
    _, private = module.key_pair(session)
    module.sign(session, private)
    module.sign(session, 4711)

    signing = [call for call in cluster.log() if call.function.startswith("C_Sign")]
    assert [(call.function, call.slot_id, call.rv == OK) for call in signing] == [
        ("C_SignInit", 1, True),
        ("C_Sign", 1, True),
        ("C_SignInit", 1, False),
    ]


def test_lost_connection_ends_all_calls_until_the_module_is_initialised_anew(
    module, session, cluster
):
    _, private = module.key_pair(session)
    assert module.CA_LockClusteredSlot(1) == OK

    cluster.disconnect(os.getpid())

    assert module.sign(session, private)[0] == DEVICE_ERROR
    assert module.C_GenerateRandom(session, ctypes.create_string_buffer(8), 8) == DEVICE_ERROR
    assert cluster.tokens()[0].owner is None
    restart(module)
    session = module.user_session(1)
    assert module.sign(session, module.key_pair(session)[1])[0] == OK


# ---- forks ----


def sign_anew(module):
    """In a forked child; true if all is well."""
    if module.C_OpenSession(1, 6, None, None, ctypes.byref(ctypes.c_ulong())) != 0x190:
        return False
    if module.C_Initialize(None) != OK:
        return False
    session = module.user_session(1)
    public, private = module.key_pair(session)
    rv, signature = module.sign(session, private)
    return (rv, module.verify(session, public, signature)) == (OK, OK) and (
        module.C_Finalize(None) == OK
    )


def test_forked_child_initialises_anew_and_signs(module, session, in_child):
    assert in_child(lambda: sign_anew(module)) == 0
    assert module.sign(session, module.key_pair(session)[1])[0] == OK
    assert in_child(lambda: in_child(lambda: sign_anew(module)) == 0 and sign_anew(module)) == 0


def test_forks_beside_threads_that_are_inside(module, session, in_child):
    stop = threading.Event()
    answers = set()

    def work():
        own = module.open_session(1)
        _, private = module.key_pair(own)
        while not stop.is_set():
            answers.add(module.sign(own, private)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        codes = [in_child(lambda: sign_anew(module)) for _ in range(10)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (codes, answers) == ([0] * 10, {OK})


# ---- several processes ----

SIGNER = """
import os
import sys

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism

from luna_ext.stub import STATE_VARIABLE, Cluster, library_path

PINS = {"so_pin": "officer-1", "user_pin": "user-pin-1"}
number, rounds = sys.argv[1:]
CURVE = pkcs11.util.ec.encode_named_curve_parameters("secp256r1")

def ec_keys(session):
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: CURVE}, local=True
    )
    return parameters.generate_keypair(store=True, label="ec")

def sign(keys, mechanism, text):
    public, private = keys
    signature = private.sign(text, mechanism=mechanism)
    return [public.verify(each, signature, mechanism=mechanism) for each in (text, text[::-1])]

client = pkcs11.lib(library_path())
with Cluster(os.environ[STATE_VARIABLE]).library() as luna:
    for index in range(int(rounds)):
        label = f"token-{number}-{index}"
        with luna.claim("cluster-1") as token:
            assigned = token.assign(label, **PINS)
        with assigned:
            found = client.get_token(token_label=label)
            assert found.slot.slot_id == assigned.slot.slot_id
            with found.open(rw=True, user_pin="user-pin-1") as session:
                rsa = session.generate_keypair(KeyType.RSA, 1024, store=True, label="rsa")
                ec = ec_keys(session)
                for _ in range(5):
                    text = os.urandom(32)
                    assert sign(rsa, Mechanism.SHA256_RSA_PKCS, text) == [True, False]
                    assert sign(ec, Mechanism.ECDSA, text) == [True, False]
        # All processes use this one token, each with the keys of the others as well.
        with luna.token("shared"):
            found = client.get_token(token_label="shared")
            with found.open(rw=True, user_pin="user-pin-1") as session:
                ec_keys(session)
                publics = session.get_objects({Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY})
                assert len(list(publics)) > index
                assert sign(ec_keys(session), Mechanism.ECDSA, os.urandom(32)) == [True, False]
print("done")
"""


def assign_elsewhere(label):
    module = CryptoModule()
    assert module.C_Initialize(None) == OK
    module.assign(1, label)
    assert module.C_Finalize(None) == OK


def test_python_pkcs11_signs_with_the_keys_of_an_assigned_token(cluster):
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (PyPI: python-pkcs11)")
    assign_elsewhere("shared")

    done = run(SIGNER, 1, 1)

    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    used = {call.function: call.rv for call in cluster.log()}
    assert {used[name] for name in ("C_GenerateKeyPair", "C_Sign", "C_VerifyInit")} == {OK}


@pytest.mark.luna_cluster(backend=SOFTHSM, keyrings=30)
def test_four_processes_claim_assign_and_sign_without_an_error(cluster):
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (PyPI: python-pkcs11)")
    assign_elsewhere("shared")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SIGNER, str(number), "5"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    ended = [process.communicate(timeout=100) for process in processes]

    assert ended == [("done\n", "")] * 4
    assert sum(token.label != token.original_label for token in cluster.tokens()) == 21
    # python-pkcs11 asks for attributes that a key lacks, and luna_ext finds the module initialised.
    allowed = {"SIGNATURE_INVALID", "ATTRIBUTE_TYPE_INVALID", "CRYPTOKI_ALREADY_INITIALIZED"}
    codes = {call.rv_name for call in cluster.log()}
    assert codes <= {"CKR_OK", *(f"CKR_{name}" for name in allowed)}


# ---- what cannot be a backend, and where its files are ----

INITIALISING = """
import ctypes, sys

rv = ctypes.CDLL(sys.argv[1]).C_Initialize(None)
print(hex(rv))
"""


def refusal(backend, **environment):
    done = run(
        INITIALISING,
        library_path(),
        LUNA_STUB_TRACE="1",
        **{BACKEND_VARIABLE: str(backend), **environment},
    )
    assert (done.returncode, done.stdout) == (0, "0x30\n")
    return done.stderr


def test_a_backend_that_cannot_be_used_is_explained(cluster, tmp_path):
    prefix = "luna_ext stand-in: C_Initialize: LUNA_STUB_BACKEND: "
    text = tmp_path / "text.so"
    text.write_text("no module")
    assert refusal("/nowhere.so").startswith(f"{prefix}/nowhere.so: ")
    assert refusal(text).startswith(f"{prefix}{text}: ")
    assert "C_GetFunctionList" in refusal(next(Path("/lib").rglob("libm.so.6")))
    assert refusal(library_path()) == f"{prefix}this is the stand-in itself\n"


def test_a_path_that_softhsm_cannot_be_told_is_explained(tmp_path):
    with Cluster(tmp_path / "no#1") as cluster:
        assert "has a #" in refusal(SOFTHSM, **{STATE_VARIABLE: cluster.path})


IN_USE = """
import ctypes, sys

assert ctypes.CDLL(sys.argv[2]).C_Initialize(None) == 0
rv = ctypes.CDLL(sys.argv[1]).C_Initialize(None)
print(hex(rv), ctypes.CDLL(sys.argv[2]).C_Finalize(None))
"""


def test_a_module_that_is_in_use_is_left_alone(cluster, tmp_path):
    (tmp_path / "tokens").mkdir()
    own = tmp_path / "own.conf"
    own.write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    done = run(IN_USE, library_path(), SOFTHSM, SOFTHSM2_CONF=str(own), LUNA_STUB_TRACE="1")
    assert (done.returncode, done.stdout) == (0, "0x30 0\n")
    assert "another part of this process uses the module already" in done.stderr


def test_the_user_s_own_tokens_are_left_alone(module, cluster, tmp_path, monkeypatch):
    assert module.C_Finalize(None) == OK
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "own.conf"))

    assert module.C_Initialize(None) == OK

    module.assign(1)
    module.make_key(module.user_session(1))
    assert os.listdir(tmp_path) == []
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    assert getenv(b"SOFTHSM2_CONF") == os.fsencode(tmp_path / "own.conf")
    beside = Path(f"{cluster.path}.tokens")
    assert beside.stat().st_mode & 0o777 == 0o700
    assert sum(each.is_dir() for each in beside.iterdir()) == len(cluster.tokens())


def test_relative_paths_and_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Cluster("cluster", keyrings=1)
    monkeypatch.setenv(STATE_VARIABLE, "cluster")
    monkeypatch.setenv(BACKEND_VARIABLE, SOFTHSM)
    module = CryptoModule()
    assert module.C_Initialize(None) == OK
    monkeypatch.chdir("/")
    try:
        module.assign(1)
        session = module.user_session(1)
        module.make_key(session)
        assert len(module.find(session)) == 2
    finally:
        assert module.C_Finalize(None) == OK
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cluster", "cluster.tokens"]


# ---- from Python ----


@pytest.mark.usefixtures("no_backend")
def test_cluster_sets_the_variable_and_sets_it_back():
    with Cluster(backend=SOFTHSM) as cluster:
        assert cluster.backend == SOFTHSM
        assert BACKEND_VARIABLE not in os.environ
        for _ in range(2):
            with cluster.library():
                assert os.environ[BACKEND_VARIABLE] == SOFTHSM
    assert BACKEND_VARIABLE not in os.environ


@pytest.fixture
def no_backend(monkeypatch):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


@pytest.mark.usefixtures("no_backend")
def test_cluster_needs_a_module_that_exists():
    with pytest.raises(FileNotFoundError, match=r"no such PKCS #11 module.*/nowhere\.so"):
        Cluster(backend="/nowhere.so")


def test_cluster_without_a_backend_takes_the_environment_s(module):
    session = module.open_session(1)
    assert module.C_DigestInit(session, None) != FUNCTION_NOT_SUPPORTED


def test_library_of_a_backend_that_is_no_module_is_a_device_error(tmp_path):
    text = tmp_path / "text.so"
    text.write_text("no module")
    with (
        Cluster(backend=text) as cluster,
        pytest.raises(luna_ext.DeviceError, match="CKR_DEVICE_ERROR"),
    ):
        cluster.library()
