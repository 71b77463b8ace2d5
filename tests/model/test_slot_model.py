"""The rules for one slot are right in every order of events, and none of them can be left out."""

import pytest
from slot_model import ALL_RULES, DEVICES, GIVES_ONCE, GRANTS_AGAIN, Device, Rule, search

# What goes wrong first without the rule, and on devices of which kind.
NEEDED = {
    Rule.ONE_HOLDER: ("two holders in A", GRANTS_AGAIN),
    Rule.CLAIM_NUMBER: ("a holder without the device's lock", GRANTS_AGAIN),
    Rule.LOCK_NUMBER: ("a holder without the device's lock", GRANTS_AGAIN),
    Rule.AFTER_UNLOCK: ("a holder without the device's lock", GRANTS_AGAIN),
    Rule.PROMPT: ("the device is taken for another kind", GRANTS_AGAIN),
    Rule.LATE_GRANT: ("left locked", GRANTS_AGAIN),
    Rule.OWED: ("left locked in doubt", GRANTS_AGAIN),
    Rule.ASKED_SINCE: ("left locked in doubt", GRANTS_AGAIN),
    Rule.DOUBT: ("A unlocks nothing", GRANTS_AGAIN),
    Rule.SETTLED: ("stuck", GIVES_ONCE),
    Rule.ONLY_ONCE: ("A unlocks nothing", GRANTS_AGAIN),
    Rule.NO_SECOND_UNLOCK: ("A unlocks nothing", GRANTS_AGAIN),
    Rule.ERROR_SHOWS_NOTHING: ("the device is taken for another kind", GRANTS_AGAIN),
    Rule.TRIAL_FIRST: ("the device is taken for another kind", GIVES_ONCE),
    Rule.TRIAL_CROSSED: ("a holder without the device's lock", GRANTS_AGAIN),
    Rule.TRIAL_ENDS: ("the device is taken for another kind", GIVES_ONCE),
    Rule.TRIAL_SENT: ("the device is taken for another kind", GRANTS_AGAIN),
    Rule.HANDED_FIRST: ("a holder without the device's lock", GRANTS_AGAIN),
    Rule.BACK: ("the device is taken for another kind", GRANTS_AGAIN),
}


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_rules_hold_for_two_threads_and_a_claim(device):
    result = search(device, threads=2, claims=1)

    assert result.wrong == {}
    assert result.states > 1000


# These searches end with the first fault, and keep a processor busy until then.
@pytest.mark.limit(4)
@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name)
def test_without_any_one_rule_something_goes_wrong(rule):
    wrong, kind = NEEDED[rule]
    devices = [device for device in DEVICES if device.kind == kind]

    found = [search(device, ALL_RULES - {rule}, first=True).wrong for device in devices]

    assert any(wrong in things for things in found)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_kind_of_the_device_is_found_out_but_where_an_error_answers_a_second_lock(device):
    learned = search(device, threads=1, claims=1, others=False).kinds

    assert learned == {""} | ({device.kind} if device.relock != "error" else set())


def test_rules_rest_on_claims_being_given_what_is_held_only_where_a_second_lock_is_granted():
    found = search(Device("wait", True, "wait"), first=True).wrong

    assert found


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_grant_too_many_stays_only_where_grants_are_counted(device):
    """A call on trial is enough: nothing tells such a device from one that does not count."""
    steps = search(device, threads=1, claims=0, losses=False).spare

    assert bool(steps) == device.counts
    assert ("before its unlock, a thread makes a lock call on trial" in steps) == device.counts
