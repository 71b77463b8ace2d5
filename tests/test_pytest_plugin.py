"""The fixtures that luna_ext gives to other projects, in a project of their own."""

from pathlib import Path

import pytest

from luna_ext.stub import BACKEND_VARIABLE, STATE_VARIABLE

pytest_plugins = ["pytester"]

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture(autouse=True)
def stand_in_is_allowed(monkeypatch):
    monkeypatch.delenv("LUNA_EXT_FORBID_STUB", raising=False)


def run(pytester, tests, *options):
    """Run pytest on these tests in a project that has nothing but them."""
    pytester.makepyfile(tests)
    # Without its configuration pytest-asyncio warns.
    alone = ("-p", "no:asyncio", "--strict-markers", "-W", "error")
    return pytester.runpytest_subprocess(*alone, *options)


def test_fixtures_need_nothing_but_the_installed_package(pytester):
    result = run(
        pytester,
        """
        def test_open_library_on_a_cluster(luna, luna_cluster):
            with luna.slot(1):
                assert [token.slot_id for token in luna_cluster.tokens() if token.owner] == [1]
            assert luna.is_stub
            assert len(luna.slots()) == 8
        """,
    )

    result.assert_outcomes(passed=1)
    assert "warning" not in result.stdout.str()


def test_each_test_has_a_fresh_cluster(pytester):
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("time", [1, 2])
        def test_nothing_is_left_of_the_test_before(luna, luna_cluster, time):
            assert luna_cluster.tokens()[0].label == "keyring1"
            assert [call.function for call in luna_cluster.log()] == ["C_Initialize"]
            with luna.claim(luna_cluster.cluster_id) as token:
                token.assign("payments", so_pin="12345678")
            luna_cluster.switch("contention", "error")
            luna_cluster.fault("CA_LockClusteredSlot", 0x30)
        """,
    )

    result.assert_outcomes(passed=2)


def test_marker_says_what_kind_of_cluster(pytester):
    result = run(
        pytester,
        """
        import pytest

        pytestmark = pytest.mark.luna_cluster(keyrings=2)

        @pytest.mark.luna_cluster(keyrings=3, label="payments-", cluster_id="other")
        def test_nearest_marker_counts(luna, luna_cluster):
            assert luna_cluster.cluster_id == "other"
            assert [token.label for token in luna.tokens()] == [
                "payments-1", "payments-2", "payments-3"
            ]

        @pytest.mark.luna_cluster(cluster_id="of-the-class", first_slot=7)
        class TestMerged:
            @pytest.mark.luna_cluster(first_slot=9)
            def test_what_each_says_counts(self, luna, luna_cluster):
                assert luna_cluster.cluster_id == "of-the-class"
                assert [slot.slot_id for slot in luna.slots()] == [9, 10]

        def test_marker_of_the_module(luna):
            assert len(luna.slots()) == 2
        """,
    )

    result.assert_outcomes(passed=3)


def test_marker_with_a_wrong_option_is_one_line_that_names_it(pytester):
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.luna_cluster(keyring=3)
        def test_never_runs(luna):
            pass
        """,
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup*",
            "the marker luna_cluster has no option 'keyring': it takes path, *",
            "=*",
        ],
        consecutive=True,
    )


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("keyrings=0", "keyrings is a whole number from 1 to 3500, not 0"),
        ("keyrings='x'", "keyrings is a whole number, not 'x'"),
        ("password='short'", "password has 8 to 255 bytes, not 5"),
        ("backend='/nonexistent.so'", "*/nonexistent.so*"),
    ],
)
def test_a_wrong_value_in_a_marker_is_one_line(pytester, option, says):
    result = run(
        pytester,
        f"""
        import pytest

        @pytest.mark.luna_cluster({option})
        def test_never_runs(luna):
            pass
        """,
    )

    result.assert_outcomes(errors=1)
    lines = ["*ERROR at setup*", f"the marker luna_cluster: {says}", "=*"]
    result.stdout.fnmatch_lines(lines, consecutive=True)


