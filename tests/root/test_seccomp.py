"""Compiled filters in the kernel: what each action and operator does to real calls.

What our compiler makes is also compared with what runc loads for the same
configuration: by probes run under both, and by reading runc's filter back from
the kernel (ptrace(2), PTRACE_SECCOMP_GET_FILTER) and evaluating both programs.
"""

from __future__ import annotations

import array
import ast
import ctypes
import errno
import fcntl
import functools
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import UsageError
from firkin.linux import caps, libc, libseccomp
from firkin.linux import seccomp as linux_seccomp
from firkin.runtime import seccomp, seccomp_cache
from support.requires import need, requires

# Docker's default set (moby, oci/caps/defaults.go).
DOCKER = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]

X86_64, X86, X32 = 0xC000003E, 0x40000003, 0x4000003E
AARCH64, ARM, S390X = 0xC00000B7, 0x40000028, 0x80000016
X32_BIT = 1 << 30
UNKNOWN = 900  # a system call that no kernel has

CLIB = ctypes.CDLL(None, use_errno=True)
CLIB.syscall.restype = ctypes.c_long
CLIB.ptrace.restype = ctypes.c_long
CLIB.ptrace.argtypes = [ctypes.c_long] * 4


def number(name: str) -> int:
    found = libseccomp.syscall(name)
    assert found is not None
    return found


def errno_of(call: int, *arguments: int) -> int:
    """Make a system call and return its errno, 0 for success."""
    result = CLIB.syscall(ctypes.c_long(call), *map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result == -1 else 0


def in_child(program: bytes, function: Callable[[], Any], flags: int = 0) -> tuple[Any, int]:
    """Run *function* in a child under a filter.

    Returns:
        what it returned (None if it did not get there), and the wait status.
    """
    prepared = linux_seccomp.Filter(program, flags)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(reader)
            CLIB.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            prepared.load()
            os.write(writer, repr(function()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(pid, 0)
    return (ast.literal_eval(text) if text else None), status


def result_of(program: bytes, function: Callable[[], Any], flags: int = 0) -> Any:
    result, status = in_child(program, function, flags)
    assert status == 0
    return result


def allowing(*entries: dict[str, Any], **more: Any) -> bytes:
    """Compile a filter that allows all but what *entries* say."""
    config = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list(entries), **more}
    return seccomp.compile_oci(config)


def on_getppid(action: str = "SCMP_ACT_ERRNO", **fields: Any) -> dict[str, Any]:
    # getppid takes no arguments, so a rule on its arguments changes nothing else.
    return {"names": ["getppid"], "action": action, **fields}


@pytest.fixture(scope="module")
def default() -> bytes:
    """The default profile for Docker's default capabilities."""
    return seccomp.compile_oci(seccomp.default_profile(DOCKER))


# --- the default profile --------------------------------------------------------------


@pytest.mark.parametrize("name", ["unshare", "mount", "setns", "swapon", "bpf", "add_key"])
def test_denied_calls_get_eperm(default: bytes, name: str) -> None:
    call = number(name)
    assert errno_of(call, 0, 0, 0, 0, 0) != errno.EPERM
    assert result_of(default, lambda: errno_of(call, 0, 0, 0, 0, 0)) == errno.EPERM


@pytest.mark.parametrize("call", [UNKNOWN, 2**29])
def test_calls_that_the_profile_cannot_know_get_enosys(default: bytes, call: int) -> None:
    assert result_of(default, lambda: errno_of(call)) == errno.ENOSYS


def test_allowed_calls_work(default: bytes) -> None:
    def work() -> tuple[int, int, bytes]:
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sh", ["sh", "-c", "exit 3"])
        with open("/proc/self/status", "rb") as file:
            mode = file.read().partition(b"Seccomp:")[2].split()[0]
        return os.waitpid(pid, 0)[1], errno_of(number("getpid")), mode

    assert result_of(default, work) == (3 << 8, 0, b"2")


def test_clone_flags(default: bytes) -> None:
    # Combinations that clone(2) refuses, so that no process comes of them.
    new_user_fs = 0x10000000 | 0x200
    sighand_without_vm = 0x800
    clone, clone3 = number("clone"), number("clone3")
    assert errno_of(clone, new_user_fs, 0, 0, 0, 0) == errno.EINVAL
    assert result_of(default, lambda: errno_of(clone, new_user_fs, 0, 0, 0, 0)) == errno.EPERM
    assert result_of(default, lambda: errno_of(clone, sighand_without_vm, 0, 0, 0, 0)) == (
        errno.EINVAL
    )
    assert result_of(default, lambda: errno_of(clone3, 0, 0)) == errno.ENOSYS


def test_sys_admin_may_unshare() -> None:
    program = seccomp.compile_oci(seccomp.default_profile([*DOCKER, "CAP_SYS_ADMIN"]))
    assert result_of(program, lambda: errno_of(number("unshare"), 0)) == 0
    assert result_of(program, lambda: errno_of(UNKNOWN)) == errno.ENOSYS


def test_cached_program_is_the_one_that_loads(default: bytes, tmp_path: Path) -> None:
    for _ in range(2):
        program = seccomp_cache.cached_default(DOCKER, [str(tmp_path)])
        assert program == default
        assert result_of(program, lambda: errno_of(number("unshare"), 0)) == errno.EPERM


@pytest.mark.parametrize("whose", ["folder", "entry"])
def test_cache_of_another_user_is_not_trusted(tmp_path: Path, default: bytes, whose: str) -> None:
    folder = tmp_path / "cache"
    seccomp_cache.cached_default(DOCKER, [str(folder)])
    (entry,) = folder.iterdir()
    planted = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)  # allows everything
    checksum = seccomp_cache._checksum(entry.name, planted)
    entry.write_bytes(
        seccomp_cache._HEADER.pack(seccomp_cache._MAGIC, len(planted), checksum) + planted
    )
    assert seccomp_cache.cached_default(DOCKER, [str(folder)]) == planted
    os.chown(folder if whose == "folder" else entry, 65534, 65534)
    assert seccomp_cache.cached_default(DOCKER, [str(folder)]) == default


# --- architectures --------------------------------------------------------------------


def int80(call: int, argument: int = 0) -> int:
    """Make a 32-bit system call from this 64-bit process; returns the kernel's result."""
    # push rbx; mov eax, edi; mov ebx, esi; int 0x80; pop rbx; ret
    code = bytes([0x53, 0x89, 0xF8, 0x89, 0xF3, 0xCD, 0x80, 0x5B, 0xC3])
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(address)(call, argument))


