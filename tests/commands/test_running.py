"""lock, claim: a command that is run while a lock is held."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pexpect
import pytest
from support import (
    ANOTHER_USER,
    COMMAND,
    PATIENCE,
    assert_stays,
    but_for_the_warning,
    wait_until,
    with_streams,
)

import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster

SHOW = 'echo "$LUNA_SLOT_ID,$LUNA_TOKEN_LABEL"'

# Tells when it is there, and each signal that reaches it; ends when its input does.
LISTENER = """
import os, signal, sys
def tell(number, frame):
    os.write(1, b"got " + signal.Signals(number).name.encode() + b"\\n")
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), tell)
os.write(1, b"ready %d\\n" % os.getpid())
while line := sys.stdin.readline():
    os.write(1, b"read " + line.encode())
sys.exit(7)
"""


@pytest.fixture
def listener(tmp_path):
    file = tmp_path / "listener.py"
    file.write_text(textwrap.dedent(LISTENER))
    return [sys.executable, str(file)]


def expect(process, pattern):
    line = process.stdout.readline()
    found = re.fullmatch(pattern + "\n", line)
    assert found, line
    return found


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid):
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def changed(change):
    """The command, with something that is different in it."""
    program = "import sys; from luna_ext.commands import child; from luna_ext.__main__ import main"
    return [sys.executable, "-c", f"{program}\n{change}\nsys.exit(main())"]


# ---- how it ends ----


@pytest.mark.parametrize(
    ("shell", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
@pytest.mark.parametrize("way", [("lock", "--slot", "1"), ("claim", "cluster-1")])
def test_the_exit_code_is_the_commands(command, locked, way, shell, code):
    done = command(*way, "--", "sh", "-c", shell)
    assert done.returncode == code
    assert done.said == []
    assert locked() == {}


def test_a_command_that_is_not_there(command, locked, tmp_path):
    done = command("lock", "--slot", 1, "--", "no-such-command")
    assert done.returncode == 127
    assert done.said == ["luna-ext: no-such-command: No such file or directory"]
    done = command("lock", "--slot", 1, "--", tmp_path)
    assert done.returncode == 126
    assert done.said == [f"luna-ext: {tmp_path}: Permission denied"]
    assert locked() == {}


# A guard process that may fork no other one.
CANNOT_FORK = """
import errno, os, runpy, sys
def fork():
    raise BlockingIOError(errno.EAGAIN, "")
