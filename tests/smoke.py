"""Checks an installed luna_ext in a second: a cluster of the stand-in, a lock, a claim, a label."""

import importlib.util
import subprocess
import sys

import luna_ext
from luna_ext.stub import Cluster


def owners(cluster: Cluster) -> int:
    return sum(token.owner is not None for token in cluster.tokens())


def say_what_the_command_needs() -> None:
    """Without the extra `cli`, as in a fresh environment, the command is there and says so."""
    done = subprocess.run([sys.executable, "-m", "luna_ext", "--version"], capture_output=True)
    if importlib.util.find_spec("click") and importlib.util.find_spec("rich"):
        assert done.stdout.decode().split() == ["luna-ext,", "version", luna_ext.__version__]
    else:
        assert done.returncode == 1
        assert b"pip install click rich" in done.stderr


def main() -> None:
    with Cluster(keyrings=2) as cluster, cluster.library() as luna:
        assert luna.is_stub
        assert [slot.slot_id for slot in luna.slots()] == [1, 2]

        with luna.slot(1) as slot:
            assert slot.locked()
            assert owners(cluster) == 1
        with luna.slot(1).lock(timeout=10):
            assert owners(cluster) == 1
        assert owners(cluster) == 0

        with luna.claim(cluster.cluster_id) as claimed:
            token = claimed.assign("Schlüssel 鍵", so_pin="officer-1", user_pin="user-pin-1")
            token.ensure_held()
            assert owners(cluster) == 1
        assert owners(cluster) == 0

        with luna.token("Schlüssel 鍵") as token:
            assert token.slot is claimed.slot
        try:
            luna.token("nowhere")
        except luna_ext.TokenNotFoundError:
            pass
        else:
            raise AssertionError("a token was found that is not there")
        calls = sum(function.calls for function in luna.stats().values())
    assert luna.closed
    say_what_the_command_needs()
    print(f"luna_ext {luna_ext.__version__} works: {calls} calls of the stand-in")


if __name__ == "__main__":
    main()