@requires("architecture:x86_64")
def test_32_bit_calls_are_filtered(default: bytes) -> None:
    everything = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    result, status = in_child(everything, lambda: int80(20))
    if status:
        pytest.fail("this kernel runs no 32-bit calls, so nothing can be tested here")
    assert result > 0  # getpid is 20 there, and writev natively
    assert result_of(default, lambda: int80(20)) > 0
    assert result_of(everything, lambda: int80(310)) == 0  # unshare(0)
    assert result_of(default, lambda: int80(310)) == -errno.EPERM
    assert result_of(default, lambda: int80(UNKNOWN)) == -errno.ENOSYS


@requires("architecture:x86_64")
def test_32_bit_calls_of_a_filter_without_them_kill() -> None:
    _, status = in_child(
        allowing(on_getppid(), architectures=["SCMP_ARCH_X86_64"]), lambda: int80(20)
    )
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


@requires("architecture:x86_64")
def test_x32_calls_are_filtered(default: bytes) -> None:
    assert result_of(default, lambda: errno_of(X32_BIT | 272, 0)) == errno.EPERM  # unshare
    assert result_of(default, lambda: errno_of(X32_BIT | UNKNOWN)) == errno.ENOSYS


# --- actions --------------------------------------------------------------------------


def ppid_call() -> int:
    return errno_of(number("getppid"))


@pytest.mark.parametrize("code", [None, 0, 1, 38, 4094])
def test_errno(code: int | None) -> None:
    program = allowing(on_getppid(errnoRet=code))
    assert result_of(program, ppid_call) == (errno.EPERM if code is None else code)


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD"])
def test_kill_thread_leaves_the_others(action: str) -> None:
    def from_a_thread() -> str:
        reader, writer = os.pipe()

        def die() -> None:
            os.write(writer, b"alive")
            ppid_call()
            os.write(writer, b"survived")

        threading.Thread(target=die, daemon=True).start()
        seen = os.read(reader, 100)
        # The kernel takes the thread off this list when it is dead.
        while len(os.listdir("/proc/self/task")) > 1:
            os.sched_yield()
        os.close(writer)
        return (seen + os.read(reader, 100)).decode()

    assert result_of(allowing(on_getppid(action)), from_a_thread) == "alive"