os.fork = fork
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_command_for_which_there_is_no_process(cluster, locked):
    change = f"child.GUARD = (sys.executable, '-c', {CANNOT_FORK!r}, child.GUARD[-1])"
    done = subprocess.run(
        [*changed(change), "lock", "--slot", "1", "--", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = but_for_the_warning(done.stderr)
    assert "the command was not run: no process can be started for it: Resource temp" in line
    assert "(ulimit -u)" in line
    assert locked() == {}


def test_the_commands_own_options_are_its_own(command):
    assert command("lock", "--slot", 1, "sh", "-c", "echo $0 --slot", "x").stdout == "x --slot\n"
    done = command("claim", "cluster-1", "--timeout", 5, "--", "echo", "--timeout", "-x")
    assert done.stdout == "--timeout -x\n"


# ---- what is locked ----


def test_the_lock_of_a_slot_is_held_meanwhile(command, locked, cluster):
    # By luna-ext, whose guard process is the command's parent.
    above = "cut -d ' ' -f 4 /proc/$PPID/stat"
    done = command("lock", "--slot", 3, "--", "sh", "-c", f"{SHOW}; {above}; {holders(cluster)}")
    shown, holder, *held = done.stdout.splitlines()
    assert shown == "3,"
    assert held == [f"3 {holder}"]
    assert locked() == {}


def holders(cluster):
    """A shell command that shows what is locked by whom."""
    program = (
        "from luna_ext.stub import Cluster; "
        f"[print(t.slot_id, t.owner) for t in Cluster({cluster.path!r}).tokens() if t.owner]"
    )
    return f'{sys.executable} -c "{program}"'


def test_the_lock_of_a_label_is_held_meanwhile(command, assign, cluster):
    slot_id = assign("payments 01")
    done = command(
        "lock", "--label", "payments 01", "--", "sh", "-c", f"{SHOW}; {holders(cluster)}"
    )
    shown, held = done.stdout.splitlines()
    assert shown == f"{slot_id},payments 01"
    assert held.startswith(f"{slot_id} ")


def test_a_claimed_token_is_held_meanwhile(command, cluster):
    done = command("claim", "cluster-1", "--", "sh", "-c", f"{SHOW}; {holders(cluster)}")
    shown, held = done.stdout.splitlines()
    slot_id = held.split()[0]
    assert shown == f"{slot_id},keyring{slot_id}"


def test_a_label_that_no_token_has(command):
    done = command("lock", "--label", "nobody", "--", "true")
    assert done.returncode == 1
    (line,) = done.said
    assert "no token has the label 'nobody'" in line


def test_a_lock_that_is_not_to_be_had_in_time(command, hold_elsewhere):
    hold_elsewhere(1)
    for timeout in ("0", "0.2"):
        done = command("lock", "--slot", 1, "--timeout", timeout, "--", "echo", "never")
        assert (done.returncode, done.stdout) == (75, "")
        (line,) = done.said
        assert "slot 1 could not be locked" in line


@pytest.mark.luna_cluster(keyrings=1)
def test_a_token_that_is_not_to_be_had(command, hold_elsewhere):
    hold_elsewhere(1)
    for options in ((), ("--timeout", "0.2")):
        done = command("claim", "cluster-1", *options, "--", "echo", "never")
        assert (done.returncode, done.stdout) == (75, "")
        (line,) = done.said
        assert "has no unassigned token" in line


def test_it_waits_for_the_lock(start, hold_elsewhere, wait_until_inside):
    holder = hold_elsewhere(1)
    process = start("lock", "--slot", 1, "--", "echo", "locked")
    wait_until_inside("CA_LockClusteredSlot", pid=process.pid)
    holder.release()
    assert process.communicate(timeout=30)[0] == "locked\n"
    assert process.returncode == 0


def test_contention_as_the_option_says(start, command, cluster, hold_elsewhere):
    cluster.switch("contention", "error")
    holder = hold_elsewhere(1)
    assert command("lock", "--slot", 1, "--", "true").returncode == 1
    process = start("--contention", "poll", "lock", "--slot", 1, "--", "echo", "locked")
    wait_until(lambda: any(call.pid == process.pid and call.rv == 0x30 for call in cluster.log()))
    holder.release()
    assert process.communicate(timeout=30)[0] == "locked\n"


# ---- signals ----


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_passed_on_once(start, listener, locked, number):
    process = start("lock", "--slot", 1, "--", *listener)
    expect(process, r"ready (\d+)")
    process.send_signal(getattr(signal, number))
    expect(process, f"got {number}")
    # The lock stays on until the command has ended.
    assert locked() == {1: process.pid}
    assert process.communicate("last\n", timeout=30)[0] == "read last\n"
    assert process.returncode == 7
    assert locked() == {}


def test_signals_to_the_command_itself_are_its_own(start, listener, locked):
    process = start("lock", "--slot", 1, "--", *listener)
    child = int(expect(process, r"ready (\d+)")[1])
    os.kill(child, signal.SIGTERM)
    expect(process, "got SIGTERM")
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 137
    assert locked() == {}


def test_many_signals_lose_no_end(start, listener, locked):
    """A command may end while signals are on their way."""
    for _ in range(5):
        process = start("lock", "--slot", 1, "--", *listener)
        expect(process, r"ready (\d+)")
        for _ in range(20):
            process.send_signal(signal.SIGUSR1)
        process.stdin.close()
        for _ in range(20):
            process.send_signal(signal.SIGUSR1)
        process.stdin = None
        process.communicate(timeout=30)
        # Those that come at its very end are the command's end, or luna-ext's, after the release.
        assert process.returncode in (7, 128 + signal.SIGUSR1, -signal.SIGUSR1)
        assert locked() == {}


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
@pytest.mark.parametrize("way", ["lock", "claim"])
@pytest.mark.luna_cluster(keyrings=1)
def test_a_signal_ends_the_wait_for_a_lock(
    start, cluster, hold_elsewhere, wait_until_inside, locked, way, number, code
):
    holder = hold_elsewhere(1)
    options = {"lock": ("--slot", 1), "claim": ("cluster-1", "--timeout", 60)}[way]
    process = start(way, *options, "--", "echo", "never")
    if way == "lock":
        wait_until_inside("CA_LockClusteredSlot", pid=process.pid)
    else:
        # Told that none is left, it asks again until the time is up.
        wait_until(lambda: any(call.function == "CA_GetUnassignedSlot" for call in cluster.log()))
    process.send_signal(getattr(signal, number))
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert locked() == {1: holder.pid}


def test_a_ctrl_c_of_the_terminal_reaches_the_command_once(terminal, listener):
    screen = terminal("lock", "--slot", 1, "--", *listener)
    screen.expect(r"ready \d+\r\n")
    screen.sendintr()
    screen.expect("got SIGINT\r\n")
    screen.sendline("last")
    assert "got" not in screen.before
    screen.expect("read last\r\n")
    assert "got" not in screen.before
    screen.sendeof()
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 7


def test_a_ctrl_c_of_the_terminal_ends_the_wait(terminal, hold_elsewhere, wait_until_inside):
    hold_elsewhere(1)
    screen = terminal("lock", "--slot", 1, "--", "echo", "never")
    wait_until_inside("CA_LockClusteredSlot", pid=screen.pid)
    screen.sendintr()
    screen.expect("luna-ext: interrupted")
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 130


def test_signals_that_are_ignored_stay_ignored(start, listener, locked):
    """As under nohup, or in the background of a shell."""
    program = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    program += "; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    shell = "trap -- '' USR2; echo ready; read line; grep SigIgn /proc/$$/status; exit 3"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *COMMAND, "lock", "--slot", "1", "--", "sh", "-c", shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    expect(process, "ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate("\n", timeout=30)
    ignored = int(out.split()[1], 16)
    assert ignored & (1 << (signal.SIGINT - 1))
    assert ignored & (1 << (signal.SIGHUP - 1))
    assert process.returncode == 3
    assert locked() == {}


def test_what_was_stopped_goes_on(cluster, listener, locked):
    """As with Ctrl-Z and fg: the time of a wait ends meanwhile."""
    process = subprocess.Popen(
        [*changed("child.WAIT = 0.02"), "lock", "--slot", "1", "--", *listener],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    expect(process, r"ready (\d+)")
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process.pid) == "T")
    assert_stays(lambda: state_of(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    assert locked() == {1: process.pid}
    out, err = process.communicate("last\n", timeout=PATIENCE)
    assert (process.returncode, out) == (7, "read last\n")
    assert "is the stand-in" in err
    assert err.count("\n") == 1


def blocked_and_ignored(status):
    return [int(mask, 16) for mask in re.findall(r"Sig(?:Blk|Ign):\s*(\w+)", status)]


def test_what_python_ignores_and_luna_ext_blocks_is_not_for_the_command(command):
    done = command("lock", "--slot", 1, "--", "cat", "/proc/self/status")
    _, ignored = blocked_and_ignored(Path("/proc/self/status").read_text())
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        ignored &= ~(1 << (number - 1))
    # But for 32 and 33, which the C library has for itself.
    others = ~(3 << 31)
    blocked, left = blocked_and_ignored(done.stdout)
    assert (blocked & others, left & others) == (0, ignored & others)


def test_a_signal_that_another_thread_of_luna_ext_gets_is_passed_on(start, listener, locked):
    """A client library has threads that take signals; so has luna_ext."""
    process = start("lock", "--slot", 1, "--", *listener)
    expect(process, r"ready (\d+)")
    others = {int(thread) for thread in os.listdir(f"/proc/{process.pid}/task")} - {process.pid}
    assert others
    for thread in others:
        assert ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGTERM) == 0
    expect(process, "got SIGTERM")
    assert locked() == {1: process.pid}
    process.communicate(timeout=30)
    assert process.returncode == 7


# ---- a luna-ext that is killed, and what may not be signalled ----

KILLED = "luna-ext: luna-ext was killed, and the device drops its lock: the command is ended"


def test_a_kill_of_luna_ext_ends_all_that_the_command_has_started(start, locked):
    # One whose own parent has ended, one in another session, and the shell itself.
    shell = "(sleep 99 &); setsid sleep 99 & echo ready; sleep 99"
    process = start("lock", "--slot", 1, "--", "sh", "-c", shell)
    expect(process, "ready")
    process.kill()
    # All of them have these pipes open.
    _, said = process.communicate(timeout=PATIENCE)
    assert said.splitlines()[-1] == KILLED
    assert locked() == {}


# A client library may fork a process of its own, which has all that luna-ext has open.
FORKING_CLIENT = """
import os, socket, sys, time
from luna_ext.__main__ import main
make = socket.socketpair
def make_and_fork():
    pair = make()
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(99)
        os._exit(0)
    return pair
socket.socketpair = make_and_fork
sys.exit(main())
"""


@pytest.fixture
def beside_a_fork(cluster, listener):
    """A luna-ext that runs a listener, and whose client library has forked a process."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING_CLIENT, "lock", "--slot", "1", "--", *listener],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(expect(process, r"ready (\d+)")[1])
    forked = children_of(process.pid) - {parent_of(child)}
    assert forked
    yield process
    if process.poll() is None:
        process.kill()
    for pid in forked:
        os.kill(pid, signal.SIGKILL)


def test_a_kill_of_luna_ext_is_noticed_though_a_fork_of_it_lives(beside_a_fork):
    beside_a_fork.kill()
    beside_a_fork.wait(PATIENCE)
    expect(beside_a_fork, "got SIGTERM")
    beside_a_fork.communicate()


def test_an_end_of_the_command_is_noticed_though_a_fork_of_luna_ext_lives(beside_a_fork):
    beside_a_fork.communicate(timeout=PATIENCE)
    assert beside_a_fork.returncode == 7


def test_a_stopped_command_goes_on_and_hears_the_sigterm(start, listener):
    process = start("lock", "--slot", 1, "--", *listener)
    os.kill(int(expect(process, r"ready (\d+)")[1]), signal.SIGSTOP)
    process.kill()
    expect(process, "got SIGTERM")
    assert process.communicate(timeout=PATIENCE)[1].splitlines()[-1] == KILLED


def test_what_ignores_the_sigterm_is_killed(cluster, listener):
    process = subprocess.Popen(
        [*changed("child.PATIENCE = 0.1"), "lock", "--slot", "1", "--", *listener],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    expect(process, r"ready (\d+)")
    process.kill()
    process.wait(PATIENCE)
    # Its input has not ended.
    assert process.stdout.read() == "got SIGTERM\n"
    process.communicate()


def test_a_kill_of_the_guard_process_releases_nothing(start, listener, locked):
    process = start("lock", "--slot", 1, "--", *listener)
    child = int(expect(process, r"ready (\d+)")[1])
    os.kill(parent_of(child), signal.SIGKILL)
    expect(process, "got SIGTERM")
    process.send_signal(signal.SIGUSR1)
    expect(process, "got SIGUSR1")
    assert locked() == {1: process.pid}
    process.communicate(timeout=30)
    assert process.returncode == 7
    assert locked() == {}


# As sudo and su do: a program that becomes another user altogether.
BECOMES_ROOT = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    if (setgid(0) != 0 || setuid(0) != 0) return 1;
    printf("ready %d\\n", getpid());
    fflush(stdout);
    return getchar() == '7' ? 7 : 1;
}
"""


@pytest.fixture(scope="module")
def as_ordinary_user():
    """How root runs a program as an ordinary user, who may at least read luna_ext and its Python."""
    user = ["setpriv", *(f"--re{which}={ANOTHER_USER}" for which in ("uid", "gid"))]
    user += ["--clear-groups", "--inh-caps=-all"]
    # They may be in a directory of root's own, where a Python that is found without its library takes the
    # one of the system. Not all containers have this capability.
    look = f"import sys, luna_ext.commands.cli; assert sys.base_prefix == {sys.base_prefix!r}"
    may_read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    for command in (user, [*user[:-1], *may_read]):
        tried = subprocess.run(
            [*command, sys.executable, "-c", look],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(luna_ext.__file__).parents[1])},
        )
        if tried.returncode == 0:
            return command
    return pytest.skip(f"another user may not read luna_ext or its Python: {tried.stderr}")


