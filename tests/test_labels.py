"""Labels: each valid one comes back from the device unchanged, each other one is refused before."""

import ctypes
from contextlib import contextmanager

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import entry_of

import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster

LIMIT = 32
SO_PIN = "12345678"

# name: a label of that script; the bytes are counted below.
SCRIPTS = {
    "latin": "Schlüssel für Zürich",
    "greek": "κλειδί",
    "cyrillic": "ключ оплаты",
    "hebrew": "מפתח",
    "arabic": "مفتاح الدفع",
    "devanagari": "कुंजी",
    "cjk": "支払いの鍵",
    "emoji": "🔑👩\u200d💻",
    "combining": "e\u0301 is not é",
    "blanks inside": "a  b\tc\u00a0",
}
EXACTLY_32_BYTES = {
    "ascii": "a" * 32,
    "two bytes each": "й" * 16,
    "three bytes each": "鍵" * 10 + "ab",
    "four bytes each": "🔑" * 8,
}
# Each has at most 32 characters but more than 32 bytes; the last character lies across the limit.
TOO_LONG = {
    "33 of ascii": "a" * 33,
    "two bytes across": "a" * 31 + "é",
    "three bytes across": "a" * 30 + "鍵",
    "four bytes across": "a" * 29 + "🔑",
    "32 characters of two bytes": "й" * 32,
}
UNSTORABLE = {
    **TOO_LONG,
    "empty": "",
    "NUL": "\0",
    "NUL inside": "pay\0ments",
    "NUL at the end": "payments\0",
    "trailing blank": "payments ",
    "blanks only": "   ",
}
OF_ANOTHER_TYPE = {
    "bytes": b"keyring1",
    "bytearray": bytearray(b"keyring1"),
    "None": None,
    "int": 1,
    "list": ["keyring1"],
}


def by_name(cases):
    return [pytest.param(value, id=name) for name, value in cases.items()]


def fit(text):
    """As many of the leading characters as fit, without what the padding would hide."""
    while len(text.encode()) > LIMIT:
        text = text[:-1]
    return text.rstrip(" ")


LABELS = (
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=LIMIT)
    .map(fit)
    .filter(bool)
)


def assign(luna, label):
    with luna.claim("cluster-1") as token:
        return token.assign(label, so_pin=SO_PIN)


@contextmanager
def one_keyring():
    """A cluster for one example of a property; fixtures would be shared by all of them."""
    with pytest.MonkeyPatch.context() as environment, Cluster(keyrings=1) as cluster:
        environment.setenv(STATE_VARIABLE, cluster.path)
        with cluster.library() as luna:
            yield cluster, luna


def call_with(luna, function):
    """The call that takes the label, ready to be made."""
    return {"find": luna.find, "token": luna.token}[function]


# ---- to the device and back ----


@settings(deadline=None)  # files are made, which a busy machine may take its time for
@given(LABELS)
@example("a" * 32)
@example("🔑" * 8)
@example(" leading blank")
@example("\n")
@example("\x7f\x80\ufeff")
@example("\U0010ffff")
def test_any_valid_label_survives_the_way_down_and_back(label):
    assume(label != "keyring1")
    with one_keyring() as (cluster, luna):
        assigned = assign(luna, label)
        found = luna.token(label)
        listed = luna.tokens()

        assert assigned.label == label
        assert found.label == label
        assert found.info.label == label
        assert found.slot.slot_id == 1
        assert [token.label for token in listed] == [label]
        assert [token.label for token in cluster.tokens()] == [label]


@settings(deadline=None)
@given(LABELS, LABELS)
def test_a_label_finds_no_token_with_another_one(label, other):
    assume(label != "keyring1")
    assume(label != other)
    with one_keyring() as (_, luna):
        assign(luna, label)

        assert luna.find(other) == []