def test_kill_process_takes_all_threads() -> None:
    def from_a_thread() -> None:
        threading.Thread(target=ppid_call).start()
        signal.pause()

    _, status = in_child(allowing(on_getppid("SCMP_ACT_KILL_PROCESS")), from_a_thread)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


def test_trap_is_a_signal_that_can_be_handled() -> None:
    def trapped() -> list[int]:
        seen: list[int] = []
        signal.signal(signal.SIGSYS, lambda got, _frame: seen.append(got))
        ppid_call()
        return seen

    assert result_of(allowing(on_getppid("SCMP_ACT_TRAP")), trapped) == [signal.SIGSYS]


def test_trace_without_a_tracer_is_enosys() -> None:
    assert result_of(allowing(on_getppid("SCMP_ACT_TRACE")), ppid_call) == errno.ENOSYS


def test_trace_gives_the_tracer_its_message() -> None:
    (code,) = [
        k
        for op, _, _, k in struct.iter_unpack(
            "=HBBI", allowing(on_getppid("SCMP_ACT_TRACE", errnoRet=0x1234))
        )
        if op == 6 and k >> 16 == 0x7FF0
    ]
    assert code & 0xFFFF == 0x1234


def test_log_lets_the_call_through() -> None:
    program = seccomp.compile_oci({"defaultAction": "SCMP_ACT_LOG"})
    returned = {k for op, _, _, k in struct.iter_unpack("=HBBI", program) if op == 6}
    assert 0x7FFC0000 in returned  # SECCOMP_RET_LOG
    assert result_of(program, ppid_call) == 0


def test_default_action_kill() -> None:
    config = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": ["write", "exit_group"], "action": "SCMP_ACT_ALLOW"}],
    }
    # No stub: whoever asked for a kill gets it, for numbers of the future too.
    for call in (number("getppid"), UNKNOWN):
        _, status = in_child(seccomp.compile_oci(config), functools.partial(errno_of, call))
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGSYS


def test_notify_asks_the_holder_of_the_listener() -> None:
    config = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [on_getppid("SCMP_ACT_NOTIFY")],
    }
    prepared = linux_seccomp.Filter(seccomp.compile_oci(config), seccomp.filter_flags(config))
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            CLIB.prctl(38, 1, 0, 0, 0)
            listener = prepared.load()
            socket.send_fds(theirs, [b"x"], [listener])
            status = 0 if CLIB.syscall(ctypes.c_long(number("getppid"))) == 4242 else 71
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    notification = array.array("B", bytes(80))  # struct seccomp_notif
    fcntl.ioctl(listener, 0xC0502100, notification)  # SECCOMP_IOCTL_NOTIF_RECV
    cookie, who, _, call = struct.unpack_from("=QIIi", notification)
    answer = array.array("B", struct.pack("=QqiI", cookie, 4242, 0, 0))
    fcntl.ioctl(listener, 0xC0182101, answer)  # SECCOMP_IOCTL_NOTIF_SEND
    os.close(listener)
    assert (who, call) == (pid, number("getppid"))
    assert os.waitpid(pid, 0) == (pid, 0)


# --- conditions -----------------------------------------------------------------------

BIG = 2**32 + 5
TOP = 2**64 - 1


@pytest.mark.parametrize(
    ("operator", "values", "matching", "others"),
    [
        ("SCMP_CMP_EQ", (BIG,), [BIG], [5, BIG + 1, BIG + 2**32]),
        ("SCMP_CMP_NE", (BIG,), [5, 0, TOP, BIG + 2**32], [BIG]),
        ("SCMP_CMP_LT", (BIG,), [0, 6, BIG - 1], [BIG, BIG + 1, 2**33]),
        ("SCMP_CMP_LE", (BIG,), [0, 6, BIG], [BIG + 1, 2**33]),
        ("SCMP_CMP_GE", (BIG,), [BIG, BIG + 1, 2**33, TOP], [0, 6, BIG - 1]),
        ("SCMP_CMP_GT", (BIG,), [BIG + 1, 2**33, TOP], [0, 6, BIG]),
        ("SCMP_CMP_MASKED_EQ", (0xF0, 0x30), [0x30, 0x3F, 0x1230], [0x20, 0x70, 0]),
        ("SCMP_CMP_MASKED_EQ", (0xF0,), [0, 0xF, 0x100], [0x10, 0xF0]),
        ("SCMP_CMP_MASKED_EQ", (BIG, 2**32), [2**32, 2**33 + 2**32 + 2], [0, BIG, 1]),
    ],
)
def test_operator(
    operator: str, values: tuple[int, ...], matching: list[int], others: list[int]
) -> None:
    arg = {"index": 2, "op": operator, **dict(zip(("value", "valueTwo"), values, strict=False))}
    program = allowing(on_getppid(errnoRet=123, args=[arg]))
    call = number("getppid")

    def errors(arguments: list[int]) -> list[int]:
        return [errno_of(call, 0, 0, argument) for argument in arguments]

    assert result_of(program, lambda: errors(matching)) == [123] * len(matching)
    assert result_of(program, lambda: errors(others)) == [0] * len(others)


def equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


@pytest.mark.parametrize("index", range(6))
def test_each_argument(index: int) -> None:
    program = allowing(on_getppid(errnoRet=123, args=[equal(index, 7)]))
    call = number("getppid")

    def each() -> list[int]:
        return [errno_of(call, *(7 if i == at else 0 for i in range(6))) for at in range(6)]

    assert result_of(program, each) == [123 if at == index else 0 for at in range(6)]


def test_conditions_on_different_arguments_must_all_hold() -> None:
    program = allowing(on_getppid(errnoRet=123, args=[equal(0, 1), equal(1, 2)]))
    call = number("getppid")
    calls = [(1, 2), (1, 0), (0, 2)]
    got = result_of(program, lambda: [errno_of(call, *arguments) for arguments in calls])
    assert got == [123, 0, 0]


def test_of_conditions_with_one_argument_in_common_any_will_do() -> None:
    args = [equal(0, 1), equal(0, 2), equal(1, 3)]
    program = allowing(on_getppid(errnoRet=123, args=args))
    call = number("getppid")
    calls = [(1, 0), (2, 0), (0, 3), (0, 0)]
    got = result_of(program, lambda: [errno_of(call, *arguments) for arguments in calls])
    assert got == [123, 123, 123, 0]


def test_names_of_other_kernels_are_skipped() -> None:
    entry = on_getppid(errnoRet=123)
    entry["names"] = ["no_such_call", "socketcall", "getppid"]
    assert result_of(allowing(entry), ppid_call) == 123


def test_rule_that_repeats_the_default_is_skipped() -> None:
    entry = {"names": ["getppid"], "action": "SCMP_ACT_ALLOW"}
    assert result_of(allowing(entry), ppid_call) == 0


# --- loading --------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, 1, 2, 4, 7])
def test_flags_load(flags: int) -> None:
    assert result_of(allowing(on_getppid(errnoRet=123)), ppid_call, flags) == 123


def test_tsync_reaches_other_threads() -> None:
    inner = linux_seccomp.Filter(allowing(on_getppid(errnoRet=123)), flags=1)
    plain = linux_seccomp.Filter(allowing(on_getppid(errnoRet=99)))

    def other_thread(prepared: linux_seccomp.Filter, own: linux_seccomp.Filter | None) -> Any:
        ready, loaded = threading.Event(), threading.Event()
        seen: list[int] = []

        def run() -> None:
            if own is not None:
                own.load()
            ready.set()
            loaded.wait()
            seen.append(ppid_call())

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait()
        error = 0
        try:
            prepared.load()
        except OSError as caught:
            error = caught.errno or 0
        loaded.set()
        thread.join()
        return error, seen

    outer = allowing()
    assert result_of(outer, lambda: other_thread(inner, None)) == (0, [123])
    # A thread with a filter of its own cannot follow, and that is not passed over.
    assert result_of(outer, lambda: other_thread(inner, plain)) == (errno.ESRCH, [99])


