"""``firkin run``: the command's process. The same cases for root and for an ordinary user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.box import Box, eventually, fields, first_process, gone, open_files, status
from support.command import Firkin, execute
from support.requires import need

SIGNALS = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH")
ANY_BYTES = bytes(range(1, 256))


@pytest.fixture
def box(firkin: Firkin, busybox_root: Path) -> Box:
    return Box(firkin, busybox_root)


def python(source: str) -> tuple[str, ...]:
    """A start of firkin by Python, which executes its arguments at the end of *source*."""
    return sys.executable, "-c", f"{source}\nimport os, sys; os.execv(sys.argv[1], sys.argv[1:])"


# ---------------------------------------------------------------- exit status


@pytest.mark.parametrize(
    ("code", "init"),
    [*((code, "") for code in (0, 1, 125, 126, 127, 128, 255)), (0, "--init"), (255, "--init")],
)
def test_exit_status(box: Box, code: int, init: str) -> None:
    done = box(init, "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, 34, 64])
def test_death_by_signal_under_init(box: Box, number: int) -> None:
    assert box("--init", "sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number


def test_death_of_pid_1_by_signal_from_outside(box: Box) -> None:
    with box.start("", "sh", "-c", "echo ready; exec sleep 1000") as process:
        os.kill(first_process(process.pid), signal.SIGKILL)
        assert process.wait(20) == 137


def make_commands(folder: Path) -> None:
    """Make programs that cannot be executed, each for a reason of its own."""
    true = shutil.which("true")
    assert true
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    programs: dict[str, tuple[bytes, int]] = {
        "no-mode": (busybox, 0o644),
        "garbage": (b"\x7fELF" + b"\1" * 200, 0o755),
        "other-machine": (busybox[:18] + b"\xf3\0" + busybox[20:], 0o755),  # RISC-V's e_machine
        "text": (b"echo this has no interpreter\n", 0o755),
        "empty": (b"", 0o755),
        "no-interpreter": (b"#!/no/such/interpreter -x\n", 0o755),
        "interpreter-no-mode": (b"#!/etc/passwd\n", 0o755),
        "no-loader": (Path(true).read_bytes(), 0o755),  # a dynamic program of the host's
        "script": (b"#!/bin/sh\nexit 17\n", 0o755),
        "closed/program": (busybox, 0o755),
    }
    for name, (data, mode) in programs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        (folder / name).chmod(mode)
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("/t/no-mode", 126, "Permission denied"),
        ("/t/folder", 126, "Is a directory"),
        ("/t/garbage", 126, "Exec format error"),
        ("/t/other-machine", 126, "Exec format error"),
        ("/t/text", 126, "Exec format error"),
        ("/t/empty", 126, "Exec format error"),
        ("/t/interpreter-no-mode", 126, "Permission denied"),
        ("no-mode", 126, "Permission denied"),
        ("/proc/self/exe", 126, ""),
        ("/t/script", 17, None),
        ("script", 17, None),
        ("/no/such", 127, "No such file"),
        ("no-such", 127, "not found in $PATH"),
        ("folder", 127, "not found in $PATH"),
        ("", 127, ""),
        ("./", 126, "Is a directory"),
        ("/t/script/below", 127, "Not a directory"),
        ("/t/dangling", 127, "No such file"),
        ("/t/loop", 127, "Too many levels"),
        ("/t/no-interpreter", 127, "interpreter"),
        ("/t/no-loader", 127, "loader"),
    ],
)
def test_command_that_cannot_be_executed(
    box: Box, tmp_path: Path, command: str, code: int, why: str | None
) -> None:
    """126 where it is there, 127 where it is not, one line that says why."""
    make_commands(tmp_path)
    done = box(["-v", f"{tmp_path}:/t:ro", "-e", "PATH=/t:/bin"], command)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    if why is None:
        assert done.stderr == ""
    else:
        assert done.stderr.startswith(f"firkin: cannot run '{command}': ")
        assert done.stderr.count("\n") == 1
        assert why in done.stderr


@pytest.mark.parametrize(
    ("command", "code"), [("/etc/passwd", 126), ("/no/such", 127), ("no-such", 127)]
)
def test_command_that_cannot_be_executed_under_init(box: Box, command: str, code: int) -> None:
    done = box("--init", command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)


@pytest.mark.parametrize(
    ("options", "image"),
    [
        ("--no-such-option", None),
        ("--workdir relative", None),
        ("-w /etc/passwd", None),
        ("-u nobody-knows", None),
        ("-u alice:nobody-knows", None),
        ("-u 4294967295", None),
        ("--group-add nobody-knows", None),
        ("--env-file /no/such/file", None),
        ("--preserve-fds 1", None),
        ("", "./no-such-root"),
        ("", "no-such-image"),
    ],
)
def test_own_errors_are_125(box: Box, options: str, image: str | None) -> None:
    box.root = Path(image) if image else box.root
    words = box.words(options, "true")
    done = execute([image if word == box.root and image else word for word in words], env=box.env())
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("firkin: ")
    assert done.stderr.count("\n") == 1


def test_no_command_is_125(box: Box) -> None:
    done = box("")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "there is no command" in done.stderr


@pytest.mark.parametrize("init", ["", "--init"])
@pytest.mark.parametrize("command", ["true", "no-such-command"])
def test_no_zombie_is_left_to_the_caller(box: Box, init: str, command: str) -> None:
    """What firkin does not wait for becomes a child of its next subreaper: this program."""
    source = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL)
try:
    print("left behind:", os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT))
except ChildProcessError:
    print("nothing")
"""
    done = execute([sys.executable, "-c", source, *box.words(init, command)], env=box.env())
    assert (done.stdout, done.stderr) == ("nothing\n", "")


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([b""], id="one empty"),
        pytest.param([b"a b", b"", b"'\"$HOME`", b"\n", b"*"], id="odd"),
        pytest.param([b"--init", b"-t", b"--", b"--help"], id="options"),
        pytest.param([ANY_BYTES, b"\xff\xfe"], id="bytes"),
        pytest.param([b"x" * 100_000], id="100 KB"),
        pytest.param([b"%d" % n for n in range(5000)], id="5000"),
    ],
)
def test_arguments_arrive_as_they_are(box: Box, arguments: list[bytes]) -> None:
    script = b"cat /proc/$$/cmdline; true"
    done = box("", b"sh", b"-c", script, *arguments, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(word + b"\0" for word in (b"sh", b"-c", script, *arguments))


def test_two_dashes_may_stand_before_the_command(box: Box) -> None:
    assert box.read("", "--", "echo", "--", "x") == "-- x\n"


@pytest.mark.parametrize(
    ("entrypoint", "command", "output"),
    [("echo", ("a", "b"), "a b\n"), ("/bin/echo", (), "\n"), ("", ("echo", "c"), "c\n")],
)
def test_entrypoint(box: Box, entrypoint: str, command: tuple[str, ...], output: str) -> None:
    assert box.read(["--entrypoint", entrypoint], *command) == output


# ---------------------------------------------------------------- signals

# Waits in a builtin, which a trap interrupts at once.
TRAPS = "".join(f"trap 'echo got {name}' {name};" for name in SIGNALS)
WAITING = f"{TRAPS} trap 'exit 7' ALRM; sleep 1000 & echo ready; while :; do wait; done"


@pytest.mark.parametrize("options", ["", "--init", "-u alice", "--init -u alice"])
def test_signals_are_forwarded(box: Box, options: str) -> None:
    need_ids(options)
    with box.start(options, "sh", "-c", WAITING) as process:
        assert process.stdout
        for name in SIGNALS:
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert process.stdout.readline() == f"got {name}\n"
        # Not forwarded: the rest is firkin's own.
        os.kill(first_process(process.pid), signal.SIGKILL)
        assert process.wait(20) == 137


@pytest.mark.parametrize("init", ["", "--init"])
def test_signals_are_forwarded_though_blocked_by_the_caller(box: Box, init: str) -> None:
    """As of a parent that blocks signals around its forks."""
    source = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))"
    words = [*python(source), *box.words(init, "sh", "-c", WAITING)]
    process = subprocess.Popen(words, env=box.env(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "got TERM\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "got INT\n"
        os.kill(first_process(process.pid), signal.SIGKILL)
        assert process.wait(20) == 137
    finally:
        process.kill()
        process.communicate()


def test_exit_status_after_a_forwarded_signal(box: Box) -> None:
    with box.start("--init", "sh", "-c", "echo ready; exec sleep 1000") as process:
        process.terminate()
        assert process.wait(20) == 143


@pytest.mark.parametrize("moment", ["clone", "pivot_root", "execve"])
def test_signal_during_the_start_is_kept_for_the_command(box: Box, moment: str) -> None:
    """Seen through --explain, which tells of each kernel call as it happens."""
    command = ("sleep", "1000")
    with box.start("--init --explain", *command, ready="") as process:
        assert process.stderr
        assert any(moment in line for line in process.stderr)
        process.terminate()
        process.stderr.read()
        assert process.wait(20) == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_before_the_start_just_ends_firkin(
    box: Box, tmp_path: Path, number: signal.Signals
) -> None:
    """By the signal itself, as a shell expects, and without a traceback."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with box.start(["--env-file", str(fifo)], "true", ready="") as process:
        with open(fifo, "w"):  # firkin has opened it, and waits for its end
            process.send_signal(number)
            assert process.wait(20) == -number
        assert process.communicate() == ("", "")


def test_signals_at_every_moment_of_a_start(box: Box) -> None:
    """Nothing hangs, nothing is left behind; the command gets it or firkin ends by it."""
    ends: list[int] = []
    # Later and later, however slow the machine is, until the command has had it three times.
    while ends.count(143) < 3:
        with box.start("--init", "sleep", "1000", ready="") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(len(ends) * 0.01)
            process.terminate()
            ends.append(process.wait(20))
        assert ends[-1] in (-signal.SIGTERM, 143)
        assert len(ends) < 300
    assert ends[0] == -signal.SIGTERM


@pytest.mark.parametrize("init", ["", "--init"])
def test_signals_are_default_inside(box: Box, init: str) -> None:
    """Even when firkin is started by nohup, or by a parent that ignores and blocks signals."""
    source = """
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""
    inside = fields(box.read(init, "cat", "/proc/self/status", through=python(source)))
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
        assert int(inside[name], 16) == 0, name


# ---------------------------------------------------------------- --init


def test_init_is_pid_1(box: Box) -> None:
    script = "cat /proc/1/comm; tr '\\0' ' ' </proc/1/cmdline; echo; grep PPid: /proc/$$/status"
    name, line, parent = box.read("--init", "sh", "-c", script).splitlines()
    assert (name, line.strip(), parent.split()) == ("firkin-init", "firkin-init", ["PPid:", "1"])


def test_without_init_the_command_is_pid_1(box: Box) -> None:
    assert box.read("", "sh", "-c", "echo $$; cat /proc/1/comm; true") == "1\nsh\n"


def test_ps_shows_nothing_of_the_host(box: Box) -> None:
    lines = box.read("--init", "ps", "-o", "pid,comm,args").splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["1", "firkin-init", "firkin-init"],
        ["2", "ps", "ps", "-o", "pid,comm,args"],
    ]


def test_init_reaps_orphans(box: Box) -> None:
    """Ten of them, whose parents have ended; a zombie would stay in /proc."""
    script = """
    for n in 0 1 2 3 4 5 6 7 8 9; do (sleep 0.05 & echo $! >>/tmp/pids); done
    grep PPid: /proc/$(head -n1 /tmp/pids)/status
    for try in $(seq 500); do
        left=; for pid in $(cat /tmp/pids); do [ ! -e /proc/$pid ] || left="$left $pid"; done
        [ -z "$left" ] && echo "all reaped" && exit
        usleep 10000
    done
    ps
    """
    assert box.read("--init", "sh", "-c", script).splitlines() == ["PPid:\t1", "all reaped"]


def test_init_holds_no_file_open(box: Box) -> None:
    """The command's output ends with the command, and nothing of the host's is in reach."""
    need("root" if os.geteuid() == 0 else "subordinate ids")
    with box.start("--init", "sh", "-c", "echo ready; exec sleep 1000") as process:
        pid = first_process(process.pid)
        assert status(pid)["Name"] == "firkin-init"
        if os.geteuid() == 0:  # not dumpable
            assert open_files(pid) == ["anon_inode:[signalfd]"]
        process.terminate()
        assert process.wait(20) == 143


def test_the_end_of_the_command_ends_what_it_left(box: Box) -> None:
    done = box("--init", "sh", "-c", "(trap '' TERM HUP; exec sleep 1000) & exit 3")
    assert done.returncode == 3


# ---------------------------------------------------------------- environment


def environment(text: str) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in text.removesuffix("\0").split("\0"))