@pytest.mark.parametrize("label", [*by_name(SCRIPTS), *by_name(EXACTLY_32_BYTES)])
def test_label_of_this_script_survives(luna, cluster, label):
    token = assign(luna, label)

    assert luna.token(label).label == label
    assert luna.token(label).slot is token.slot
    assert token.slot.token_info.label == label
    assert label in [stored.label for stored in cluster.tokens()]


@pytest.mark.parametrize("label", by_name(EXACTLY_32_BYTES))
def test_longest_label_is_32_bytes_on_the_device(label):
    assert len(label.encode()) == LIMIT


@pytest.mark.parametrize("label", by_name(TOO_LONG))
def test_too_long_label_is_cut_nowhere(luna, label):
    assign(luna, fit(label))

    with pytest.raises(ValueError, match=f"is {len(label.encode())} bytes of UTF-8; at most 32"):
        luna.find(label)


def test_token_with_that_label_is_locked_by_its_label(luna, cluster):
    assign(luna, "支払いの鍵")

    with luna.token("支払いの鍵") as token:
        locked = [stored.label for stored in cluster.tokens() if stored.owner is not None]
        token.ensure_held()

    assert locked == ["支払いの鍵"]


# ---- what is refused, before the device is asked ----


@pytest.mark.parametrize("function", ["find", "token"])
@pytest.mark.parametrize("label", by_name(UNSTORABLE))
def test_search_refuses_unstorable_label_without_a_device_call(luna, label, function):
    before = luna.stats()

    with pytest.raises(ValueError, match=r"\b32\b"):
        call_with(luna, function)(label)

    assert luna.stats() == before


@pytest.mark.parametrize("function", ["find", "token"])
@pytest.mark.parametrize("label", by_name(OF_ANOTHER_TYPE))
def test_search_refuses_label_of_another_type_without_a_device_call(luna, label, function):
    before = luna.stats()

    with pytest.raises(TypeError, match=rf"\b32\b.*not {type(label).__name__}"):
        call_with(luna, function)(label)

    assert luna.stats() == before


@pytest.mark.parametrize("label", by_name(UNSTORABLE))
def test_assign_refuses_unstorable_label_without_a_device_call(luna, cluster, label):
    with luna.claim("cluster-1") as token:
        before = luna.stats()

        with pytest.raises(ValueError, match=r"\b32\b"):
            token.assign(label, so_pin=SO_PIN)

        assert luna.stats() == before
    assert all(stored.label == stored.original_label for stored in cluster.tokens())


@pytest.mark.parametrize("label", by_name(OF_ANOTHER_TYPE))
def test_assign_refuses_label_of_another_type_without_a_device_call(luna, cluster, label):
    with luna.claim("cluster-1") as token:
        before = luna.stats()

        with pytest.raises(TypeError, match=rf"\b32\b.*not {type(label).__name__}"):
            token.assign(label, so_pin=SO_PIN)

        assert luna.stats() == before
    assert all(stored.label == stored.original_label for stored in cluster.tokens())


@pytest.mark.parametrize("label", ["\ud800", "pay\udcffments", "\udce2\udc82\udcac"])
def test_assign_refuses_lone_surrogates_without_a_device_call(luna, cluster, label):
    with luna.claim("cluster-1") as token:
        before = luna.stats()

        with pytest.raises(ValueError, match=r"\b32\b"):
            token.assign(label, so_pin=SO_PIN)

        assert luna.stats() == before
    assert all(stored.label == stored.original_label for stored in cluster.tokens())


@pytest.mark.parametrize("function", ["find", "token"])
def test_search_refuses_surrogates_that_stand_for_no_byte(luna, function):
    before = luna.stats()

    with pytest.raises(ValueError, match=r"\b32\b"):
        call_with(luna, function)("\ud800")

    assert luna.stats() == before


def test_refused_label_leaves_the_claim_usable(luna):
    with luna.claim("cluster-1") as token:
        with pytest.raises(ValueError, match="at most 32"):
            token.assign("a" * 33, so_pin=SO_PIN)
        token.assign("a" * 32, so_pin=SO_PIN)

    assert len(luna.find("a" * 32)) == 1