@pytest.fixture(scope="module")
def becomes_root(as_ordinary_user):
    """A program that is setuid root, where an ordinary user may run it."""
    with tempfile.TemporaryDirectory() as directory:
        # What a killed process leaves is there as well.
        os.chmod(directory, 0o777)
        program = Path(directory, "becomes_root")
        subprocess.run(
            ["cc", "-x", "c", "-", "-o", program], input=BECOMES_ROOT, text=True, check=True
        )
        program.chmod(0o4755)
        command = [*as_ordinary_user, program]
        done = subprocess.run(command, input="7", capture_output=True, text=True, check=False)
        if done.returncode != 7:
            pytest.skip(f"no program is setuid here: {done.stderr}")
        yield program


@pytest.fixture
def of_another_user(as_ordinary_user, becomes_root):
    """A luna-ext of an ordinary user, on a cluster of its own, whose command runs as root."""
    program = (
        "import os, sys; from luna_ext.stub import Cluster; from luna_ext.__main__ import main\n"
        "with Cluster() as cluster:\n"
        f"    os.environ[{STATE_VARIABLE!r}] = cluster.path\n"
        "    sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [
            *as_ordinary_user,
            sys.executable,
            "-c",
            program,
            "lock",
            "--slot",
            "1",
            "--",
            becomes_root,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "TMPDIR": str(becomes_root.parent)},
    )
    yield process
    process.kill()
    process.communicate()


NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root makes a program setuid root, and setpriv makes root an ordinary user",
)


@NEEDS_ROOT
def test_a_command_that_may_not_be_signalled_keeps_its_lock(of_another_user):
    process = of_another_user
    pid = expect(process, r"ready (\d+)")[1]
    process.send_signal(signal.SIGTERM)
    told = [process.stderr.readline() for _ in range(2)][-1]
    assert f"(PID {pid}) runs as another user, and SIGTERM is not passed on" in told
    assert "stays set until it has ended" in told
    assert process.poll() is None
    process.communicate("7", timeout=30)
    assert process.returncode == 7


@NEEDS_ROOT
def test_a_command_that_may_not_be_ended_is_told_of(of_another_user):
    process = of_another_user
    pid = expect(process, r"ready (\d+)")[1]
    process.kill()
    told = [process.stderr.readline() for _ in range(3)]
    assert f"process {pid} ('becomes_root') of the command runs as another user" in told[2]
    assert "goes on without the lock: end it as that user" in told[2]
    # It has left nothing but the command.
    process.communicate("7", timeout=30)


# ---- what the command gets ----


def test_its_input_and_output_are_the_commands(command, tmp_path):
    file = tmp_path / "input"
    file.write_text("from the input\n")
    with file.open() as input_file:
        done = command(
            "lock", "--slot", 1, "--", "sh", "-c", "cat; echo word >&2", stdin=input_file
        )
    assert done.stdout == "from the input\n"
    assert done.said == ["word"]


