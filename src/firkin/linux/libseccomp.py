"""A thin binding of libseccomp, and the instructions that go before its programs.

Only imported when a filter is compiled: loading the library costs more than
loading a compiled filter.

Source: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3), seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from firkin.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SCMP_ACT_KILL_PROCESS = 0x80000000
SCMP_ACT_KILL_THREAD = 0x00000000
SCMP_ACT_TRAP = 0x00030000
SCMP_ACT_ERRNO = 0x00050000  # | errno
SCMP_ACT_NOTIFY = 0x7FC00000
SCMP_ACT_TRACE = 0x7FF00000  # | message for the tracer
SCMP_ACT_LOG = 0x7FFC0000
SCMP_ACT_ALLOW = 0x7FFF0000

# enum scmp_compare
SCMP_CMP = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

_SCMP_FLTATR_CTL_NNP = 3
_SCMP_FLTATR_CTL_OPTIMIZE = 8
_SCMP_ARCH_X32 = 0x4000003E
_AUDIT_ARCH_X86_64 = 0xC000003E
_AUDIT_ARCH_S390 = (0x00000016, 0x80000016)
_X32_SYSCALL_BIT = 1 << 30

# include/uapi/linux/bpf_common.h
_LD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JA = 0x05  # BPF_JMP | BPF_JA
_JEQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JGT = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JSET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RET = 0x06  # BPF_RET | BPF_K

# struct seccomp_data
_NR = 0
_ARCH = 4


class _ArgCmp(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


try:
    _library = ctypes.CDLL("libseccomp.so.2")
except OSError as _error:
    raise Unsupported(
        "cannot compile a seccomp filter",
        f"the library libseccomp.so.2 cannot be loaded ({_error})",
        "install it (Debian: the package libseccomp2), "
        "or run with --security-opt seccomp=unconfined",
    ) from None


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    found = getattr(_library, name)
    found.restype = restype
    found.argtypes = argtypes
    return found


_int, _u32, _text, _context = ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_void_p
_version = _function("seccomp_version", ctypes.POINTER(_Version))
_init = _function("seccomp_init", _context, _u32)
_release = _function("seccomp_release", None, _context)
_attr_set = _function("seccomp_attr_set", _int, _context, _int, _u32)
_arch_native = _function("seccomp_arch_native", _u32)
_arch_resolve_name = _function("seccomp_arch_resolve_name", _u32, _text)
_arch_add = _function("seccomp_arch_add", _int, _context, _u32)
_resolve_name = _function("seccomp_syscall_resolve_name", _int, _text)
_resolve_name_arch = _function("seccomp_syscall_resolve_name_arch", _int, _u32, _text)
_rule_add_array = _function(
    "seccomp_rule_add_array", _int, _context, _u32, _int, ctypes.c_uint, ctypes.POINTER(_ArgCmp)
)
_export_bpf = _function("seccomp_export_bpf", _int, _context, _int)

_NR_SCMP_ERROR = -1


def _check(name: str, result: int) -> None:
    """Raise for a libseccomp result, which is 0 or a negative errno."""
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")


def version() -> str:
    """Return the library's version, as ``2.5.4``."""
    found = _version().contents
    return f"{found.major}.{found.minor}.{found.micro}"


def native() -> int:
    """Return the token of the architecture that this process runs on."""
    return int(_arch_native())


def arch(name: str) -> int | None:
    """Return the token of ``SCMP_ARCH_*``, None where this libseccomp doesn't know it."""
    if not name.startswith("SCMP_ARCH_"):
        return None
    # 0 is both "unknown" and SCMP_ARCH_NATIVE, which the OCI specification doesn't have.
    return _arch_resolve_name(os.fsencode(name[len("SCMP_ARCH_") :].lower())) or None


def syscall(name: str) -> int | None:
    """Return the native number of the system call *name*, None where it is unknown.

    A call that only other architectures have gets a negative number, which
    :meth:`Context.rule_add` takes.
    """
    number: int = _resolve_name(os.fsencode(name))
    return None if number == _NR_SCMP_ERROR else number


def syscall_on(token: int, name: str) -> int | None:
    """Return the number of *name* on the architecture *token*, None where it has none."""
    number: int = _resolve_name_arch(token, os.fsencode(name))
    return None if number < 0 else number