def test_marker_takes_no_path(pytester):
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.luna_cluster("cluster")
        def test_never_runs(luna):
            pass
        """,
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*luna_cluster*keyword*"])


def test_cluster_goes_after_the_test_and_the_environment_is_restored(pytester):
    result = run(
        pytester,
        f"""
        import os

        paths = []

        def test_first(luna_cluster):
            paths.append(luna_cluster.path)
            assert os.environ[{STATE_VARIABLE!r}] == luna_cluster.path

        def test_second():
            assert {STATE_VARIABLE!r} not in os.environ
            assert not os.path.exists(paths[0])
        """,
    )

    result.assert_outcomes(passed=2)


def test_a_luna_beside_that_of_the_module_is_one_line(pytester):
    result = run(
        pytester,
        """
        def test_of_the_module(module_luna):
            pass

        def test_of_its_own(luna):
            pass
        """,
    )

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*Beside module_luna or session_luna there is no luna*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(("scope", "keyrings"), [("module", 3), ("session", 8)])
def test_cluster_of_a_module_or_a_session_lasts_so_long(pytester, scope, keyrings):
    """The module's marker says nothing of a session's. A lock that is left is found at the end."""
    result = run(
        pytester,
        f"""
        import pytest

        pytestmark = pytest.mark.luna_cluster(keyrings=3)

        def test_first({scope}_luna, {scope}_luna_cluster):
            assert len({scope}_luna_cluster.tokens()) == {keyrings}
            {scope}_luna.slot(1).acquire()

        def test_second({scope}_luna, {scope}_luna_cluster):
            assert {scope}_luna.slot(1).locked()
            assert len([call for call in {scope}_luna_cluster.log() if call.slot_id == 1]) > 0
        """,
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_second*", "slot 1 was still locked, at *"], consecutive=True
    )


@pytest.mark.skipif(not SOFTHSM.exists(), reason="SoftHSM2 is not installed (Debian: softhsm2)")
def test_backend_of_one_test_is_not_that_of_the_next(pytester):
    result = run(
        pytester,
        f"""
        import os
        import pytest

        @pytest.mark.luna_cluster(backend={str(SOFTHSM)!r})
        def test_has_one(luna):
            assert {BACKEND_VARIABLE!r} in os.environ

        def test_has_none(luna):
            assert {BACKEND_VARIABLE!r} not in os.environ
        """,
    )

    result.assert_outcomes(passed=2)


def test_fixtures_and_marker_are_listed(pytester):
    fixtures = run(pytester, "", "--fixtures")
    markers = pytester.runpytest_subprocess("--markers")

    # pytest lists them in the order of their line numbers, as texts.
    for listed in (
        "luna_cluster -- *",
        "luna -- *",
        "module_luna [[]module scope[]] -- *",
        "session_luna [[]session scope[]] -- *",
    ):
        fixtures.stdout.fnmatch_lines([listed])
    markers.stdout.fnmatch_lines(
        ["@pytest.mark.luna_cluster(?*options): *", "", "@pytest.mark.luna_leaves_locks: *"]
    )


def test_plugin_can_be_left_out(pytester):
    result = run(pytester, "def test(luna): pass", "-p", "no:luna_ext")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'luna' not found"])


def test_a_lock_that_is_left_fails_the_test_unless_it_is_marked(pytester):
    result = run(
        pytester,
        """
        import pytest

        def test_leaves_two(luna):
            luna.slot(1).acquire()
            luna.slot(2).acquire()

        @pytest.mark.luna_leaves_locks
        def test_may_leave_one(luna):
            luna.slot(1).acquire()

        def test_is_not_to_blame(luna):
            with luna.slot(1):
                pass
        """,
    )

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_two*",
            "slot 1 was still locked, at *.py:4, when its Library was closed*",
            "slot 2 was still locked, at *.py:5, when its Library was closed*",
            "Release it, or mark the test with luna_leaves_locks",
        ],
        consecutive=True,
    )


WIDE = """
import pytest

pytestmark = pytest.mark.luna_cluster(keyrings=3)

@pytest.mark.parametrize("time", [1, 2])
def test_is_the_same_cluster({scope}_luna, {scope}_luna_cluster, time):
    assert len({scope}_luna.slots()) == {keyrings}
    with {scope}_luna.slot(1):
        pass
    locked = [call for call in {scope}_luna_cluster.log() if "LockClustered" in call.function]
    assert len(locked) == time
"""


# A session has no marker.
@pytest.mark.parametrize(("scope", "keyrings"), [("module", 3), ("session", 8)])
def test_cluster_of_all_tests_of_a_module_or_session(pytester, scope, keyrings):
    result = run(pytester, WIDE.format(scope=scope, keyrings=keyrings))

    result.assert_outcomes(passed=2)


def test_with_pytest_xdist_each_process_has_clusters_of_its_own(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("time", range(8))
        def test_nothing_is_shared(luna, luna_cluster, time):
            with luna.slot(1):
                assert [token.slot_id for token in luna_cluster.tokens() if token.owner] == [1]
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:asyncio", "-W", "error", "-n", "2")

    result.assert_outcomes(passed=8)