def env_of(box: Box, options: str | list[Any], **settings: Any) -> dict[str, str]:
    return environment(box.read(options, "cat", "/proc/self/environ", **settings))


def test_environment_is_cleared(box: Box) -> None:
    inside = env_of(box, "--hostname vat", env={"TERM": "vt220", "SECRET": "1", "LD_PRELOAD": ""})
    assert inside == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "TERM": "vt220",
        "HOSTNAME": "vat",
    }


def test_hostname_is_the_short_id_by_default(box: Box, tmp_path: Path) -> None:
    file = tmp_path / "id"
    script = "hostname; cat /etc/hostname; echo $HOSTNAME; cat /proc/sys/kernel/hostname"
    names = box.read(["--cidfile", str(file)], "sh", "-c", script).split()
    assert names == [file.read_text()[:12]] * 4


def test_variables_and_their_order(box: Box, tmp_path: Path) -> None:
    """A file comes before -e wherever it stands; the last of one name wins."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("# a comment\n\nA=file\nB=file = x \nFROM_HOST\nNOT_THERE\nTERM=file\n")
    second.write_text("B=second\r\nEMPTY=\n")
    options = "-e A=1 -e A=2 -e PATH=/bin -e ALONE -e HOME -e EMPTY2= -e WITH=a=b"
    files = f" --env-file {first} --env-file={second}"
    inside = env_of(box, options + files, env={"FROM_HOST": "host", "ALONE": "x\ny"})
    inside.pop("HOSTNAME")
    assert inside == {
        "PATH": "/bin",
        "HOME": os.path.expanduser("~"),
        "TERM": "file",
        "A": "2",
        "B": "second",
        "FROM_HOST": "host",
        "EMPTY": "",
        "ALONE": "x\ny",
        "EMPTY2": "",
        "WITH": "a=b",
    }


def test_a_variable_can_be_removed(box: Box) -> None:
    """KEY alone that the caller does not have removes the default, as docker's."""
    assert "HOSTNAME" not in env_of(box, "-e HOSTNAME")