class Context:
    """A filter being built: rules for the native architecture and those added.

    Args:
        default: the action for calls that no rule matches.

    Raises:
        OSError: the library or the kernel doesn't have this action.
    """

    __slots__ = ("_pointer",)

    def __init__(self, default: int) -> None:
        self._pointer = _init(default)
        if not self._pointer:
            raise OSError(errno.EINVAL, f"seccomp_init: action {default:#x} is not available")
        # Whether no_new_privs is set is the caller's business, not the filter's.
        self._set(_SCMP_FLTATR_CTL_NNP, 0)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        _release(self._pointer)
        self._pointer = None

    def _set(self, attribute: int, value: int) -> None:
        _check("seccomp_attr_set", _attr_set(self._pointer, attribute, value))

    def binary_tree(self) -> None:
        """Order the program as a binary tree of numbers, not as a list (libseccomp 2.5)."""
        self._set(_SCMP_FLTATR_CTL_OPTIMIZE, 2)

    def arch_add(self, token: int) -> None:
        """Filter the calls of another architecture too; twice is not an error."""
        result = _arch_add(self._pointer, token)
        if result != -errno.EEXIST:
            _check("seccomp_arch_add", result)

    def rule_add(
        self, action: int, number: int, conditions: Sequence[tuple[int, int, int, int]] = ()
    ) -> None:
        """Take *action* on the call *number* if all *conditions* hold.

        The rule is made to fit each architecture where that is possible (not
        seccomp_rule_add_exact), as runc and crun do: x86 passes the arguments
        of socket calls through memory, where no filter can see them.

        Args:
            action: ``SCMP_ACT_*`` with its data.
            number: what :func:`syscall` returned.
            conditions: each (argument's index, ``SCMP_CMP`` operator, value, second value).

        Raises:
            OSError: the rule contradicts another or the default action.
        """
        array = (_ArgCmp * len(conditions))(*[_ArgCmp(*condition) for condition in conditions])
        result = _rule_add_array(self._pointer, action, number, len(conditions), array)
        _check("seccomp_rule_add_array", result)

    def export(self) -> bytes:
        """Return the program as ``struct sock_filter[]``."""
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check("seccomp_export_bpf", _export_bpf(self._pointer, fd))
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)


def enosys_stub(largest: dict[int, int]) -> bytes:
    """Return instructions that give ENOSYS to calls newer than the profile.

    They go before a program. A C library that tries a new call and falls back
    on ENOSYS would take the EPERM of a profile, which cannot know the call, for
    a final answer. runc does the same (libcontainer/seccomp/patchbpf).

    Args:
        largest: architecture's token to the largest number that the profile names there.
    """
    sections: dict[int, dict[int, int]] = {}
    for token, number in largest.items():
        # The kernel reports x32 as x86-64; only a bit in the number tells them apart.
        audit_arch = _AUDIT_ARCH_X86_64 if token == _SCMP_ARCH_X32 else token
        sections.setdefault(audit_arch, {})[token] = number
    program = [_instruction(_LD, _ARCH)]
    for audit_arch, numbers in sections.items():
        # The next test is reached only by a test that failed, so the accumulator
        # still holds the architecture. A section is far below 255 instructions.
        section = _section(audit_arch, numbers)
        program += [_instruction(_JEQ, audit_arch, 0, len(section)), *section]
    for index, instruction in enumerate(program):
        if instruction == _TO_FILTER:
            program[index] = _instruction(_JA, len(program) - index - 1)
    return b"".join(program)


def _section(audit_arch: int, largest: dict[int, int]) -> list[bytes]:
    """Return the instructions for one audit architecture."""

    def compare(number: int | None) -> list[bytes]:
        if number is None:
            return [_TO_FILTER]
        return [_instruction(_JGT, number, 0, 1), _RET_ENOSYS, _TO_FILTER]

    section = [_instruction(_LD, _NR)]
    if audit_arch == _AUDIT_ARCH_X86_64:
        plain = compare(largest.get(_AUDIT_ARCH_X86_64))
        section.append(_instruction(_JSET, _X32_SYSCALL_BIT, len(plain), 0))
        return section + plain + compare(largest.get(_SCMP_ARCH_X32))
    if audit_arch in _AUDIT_ARCH_S390:
        # Numbers over 255 come through call 0 there, and one that the kernel
        # doesn't know stays 0. The real call 0, setup, is long gone.
        section += [_instruction(_JEQ, 0, 0, 1), _RET_ENOSYS]
    return section + compare(largest[audit_arch])


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


_RET_ENOSYS = _instruction(_RET, SCMP_ACT_ERRNO | errno.ENOSYS)
_TO_FILTER = _instruction(_JA, 0)  # aimed when the stub is whole