def test_descriptors_of_the_shell_are_for_the_command(cluster, tmp_path):
    """And no others: a connection of the client library would outlive luna-ext in it."""
    file = tmp_path / "shell"
    file.write_text("for the command\n")
    lock_slot = [*COMMAND, "lock", "--slot", "1"]
    show = "cat <&5; for fd in /proc/self/fd/*; do echo $(basename $fd) $(readlink $fd); done"
    done = subprocess.run(
        with_streams('5<"$0"', *lock_slot, "--", "sh", "-c", show, of=file),
        capture_output=True,
        text=True,
        check=False,
    )
    first, *descriptors = done.stdout.splitlines()
    assert first == "for the command"
    targets = dict(line.split(maxsplit=1) for line in descriptors if " " in line)
    others = {number: target for number, target in targets.items() if int(number) > 2}
    assert others == {"5": str(file)}


# ---- a lock that is lost, or stays on ----


@pytest.mark.parametrize(("own", "code"), [(0, 1), (7, 7)])
def test_a_lost_lock_is_told_in_the_end(start, cluster, own, code):
    process = start("lock", "--slot", 1, "--", "sh", "-c", f"echo ready; read line; exit {own}")
    expect(process, "ready")
    cluster.disconnect(process.pid)
    _, err = process.communicate("\n", timeout=30)
    assert process.returncode == code
    (line,) = but_for_the_warning(err)
    assert "slot 1: the lock was lost while it was held" in line