def test_a_variable_may_hold_any_bytes(box: Box) -> None:
    done = box(["-e", b"X=" + ANY_BYTES], "cat", "/proc/self/environ", text=False)
    assert b"X=" + ANY_BYTES in done.stdout.split(b"\0")


# ---------------------------------------------------------------- working directory


@pytest.mark.parametrize("options", ["", "--init", "--read-only"])
def test_workdir_is_made_where_it_is_missing(box: Box, options: str) -> None:
    script = "pwd; readlink /proc/self/cwd; stat -c '%a %u' ."
    output = box.read(f"{options} -w /etc/new/folder", "sh", "-c", script)
    assert output.split() == ["/etc/new/folder"] * 2 + ["755", "0"]
    assert not (box.root / "etc/new").exists()


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_workdir_is_not_made_outside(box: Box, own_root: Path, kind: str, tmp_path: Path) -> None:
    """Links of the image lead where they lead inside, never to the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = str(outside) if kind == "absolute" else "../" * 30 + str(outside)[1:]
    (own_root / "link").symlink_to(target)
    box.root = own_root
    output = box.read("-w /link/new", "readlink", "/proc/self/cwd")
    assert output.strip() in (f"{outside}/new", "/link/new")
    assert list(outside.iterdir()) == []


def test_relative_command_starts_at_the_workdir(box: Box) -> None:
    assert box.read("-w /bin", "./busybox", "pwd") == "/bin\n"


# ---------------------------------------------------------------- user


def need_ids(options: str) -> None:
    """An ordinary user has other users inside only through subordinate ids."""
    if "-u" in options.split() or "--group-add" in options.split():
        need("root" if os.geteuid() == 0 else "subordinate ids")


@pytest.mark.parametrize("init", ["", "--init"])
@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("alice", 1000, 1000, [50], "/home/alice"),
        ("1000", 1000, 1000, [50], "/home/alice"),
        ("alice:staff", 1000, 50, [], "/home/alice"),
        ("alice:7", 1000, 7, [], "/home/alice"),
        ("4321", 4321, 0, [], "/"),
        ("4321:4322", 4321, 4322, [], "/"),
        ("0", 0, 0, [], "/root"),
        ("root:alice", 0, 1000, [], "/root"),
    ],
)
def test_user(
    box: Box, user: str, uid: int, gid: int, groups: list[int], home: str, init: str
) -> None:
    need_ids("-u")
    script = "cat /proc/$$/status; echo HOME: $HOME"
    inside = fields(box.read(f"{init} -u {user}", "sh", "-c", script))
    assert inside["Uid"].split() == [str(uid)] * 4
    assert inside["Gid"].split() == [str(gid)] * 4
    assert {int(group) for group in inside["Groups"].split()} - {gid} == set(groups)
    assert inside["HOME"] == home


def test_group_add(box: Box) -> None:
    need_ids("-u")
    text = box.read("-u alice --group-add nogroup --group-add 77", "cat", "/proc/self/status")
    assert {int(group) for group in fields(text)["Groups"].split()} - {1000} == {50, 77, 65534}


def test_no_group_of_the_caller_is_kept(box: Box) -> None:
    text = box.read("", "cat", "/proc/self/status")
    assert {int(group) for group in fields(text)["Groups"].split()} <= {0}


@pytest.mark.parametrize("kind", ["link", "climbing link", "fifo", "huge", "folder", "device"])
def test_hostile_passwd(box: Box, own_root: Path, tmp_path: Path, kind: str) -> None:
    """Neither read from the host, nor waited for, nor read without bound."""
    outside = tmp_path / "passwd"
    outside.write_text("mallory:x:0:0::/:/bin/sh\n")
    file = own_root / "etc/passwd"
    file.unlink()
    if kind == "link":
        file.symlink_to(outside)
    elif kind == "climbing link":
        file.symlink_to("../../passwd")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "huge":
        file.write_bytes(b"mallory:x:0:0::/:/bin/sh\n")
        os.truncate(file, 1 << 40)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    box.root = own_root
    done = box("-u mallory", "id", timeout=20)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("firkin: cannot run as user 'mallory': ")
    assert done.stderr.count("\n") == 1


def test_command_is_looked_for_as_the_user(box: Box, tmp_path: Path) -> None:
    """What only root may execute is not executable for alice."""
    need_ids("-u")
    make_commands(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    options = f"-v {tmp_path}:/t:ro"
    assert box(options, "/t/closed/program", "true").returncode == 127  # no such applet
    assert box(f"{options} -u alice", "/t/closed/program", "true").returncode == 126


# ---------------------------------------------------------------- standard files


@pytest.mark.parametrize("init", ["", "--init"])
def test_a_mebibyte_through_stdin_and_stdout(box: Box, init: str) -> None:
    data = os.urandom(1 << 20)
    done = box(f"-i {init}", "cat", input=data, text=False)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


@pytest.mark.parametrize("init", ["", "--init"])
def test_without_interactive_stdin_is_the_null_device(box: Box, init: str) -> None:
    script = "wc -c; stat -L -c '%t:%T' /proc/self/fd/0"
    assert box.read(init, "sh", "-c", script, input="secret").split() == ["0", "1:3"]


def test_stdout_and_stderr_are_apart(box: Box) -> None:
    done = box("", "sh", "-c", "echo out; echo err >&2; exit 4")
    assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "err\n")


def test_output_ends_with_the_command_under_init(box: Box) -> None:
    """Whoever reads the output of the command sees its end when that closes it."""
    with box.start("--init", "sh", "-c", "echo ready; exec >&- 2>&-; exec sleep 1000") as process:
        assert process.stdout
        os.kill(process.pid, signal.SIGSTOP)  # firkin itself holds both open
        pids = [pid for pid in (first_process(process.pid),) if os.geteuid() == 0]
        outputs = [os.fstat(process.stdout.fileno()).st_ino]
        eventually(
            lambda: not any(f"pipe:[{n}]" in open_files(pid) for n in outputs for pid in pids),
            "init has closed the output",
        )
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        assert process.wait(20) == 143


def test_nobody_reads_the_output(box: Box) -> None:
    """SIGPIPE is for the command; firkin's Python ignores it, which must not be inherited."""
    with box.start("--init", "sh", "-c", "echo ready; exec yes") as process:
        assert process.stdout
        process.stdout.close()
        assert process.wait(20) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("options", ["", "-i", "--init"])
