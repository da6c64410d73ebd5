"""Device control on cgroup v2: a BPF program that the kernel asks at each open and mknod.

The program gets a ``struct bpf_cgroup_dev_ctx`` (include/uapi/linux/bpf.h):
``u32 access_type`` (access << 16 | type), ``u32 major``, ``u32 minor``, and
returns 1 to allow. It walks the rules from last to first; each rule settles the kinds of
access that it covers, so that the last rule that covers one decides it.
See bpf(2) and "Device controller" in the kernel's cgroup-v2.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from firkin.errors import SetupError, Unsupported
from firkin.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.cgroups.devices import Rules

# include/uapi/linux/bpf.h
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_F_ALLOW_MULTI = 2
_DEVICE_KIND = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

# Instructions: class | operation | source (Documentation/bpf/standardization/instruction-set.rst).
_LOAD_WORD = 0x61  # dst = *(u32 *)(src + offset)
_MOVE, _MOVE_REGISTER = 0xB4, 0xBC  # 32 bits
_AND, _SHIFT_RIGHT = 0x54, 0x74
_JUMP, _JUMP_NOT_EQUAL, _JUMP_SET = 0x05, 0x56, 0x46
_EXIT = 0x95

_RESULT, _CONTEXT, _PENDING, _KIND, _MAJOR, _MINOR = 0, 1, 2, 3, 4, 5

_SYSTEM_CALL = {"x86_64": 321, "aarch64": 280}


def _instruction(
    code: int, register: int = 0, value: int = 0, *, source: int = 0, offset: int = 0
) -> bytes:
    return struct.pack("=BBhI", code, source << 4 | register, offset, value & 0xFFFFFFFF)


def _return(value: int) -> bytes:
    return _instruction(_MOVE, _RESULT, value) + _instruction(_EXIT)


def compile_rules(rules: Rules) -> bytes:
    """Translate *rules*, of which the first is the default, to BPF instructions."""
    program = [
        _instruction(_LOAD_WORD, _PENDING, source=_CONTEXT, offset=0),
        _instruction(_MOVE_REGISTER, _KIND, source=_PENDING),
        _instruction(_AND, _KIND, 0xFFFF),
        _instruction(_SHIFT_RIGHT, _PENDING, 16),
        _instruction(_LOAD_WORD, _MAJOR, source=_CONTEXT, offset=4),
        _instruction(_LOAD_WORD, _MINOR, source=_CONTEXT, offset=8),
    ]
    for allow, kind, major, minor, access in reversed(rules[1:]):
        mask = sum(_ACCESS[c] for c in set(access))
        if allow:
            # The covered kinds of access are settled; done when none is left.
            action = _instruction(_AND, _PENDING, ~mask)
            action += _instruction(_JUMP_NOT_EQUAL, _PENDING, 0, offset=2) + _return(1)
        else:
            action = _instruction(_JUMP_SET, _PENDING, mask, offset=1)
            action += _instruction(_JUMP, offset=2) + _return(0)
        for register, wanted in ((_MINOR, minor), (_MAJOR, major), (_KIND, _DEVICE_KIND.get(kind))):
            if wanted is not None:
                skip = len(action) // 8
                action = _instruction(_JUMP_NOT_EQUAL, register, wanted, offset=skip) + action
        program.append(action)
    program.append(_return(int(rules[0][0])))
    return b"".join(program)


def attach(directory: int, rules: Rules) -> None:
    """Load the program for *rules* and attach it to a cgroup.

    Args:
        directory: a descriptor of the cgroup's directory.
        rules: as :func:`firkin.runtime.cgroups.devices.complete` returns them.

    Raises:
        Unsupported: BPF is not allowed here, or the kernel or machine lacks it.
        SetupError: the kernel refused the program.
    """
    number = _SYSTEM_CALL.get(os.uname().machine)
    what = "cannot limit devices with a BPF program"
    if number is None:
        raise Unsupported(what, f"the bpf(2) number of {os.uname().machine} is not known")
    code = compile_rules(rules)
    instructions = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(b"Apache-2.0")
    # union bpf_attr, the part for BPF_PROG_LOAD.
    load = struct.pack(
        "=IIQQIIQIIII",
        _TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_),
        *(0, 0, 0, 0, 0, 0, 0),
    )
    try:
        libc.because("let the kernel ask this program at each open and mknod of a device")
        program = libc.syscall(
            "bpf",
            number,
            *(_PROG_LOAD, load, len(load)),
            shown=("BPF_PROG_LOAD", "BPF_PROG_TYPE_CGROUP_DEVICE", f"{len(rules)} rules"),
        )
        try:
            # The kernel keeps the program as long as the cgroup lives.
            request = struct.pack(
                "=IIII", directory, program, _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI
            )
            libc.syscall(
                "bpf",
                number,
                *(_PROG_ATTACH, request, len(request)),
                shown=("BPF_PROG_ATTACH", directory, program, "BPF_F_ALLOW_MULTI"),
            )
        finally:
            os.close(program)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise Unsupported(
                what,
                f"bpf(2): {error.strerror}",
                "run with CAP_BPF and CAP_NET_ADMIN, or with a user namespace of its own",
            ) from error
        raise SetupError(
            what, f"bpf(2): {error.strerror}", step="cgroup", errno=error.errno or 0
        ) from error