def test_an_unlock_that_fails_is_told(command, cluster):
    cluster.fault("CA_UnlockClusteredSlot", 0x30)
    done = command("lock", "--slot", 1, "--", "true")
    assert done.returncode == 1
    (line,) = done.said
    assert "The lock may stay set until this process disconnects" in line


# ---- as flock(1) has it ----


def test_a_script_that_names_no_interpreter(command, tmp_path, monkeypatch):
    script = tmp_path / "script"
    script.write_text('echo "$1 $LUNA_SLOT_ID"; exit 7\n')
    script.chmod(0o755)
    done = command("lock", "--slot", 1, "--", script, "it runs in")
    assert (done.returncode, done.stdout) == (7, "it runs in 1\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert command("claim", "cluster-1", "--", "script", "x").stdout.startswith("x ")


@pytest.mark.parametrize("way", [("lock", "--slot", "1"), ("claim", "cluster-1")])
def test_a_command_of_the_shell(command, locked, way):
    done = command(*way, "-c", 'test -n "$LUNA_SLOT_ID" && exit 5')
    assert done.returncode == 5
    done = command(*way, "-c", "true", "--", "true")
    assert done.returncode == 2
    assert "give a COMMAND or -c, not both" in done.stderr
    assert locked() == {}


def test_not_to_wait_and_another_exit_code(command, hold_elsewhere):
    hold_elsewhere(1)
    assert command("lock", "-n", "--slot", 1, "--", "true").returncode == 75
    assert command("lock", "-n", "-E", 3, "--slot", 1, "--", "true").returncode == 3
    assert command("lock", "-w", 0.1, "-E", 0, "--slot", 1, "--", "true").returncode == 0
    assert command("lock", "-n", "--slot", 2, "-c", "exit 9").returncode == 9
    done = command("lock", "-n", "-w", 3, "--slot", 2, "--", "true")
    assert (done.returncode, len(done.said)) == (2, 1)


@pytest.mark.luna_cluster(keyrings=1)
def test_another_exit_code_of_a_claim(command, hold_elsewhere):
    hold_elsewhere(1)
    assert command("claim", "cluster-1", "-E", 4, "--", "true").returncode == 4
    assert command("claim", "cluster-1", "-w", 0.1, "--", "true").returncode == 75


# ---- several locks, and a luna-ext within another one's command ----


def test_all_of_several_tokens(command, locked):
    done = command("lock", "--all", "keyring3", "keyring1", "--", "sh", "-c", "echo $LUNA_SLOT_IDS")
    assert (done.returncode, done.stdout, done.said) == (0, "3 1\n", [])
    done = command(
        "lock", "-c", 'echo "$LUNA_SLOT_IDS,$LUNA_SLOT_ID"', "--all", "keyring2", "keyring4"
    )
    assert (done.returncode, done.stdout, done.said) == (0, "2 4,\n", [])
    assert locked() == {}


def test_all_or_none_of_several_tokens(command, hold_elsewhere, locked):
    hold_elsewhere(3)
    before = locked()
    options = ("--timeout", "0.2", "--all", "keyring1", "keyring3", "keyring2")
    done = command("lock", *options, "--", "echo", "never")
    assert (done.returncode, done.stdout) == (75, "")
    assert "slot 3 could not be locked within 0.2 s" in done.said[0]
    assert locked() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--all", "keyring1", "true"], "write -- between the labels and the COMMAND"),
        (["--all", "--", "true"], "write -- between the labels and the COMMAND"),
        (["--all", "--slot", "1", "--", "true"], "the labels behind --all: --all LABEL... --"),
        (["--all", "keyring1", "--timeout", "5", "--", "true"], "'--timeout' is behind --all"),
        (["-c", "true", "--all"], "wants the labels"),
        (["--all", "keyring1", "--"], "COMMAND"),
        (["--all", "x" * 33, "--", "true"], "33"),
        (["--all", "keyring1", "keyring1", "--", "true"], "more than once"),
        (["--slot", "1", "--all", "keyring1", "--", "true"], "either --slot, --label or --all"),
    ],
)
def test_wrong_lists_of_labels(command, arguments, reason):
    done = command("lock", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.said
    assert reason in line


WITHIN = [*COMMAND, "lock"]
ALL_IT_NEEDS = ("LUNA_EXT_LIBRARY", "PYTHONPATH")


@pytest.mark.parametrize(
    "inner",
    [
        ["--slot", "2", "--", "echo", "never"],
        ["--label", "keyring2", "--", "echo", "never"],
        ["--all", "keyring1", "keyring2", "--", "echo", "never"],
        # Through a luna-ext that locks another slot, and a shell.
        [
            "--slot",
            "3",
            "--",
            "sh",
            "-c",
            '"$0" -m luna_ext lock --slot 2 -- echo never',
            sys.executable,
        ],
    ],
)
def test_to_wait_for_a_luna_ext_above_is_an_error_at_once(command, locked, inner):
    done = command("lock", "--slot", "2", "--", *WITHIN, *inner)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.said
    assert re.search(r"slot 2 is locked by the luna-ext that runs this command \(PID \d+\)", line)
    assert locked() == {}


@pytest.mark.parametrize("other", ["", "--slot 3 -- env -i $kept $0 -m luna_ext lock"])
def test_nor_is_it_waited_for_where_the_environment_is_not_passed_on(command, locked, other):
    """As by `env -i` and sudo."""
    kept = [f"{name}={os.environ[name]}" for name in (*ALL_IT_NEEDS, STATE_VARIABLE)]
    shell = f'kept="{" ".join(kept)}"; exec env -i $kept "$0" -m luna_ext lock {other} --slot 2 -- echo x'
    done = command("lock", "--slot", "2", "--", "sh", "-c", shell, sys.executable)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.said
    assert re.search(r"slot 2 is locked by the luna-ext that runs this command \(PID \d+\)", line)
    assert locked() == {}


@pytest.mark.parametrize(
    "inner",
    [
        "bench --slot 2 --seconds 0.1",
        "probe --slot 2 --yes",
        "provision cluster-1 --count 1 --prefix p --pin-pad --guard 2",
    ],
)
def test_other_subcommands_that_would_wait_for_it(command, locked, inner):
    words = [sys.executable, "-m", "luna_ext", *inner.split()]
    done = command("lock", "--slot", "2", "--", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert "slot 2 is locked by the luna-ext that runs this command" in done.said[-1]
    assert locked() == {}


def test_another_slot_and_another_clusters_slot_are_locked_within(command, cluster):
    with Cluster() as other:
        shell = (
            f"{STATE_VARIABLE}={other.path} exec {' '.join(WITHIN)} --slot 2 -- echo $LUNA_SLOT_ID"
        )
        done = command("lock", "--slot", "2", "--", *WITHIN, "--slot", "1", "--", "sh", "-c", shell)
    assert (done.returncode, done.stdout, done.said) == (0, "1\n", [])


def test_what_an_ended_luna_ext_has_told_is_nothing(command, monkeypatch):
    told = command("lock", "--slot", "2", "--", "sh", "-c", "echo $LUNA_EXT_HELD").stdout
    assert '"slots": [2]' in told
    for left in (told, "[1]", "{", '[{"pid": 1}]'):
        monkeypatch.setenv("LUNA_EXT_HELD", left)
        done = command("lock", "--slot", "2", "--", "echo", "locked")
        assert (done.returncode, done.stdout, done.said) == (0, "locked\n", [])