@pytest.mark.parametrize("closing", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_files(box: Box, tmp_path: Path, closing: str, options: str) -> None:
    """A file of firkin's own must not take their place inside."""
    script = "cd /proc/$$/fd; all=$(readlink 0; readlink 1; readlink 2); echo $all >/t/files"
    start = ("sh", "-c", f'exec "$@" {closing}', "sh")
    done = box(f"{options} -v {tmp_path}:/t", "sh", "-c", script, through=start)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for target in (tmp_path / "files").read_text().split():
        assert target.startswith(("pipe:", "/dev/null")), target


# ---------------------------------------------------------------- descriptors


@pytest.mark.parametrize("options", ["", "--init", "-i", "-t", "-u alice", "--userns host"])
def test_no_descriptor_is_inherited(box: Box, tmp_path: Path, options: str) -> None:
    """Neither the caller's nor firkin's own; as root and by the class of CVE-2024-21626."""
    need_ids(options)
    if "--userns" in options and os.geteuid() != 0:
        options = "--userns keep-id"
    secret = os.open(tmp_path, os.O_RDONLY)
    high = os.dup2(secret, 700)
    try:
        # The fourth is the folder that ls reads.
        done = box(options, "ls", "/proc/self/fd", pass_fds=(secret, high))
        assert done.stdout.split() == ["0", "1", "2", "3"]
    finally:
        os.close(secret)
        os.close(high)


def test_preserved_descriptors(box: Box) -> None:
    """As many as were asked for, with the same file at the same number."""
    through = ("sh", "-c", 'exec 3<<A 4<<B 5<<C "$@"\nthree\nA\nfour\nB\nfive\nC', "sh")
    script = "cat <&3; cat <&4; ls /proc/$$/fd | tr '\\n' ' '"
    for init in ("", "--init "):
        output = box.read(f"{init}--preserve-fds 2", "sh", "-c", script, through=through)
        assert output.split() == ["three", "four", "0", "1", "2", "3", "4"]


def test_preserved_descriptor_that_is_not_open(box: Box) -> None:
    done = box("--preserve-fds 2", "true", through=("sh", "-c", 'exec "$@" 3</dev/null', "sh"))
    assert done.returncode == 125
    assert "descriptor 4 is not open" in done.stderr


# ---------------------------------------------------------------- what else is inherited


@pytest.mark.parametrize("options", ["", "--init"])
def test_umask(box: Box, options: str) -> None:
    """Its own, and not the caller's, which must not close the container's files either."""
    script = "umask; stat -c %a / /etc/hosts /etc/resolv.conf /dev/shm /dev/null"
    for mask in ("077", "000"):
        through = ("sh", "-c", f'umask {mask}; exec "$@"', "sh")
        output = box.read(options, "sh", "-c", script, through=through).split()
        assert output == ["0022", "755", "644", "644", "1777", "666"]


@pytest.mark.parametrize("options", ["", "--init", "-u alice", "--init -u alice", "--net host"])
def test_container_dies_with_firkin(box: Box, options: str) -> None:
    """SIGKILL of firkin: the kernel ends the container (PR_SET_PDEATHSIG)."""
    need_ids(options)
    with box.start(options, "sh", "-c", "sleep 1000 & echo ready; exec sleep 1001") as process:
        pid = first_process(process.pid)
        process.kill()
        process.wait(20)
        eventually(lambda: gone(pid), "the end of the container")
    assert box("", "true").returncode == 0  # its start sweeps what is left
