"""CVE-2016-9962: tracing the runtime's process from inside, and taking its open files.

A process of the runtime that is dumpable while it is in the container's PID
namespace can be traced by the container's root. ``--init`` keeps one there.
"""

from __future__ import annotations

import pytest

from support.attack import inside
from support.command import Firkin

ATTACH = """
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
print([errno.errorcode.get(-call("ptrace", request, 1, 0, 0), "traced")
       for request in (PTRACE_ATTACH, PTRACE_SEIZE)])
print([tried(os.open, "/proc/1/fd/0", 0), tried(os.open, "/proc/1/mem", os.O_RDWR),
       tried(os.listdir, "/proc/1/root"), tried(os.listdir, "/proc/1/cwd"),
       tried(os.readlink, "/proc/1/ns/mnt")])
child = os.fork()
if child == 0:
    libc.pause()
print(call("ptrace", PTRACE_ATTACH, child, 0, 0))  # the control: tracing as such is allowed
os.kill(child, 9)
"""


@pytest.mark.parametrize("options", [[], ["--userns", "auto"], ["-u", "0"]])
def test_pid_1_can_not_be_traced(firkin: Firkin, options: list[str]) -> None:
    done = inside(firkin, "--init", *options, code=ATTACH)
    traced, files, control = done.stdout.splitlines()
    assert (traced, control) == ("['EPERM', 'EPERM']", "0"), done.stderr
    assert files == str(["EACCES"] * 5)