# ---- labels that another application wrote ----


def write_label(luna, slot_id, raw_label):
    """C_InitToken as another application in this process might call it."""
    init_token = ctypes.CDLL(luna.path).C_InitToken
    init_token.restype = ctypes.c_ulong
    init_token.argtypes = [ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
    assert init_token(slot_id, b"12345678", 8, raw_label) == 0


def test_label_that_is_no_utf_8_is_shown_with_surrogates_and_found_by_them(luna):
    write_label(luna, 3, b"caf\xe9".ljust(LIMIT))

    (listed,) = [token for token in luna.tokens() if token.slot.slot_id == 3]
    found = luna.token(listed.label)

    assert listed.label == "caf\udce9"
    assert found.slot is listed.slot
    with found:
        found.ensure_held()


def test_label_padded_with_nul_can_be_locked_by_the_token_from_the_list(luna):
    write_label(luna, 3, b"foreign".ljust(LIMIT, b"\0"))

    (token,) = [token for token in luna.tokens() if token.slot.slot_id == 3]

    assert token.label == "foreign"
    with token:
        token.ensure_held()
    assert not token.slot.locked()


PADDINGS = {
    "NULs": lambda raw: raw.rstrip(b" ").ljust(LIMIT, b"\0"),
    "one NUL at the end": lambda raw: raw[:-1] + b"\0",
    "one NUL, then blanks": lambda raw: (raw.rstrip(b" ") + b"\0").ljust(LIMIT),
    "a NUL, then rubbish": lambda raw: (raw.rstrip(b" ") + b"\0").ljust(LIMIT, b"x"),
}


@pytest.fixture(params=PADDINGS.values(), ids=PADDINGS)
def padded(request, luna, monkeypatch):
    """A device that answers C_GetTokenInfo with labels that are padded in this way."""
    word = ctypes.c_ulong
    entry = entry_of(luna, 6)
    get_token_info = ctypes.CFUNCTYPE(word, word, ctypes.POINTER(ctypes.c_char))(entry.value)

    @ctypes.CFUNCTYPE(word, word, ctypes.POINTER(ctypes.c_char))
    def padding(slot_id, info):
        rv = get_token_info(slot_id, info)
        if rv == 0:
            ctypes.memmove(info, request.param(info[:LIMIT]), LIMIT)
        return rv

    monkeypatch.setattr(entry, "value", ctypes.cast(padding, ctypes.c_void_p).value)
    # Kept as long as the client may call it.
    yield padding
    monkeypatch.undo()


@pytest.mark.usefixtures("padded")
def test_a_token_is_locked_by_its_label_however_it_is_padded(luna):
    with luna.token("keyring2") as token:
        token.ensure_held()
        assert token.info.label == token.label == "keyring2"
    with luna.token("keyring2").lock(timeout=20) as token:
        assert token.slot.slot_id == 2


@pytest.mark.usefixtures("padded", "regrant")
def test_a_claimed_token_is_assigned_however_its_label_is_padded(luna):
    with luna.claim("cluster-1") as token:
        assigned = token.assign("payments-01", so_pin=SO_PIN)
        assigned.ensure_held()
    assert luna.token("payments-01").info.label == "payments-01"


@pytest.mark.usefixtures("padded")
def test_a_list_has_labels_without_their_padding(luna):
    assert [token.label for token in luna.tokens()] == [f"keyring{n}" for n in range(1, 9)]


@pytest.mark.usefixtures("padded")
def test_another_label_is_noticed_however_it_is_padded(luna):
    token = luna.token("keyring3")
    write_label(luna, 3, b"other".ljust(LIMIT))
    with pytest.raises(luna_ext.TokenChangedError, match="'other' now, not 'keyring3'"), token:
        pass


def test_not_found_says_which_label(luna):
    with pytest.raises(luna_ext.TokenNotFoundError, match="'支払いの鍵'"):
        luna.token("支払いの鍵")