def test_prctl_serves_where_seccomp_is_hidden() -> None:
    hidden = allowing({"names": ["seccomp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    inner = allowing(on_getppid(errnoRet=123))

    def load() -> tuple[int, int, int]:
        try:
            linux_seccomp.load(inner, flags=linux_seccomp.SECCOMP_FILTER_FLAG_LOG)
            with_flags = 0
        except OSError as error:
            with_flags = error.errno or 0
        return with_flags, linux_seccomp.load(inner), ppid_call()

    assert result_of(hidden, load) == (errno.ENOSYS, 0, 123)


def test_the_kernel_refuses_a_bad_program() -> None:
    def load() -> int:
        try:
            linux_seccomp.load(b"\xff" * 8)
        except OSError as error:
            return error.errno or 0
        return 0

    assert result_of(allowing(), load) == errno.EINVAL
    with pytest.raises(UsageError):
        linux_seccomp.load(b"")


def test_listener_sees_readable_arguments() -> None:
    program = allowing(on_getppid())

    def load() -> list[Any]:
        heard: list[Any] = []
        libc.listen(lambda name, arguments, result, _s, _w: heard.append((name, arguments, result)))
        linux_seccomp.load(program, flags=linux_seccomp.SECCOMP_FILTER_FLAG_LOG)
        return heard

    expected = ("SECCOMP_SET_MODE_FILTER", "LOG", f"{{{len(program) // 8} instructions}}")
    assert result_of(program, load) == [("seccomp", expected, 0)]


# --- the program itself ---------------------------------------------------------------


def evaluate(
    program: bytes, arch: int, call: int, arguments: tuple[int, ...] = ()
) -> tuple[int, int]:
    """Run a filter as the kernel does (bpf(4), seccomp(2)).

    Returns:
        its verdict, and how many instructions that took.
    """
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=II7Q", call & 0xFFFFFFFF, arch, 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = steps = 0
    while True:
        code, jt, jf, k = instructions[at]
        at += 1
        steps += 1
        match code:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x54:  # and
                accumulator &= k
            case 0x05:  # ja
                at += k
            case 0x15:  # jeq
                at += jt if accumulator == k else jf
            case 0x25:  # jgt
                at += jt if accumulator > k else jf
            case 0x35:  # jge
                at += jt if accumulator >= k else jf
            case 0x45:  # jset
                at += jt if accumulator & k else jf
            case 0x06:  # ret
                return k, steps
            case _:
                raise AssertionError(f"instruction {code:#x}")


ENOSYS = 0x00050000 | errno.ENOSYS
ON = 0x11111111  # "went on to the filter"
GO_ON = struct.pack("=HBBI", 6, 0, 0, ON)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (
            {X86_64: 450, X86: 440, X32: X32_BIT | 547},
            {
                (X86_64, 0): ON,
                (X86_64, 450): ON,
                (X86_64, 451): ENOSYS,
                (X86_64, X32_BIT): ON,
                (X86_64, X32_BIT | 547): ON,
                (X86_64, X32_BIT | 548): ENOSYS,
                (X86_64, 2**32 - 1): ENOSYS,
                (X86, 440): ON,
                (X86, 441): ENOSYS,
                (AARCH64, 9999): ON,
            },
        ),
        # Without x32 its calls are the filter's to refuse.
        ({X86_64: 450}, {(X86_64, 451): ENOSYS, (X86_64, X32_BIT | 999): ON, (X86, 999): ON}),
        ({X32: X32_BIT | 5}, {(X86_64, 999): ON, (X86_64, X32_BIT | 6): ENOSYS}),
        (
            {AARCH64: 450, ARM: 440},
            {(AARCH64, 450): ON, (AARCH64, 451): ENOSYS, (ARM, 440): ON, (ARM, 441): ENOSYS},
        ),
        # Calls that a kernel of s390 doesn't know come as 0.
        ({S390X: 450}, {(S390X, 0): ENOSYS, (S390X, 1): ON, (S390X, 451): ENOSYS}),
        ({}, {(X86_64, 999): ON}),
    ],
)
def test_enosys_stub(largest: dict[int, int], expected: dict[tuple[int, int], int]) -> None:
    program = libseccomp.enosys_stub(largest) + GO_ON
    assert {key: evaluate(program, *key)[0] for key in expected} == expected


def test_stub_starts_after_the_largest_name() -> None:
    allowed = ["read", "write", "exit_group", "getppid"]
    config = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 13,
        "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}],
    }
    last = max(map(number, allowed))
    program = seccomp.compile_oci(config)
    assert result_of(program, lambda: [errno_of(last - 1), errno_of(last + 1)]) == [
        13,
        errno.ENOSYS,
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"defaultAction": "SCMP_ACT_ALLOW"},
        {"defaultAction": "SCMP_ACT_LOG"},
        {"defaultAction": "SCMP_ACT_TRACE"},
        {"defaultAction": "SCMP_ACT_TRAP"},
    ],
)
def test_no_stub_for_other_default_actions(change: dict[str, Any]) -> None:
    program = seccomp.compile_oci({"syscalls": [on_getppid(errnoRet=5)], **change})
    returned = {k for op, _, _, k in struct.iter_unpack("=HBBI", program) if op == 6}
    assert ENOSYS not in returned


