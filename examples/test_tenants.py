"""Tests of tenants.py on the stand-in: the fixtures `luna` and `luna_cluster` come with luna_ext.

`luna` is an open Library on a fresh cluster of 8 keyrings, `luna_cluster` is that cluster, to be
looked at and to be made to misbehave.
"""

import os

import pytest
import tenants

import luna_ext
import luna_ext.stub

SO_PIN = "so-pin-of-the-test"


def test_tenant_gets_a_keyring_of_its_own(luna, luna_cluster):
    alice = tenants.add_tenant(luna, luna_cluster.cluster_id, "alice", SO_PIN)
    bob = tenants.add_tenant(luna, luna_cluster.cluster_id, "bob", SO_PIN)

    labels = {token.slot_id: token.label for token in luna_cluster.tokens()}
    assert (labels[alice], labels[bob]) == ("alice", "bob")
    assert all(token.owner is None for token in luna_cluster.tokens()), "nothing stays locked"


@pytest.mark.luna_cluster(keyrings=1)
def test_operator_hears_that_the_keyrings_have_run_out(luna, luna_cluster):
    tenants.add_tenant(luna, luna_cluster.cluster_id, "alice", SO_PIN)

    with pytest.raises(tenants.TenantError, match="no keyring is left for 'bob'"):
        tenants.add_tenant(luna, luna_cluster.cluster_id, "bob", SO_PIN)


def test_keyring_is_locked_while_it_is_used(luna, luna_cluster):
    slot_id = tenants.add_tenant(luna, luna_cluster.cluster_id, "alice", SO_PIN)

    def owner(slot):
        return {token.slot_id: token.owner for token in luna_cluster.tokens()}[slot]

    assert tenants.with_keyring(luna, "alice", owner) == os.getpid()
    assert owner(slot_id) is None


def test_operator_hears_of_a_slow_cluster_and_nothing_stays_locked(luna, luna_cluster):
    tenants.add_tenant(luna, luna_cluster.cluster_id, "alice", SO_PIN)
    luna_cluster.latency(0.5, "CA_LockClusteredSlot")

    with pytest.raises(tenants.TenantError, match="busy"):
        tenants.with_keyring(luna, "alice", lambda slot_id: None, patience=0.05)
    luna.close()

    assert all(token.owner is None for token in luna_cluster.tokens())


def test_work_is_not_trusted_when_the_connection_was_lost_in_its_midst(luna, luna_cluster):
    tenants.add_tenant(luna, luna_cluster.cluster_id, "alice", SO_PIN)

    with pytest.raises(luna_ext.LockLostError):
        tenants.with_keyring(luna, "alice", lambda slot_id: luna_cluster.disconnect(os.getpid()))


def test_every_lock_is_unlocked_even_if_one_reply_is_lost(luna, luna_cluster):
    slot_id = tenants.add_tenant(luna, luna_cluster.cluster_id, "alice", SO_PIN)
    luna_cluster.fault("CA_UnlockClusteredSlot", 0x30, times=1, lost_reply=True)

    with pytest.raises(luna_ext.LockReleaseError):
        tenants.with_keyring(luna, "alice", lambda slot_id: None)

    calls = [
        (call.function, call.rv_name)
        for call in luna_cluster.log()
        if call.slot_id == slot_id and call.function.startswith("CA_")
    ]
    assert calls == [
        ("CA_GetUnassignedSlot", "CKR_OK"),
        ("CA_UnlockClusteredSlot", "CKR_OK"),
        ("CA_LockClusteredSlot", "CKR_OK"),
        ("CA_UnlockClusteredSlot", "CKR_DEVICE_ERROR"),
    ]


# main() finds its client library by itself. Here the environment says that it is the stand-in,
# which warns that it is no HSM.
@pytest.mark.filterwarnings("ignore:.* is the stand-in:RuntimeWarning")
def test_command_line(luna_cluster, monkeypatch, capsys):
    monkeypatch.setenv("LUNA_EXT_LIBRARY", luna_ext.stub.library_path())
    monkeypatch.setattr("getpass.getpass", lambda prompt: SO_PIN)

    assert tenants.main([luna_cluster.cluster_id, "add", "alice"]) == 0
    assert tenants.main([luna_cluster.cluster_id, "sign", "alice", "mallory"]) == 1

    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("alice: slot ")
    assert said.out.splitlines()[1].startswith("signing in slot ")
    assert said.err == "mallory: there is no tenant 'mallory'\n"
