"""Keys of the caller: the session keyring is inherited over namespaces (CVE-2014-9922's kin).

keyrings(7): a process keeps its session keyring until it joins another; and with
it, possession of the caller's keys. Docker's default profile refuses keyctl(2),
so the attempt runs without seccomp: the keyring itself must be another one.
"""

from __future__ import annotations

import pytest

from support.attack import PRELUDE, inside
from support.command import Firkin, execute

ADD = "KEYCTL, ADD_KEY = 250, 248\n"
SEARCH = """
found = call("syscall", 250, 10, -3, b"user", b"firkin-secret", 0)  # KEYCTL_SEARCH, session
print(found > 0, errno.errorcode.get(-found))
"""
CALLER = (
    PRELUDE
    + """
call("syscall", 250, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
assert call("syscall", 248, b"user", b"firkin-secret", b"x", 1, -3) > 0
assert call("syscall", 250, 10, -3, b"user", b"firkin-secret", 0) > 0
os.execv(sys.argv[1], sys.argv[1:])
"""
)


@pytest.mark.parametrize("options", [[], ["--init"], ["--userns", "auto"]])
def test_the_callers_keys_are_not_found(firkin: Firkin, options: list[str]) -> None:
    open_ = ["--security-opt", "seccomp=unconfined"]
    run = [firkin.command(), "run", *options, *open_, "host", "python3", "-c", PRELUDE + SEARCH]
    done = execute(["/usr/bin/python3", "-c", CALLER, *run], env=firkin.env())
    assert done.stdout.startswith("False "), done.stdout + done.stderr


def test_they_would_be() -> None:
    # The control: the same search in new namespaces alone.
    search = ["/usr/bin/python3", "-c", PRELUDE + SEARCH]
    unshare = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--ipc", "--net"]
    done = execute(["/usr/bin/python3", "-c", CALLER, *unshare, *search])
    assert done.stdout == "True None\n", done.stderr


def test_the_default_profile_refuses_keyctl(firkin: Firkin) -> None:
    done = inside(firkin, code=SEARCH)
    assert done.stdout == "False EPERM\n", done.stderr