def test_default_profile_is_short_to_run(default: bytes) -> None:
    """libseccomp's list would compare each call's number with most of the profile's."""
    verdict, steps = evaluate(default, libseccomp.native(), number("futex"))
    assert verdict == 0x7FFF0000
    assert steps < 50


# --- runc as the judge ----------------------------------------------------------------

# Run by a Python of the system, in runc's container and under our filter; gets
# {label: [number, arguments...]} and prints {label: errno}, then waits to be read.
PROBE = """
import ctypes, json, sys
syscall = ctypes.CDLL(None, use_errno=True).syscall
syscall.restype = ctypes.c_long
found = {}
for label, call in json.loads(sys.argv[1]).items():
    failed = syscall(*[ctypes.c_long(number) for number in call]) == -1
    found[label] = ctypes.get_errno() if failed else 0
print(json.dumps(found), flush=True)
sys.stdin.read()
"""
PYTHON = "/usr/bin/python3"

# Arguments that change nothing on the machine should a filter let the call through.
PROBES: dict[str, tuple[Any, ...]] = {
    "getpid": ("getpid",),
    "read": ("read", -1, 0, 0),
    "statx": ("statx", -1, 0, 0, 0, 0),
    "unshare": ("unshare", 0),
    "setns": ("setns", -1, 0),
    "mount": ("mount", 0, 0, 0, 0, 0),
    "umount2": ("umount2", 0, 0),
    "bpf": ("bpf", -1, 0, 0),
    "keyctl": ("keyctl", -1, 0, 0, 0, 0),
    "ptrace": ("ptrace", -1, 0, 0, 0),
    "perf_event_open": ("perf_event_open", 0, 0, 0, 0, 0),
    "userfaultfd": ("userfaultfd", -1),
    "init_module": ("init_module", 0, 0, 0),
    "open_by_handle_at": ("open_by_handle_at", -1, 0, 0),
    "process_vm_readv": ("process_vm_readv", -1, 0, 0, 0, 0, 0),
    "reboot": ("reboot", 0, 0, 0, 0),
    "clone of a namespace": ("clone", 0x10000200, 0, 0, 0, 0),
    "clone without": ("clone", 0x800, 0, 0, 0, 0),
    "clone3": ("clone3", 0, 0),
    "personality unchanged": ("personality", 0xFFFFFFFF),
    "personality other": ("personality", 0x0004),
    "AF_UNIX": ("socket", 1, -1, 0),
    "AF_ALG": ("socket", 38, -1, 0),
    "AF_39": ("socket", 39, -1, 0),
    "AF_VSOCK": ("socket", 40, -1, 0),
    "AF_QIPCRTR": ("socket", 42, -1, 0),
    "io_uring_setup": ("io_uring_setup", 0, 0),
    "futex_waitv": ("futex_waitv", 0, -1, 0, 0, 0),
    "set_mempolicy_home_node": ("set_mempolicy_home_node", 0, 0, 0, -1),
}


def probes(config: dict[str, Any]) -> str:
    """Return the probes as JSON."""
    table = {label: [number(name), *rest] for label, (name, *rest) in PROBES.items()}
    table |= {f"number {call}": [call, -1, -1] for call in (451, 452, 453, 462, UNKNOWN, -1)}
    # A filter without x32 kills for its calls.
    if "SCMP_ARCH_X32" in config["architectures"]:
        table |= {f"x32 {call}": [X32_BIT | call, 0] for call in (39, 272, UNKNOWN)}
    return json.dumps(table)


def runc_config(config: dict[str, Any]) -> dict[str, Any]:
    """A bundle of the host's programs, read-only, with all of our capabilities."""
    status = Path("/proc/self/status").read_text()
    names = caps.names(int(status.partition("CapBnd:")[2].split()[0], 16))
    binds = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": [PYTHON, "-I", "-c", PROBE, probes(config)],
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            *({"destination": path, "source": path, "options": ["bind", "ro"]} for path in binds),
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}], "seccomp": config},
    }


def read_filter(pid: int) -> bytes:
    """Return the filter that a process loaded last (ptrace(2))."""
    assert CLIB.ptrace(0x4206, pid, 0, 0) == 0  # PTRACE_SEIZE
    assert CLIB.ptrace(0x4207, pid, 0, 0) == 0  # PTRACE_INTERRUPT
    os.waitpid(pid, 0x40000000)  # __WALL
    count = CLIB.ptrace(0x420C, pid, 0, 0)  # PTRACE_SECCOMP_GET_FILTER
    assert count > 0, os.strerror(ctypes.get_errno())
    program = ctypes.create_string_buffer(8 * count)
    assert CLIB.ptrace(0x420C, pid, 0, ctypes.addressof(program)) == count
    assert CLIB.ptrace(17, pid, 0, 0) == 0  # PTRACE_DETACH
    return bytes(program)


def under_runc(config: dict[str, Any], bundle: Path) -> tuple[dict[str, int], bytes]:
    """Return what the probes got in runc's container, and the filter that it loaded."""
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(runc_config(config)))
    runc = ["runc", "--root", str(bundle / "state")]
    name = f"firkin-test-{os.getpid()}-{bundle.name}"
    with subprocess.Popen(
        [*runc, "run", "--bundle", str(bundle), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            state = subprocess.run([*runc, "state", name], capture_output=True, check=True)
            program = read_filter(json.loads(state.stdout)["pid"])
        finally:
            process.stdin.close()
            if process.wait() != 0:
                subprocess.run([*runc, "delete", "--force", name], capture_output=True)
    return json.loads(line), program


def under_ours(config: dict[str, Any]) -> dict[str, int]:
    prepared = linux_seccomp.Filter(seccomp.compile_oci(config), seccomp.filter_flags(config))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 1)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            CLIB.prctl(38, 1, 0, 0, 0)
            prepared.load()
            os.execv(PYTHON, [PYTHON, "-I", "-c", PROBE, probes(config)])
        finally:
            os._exit(70)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    assert os.waitpid(pid, 0) == (pid, 0)
    found: dict[str, int] = json.loads(text)
    return found


def strict() -> dict[str, Any]:
    """A profile of another make: many conditions, errnos and actions on few architectures."""
    config = seccomp.default_profile([*DOCKER, "CAP_SYS_ADMIN", "CAP_SYS_NICE"])
    several = [equal(0, 1), equal(0, 2), {"index": 1, "value": 9, "op": "SCMP_CMP_GE"}]
    masked = {"index": 0, "value": 0xFF, "valueTwo": 0x2A, "op": "SCMP_CMP_MASKED_EQ"}
    config["defaultErrnoRet"] = 13
    config["architectures"] = config["architectures"][:1]
    config["syscalls"] += [
        {"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": several},
        {"names": ["acct"], "action": "SCMP_ACT_TRAP", "args": [masked, equal(1, 3)]},
        {"names": ["swapon", "nonsense"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["swapoff"], "action": "SCMP_ACT_LOG"},
    ]
    return config


ARGUMENTS = [
    (),
    (1,),
    (2, 0),
    (0, 9),
    (0x12A, 3),
    (38,),
    (40,),
    (42,),
    (0x7E020000,),
    (0x10000000,),
    (131072,),
    (0xFFFFFFFF,),
    (2**63, 2**40),
]


@requires("program:runc")
@pytest.mark.parametrize("which", ["none", "docker", "sys_admin", "strict"])
def test_runc_decides_the_same(which: str, tmp_path: Path) -> None:
    if not os.path.exists(PYTHON):
        need("program:python3")
    profiles: dict[str, Callable[[], dict[str, Any]]] = {
        "none": lambda: seccomp.default_profile([]),
        "docker": lambda: seccomp.default_profile(DOCKER),
        "sys_admin": lambda: seccomp.default_profile([*DOCKER, "CAP_SYS_ADMIN"]),
        "strict": strict,
    }
    config = profiles[which]()
    theirs, their_program = under_runc(config, tmp_path / which)
    assert under_ours(config) == theirs
    our_program = seccomp.compile_oci(config)
    abis: dict[int, Iterable[int]] = {libseccomp.native(): range(600)}
    if libseccomp.native() == X86_64:
        abis = {X86_64: [*range(600), *range(X32_BIT, X32_BIT + 600), 2**32 - 1], X86: range(600)}
    differing = {
        (hex(arch), hex(call), arguments): (hex(ours), hex(runcs))
        for arch, calls in abis.items()
        for call in calls
        for arguments in ARGUMENTS
        if (ours := evaluate(our_program, arch, call, arguments)[0])
        != (runcs := evaluate(their_program, arch, call, arguments)[0])
    }
    assert differing == {}
