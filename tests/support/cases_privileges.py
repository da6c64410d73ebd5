"""What root's and an ordinary user's containers have in common: rights, and how few there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.command import Firkin
from support.running import Running

# Docker's fourteen, as the kernel prints them.
DEFAULT = 0x00000000A80425FB
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NUMBERS = {"CHOWN": 0, "SETUID": 7, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "MKNOD": 27}


def bit(name: str) -> int:
    return 1 << NUMBERS[name]


def sets(box: Running) -> dict[str, int]:
    """Return the five capability sets of the command, as the kernel has them."""
    return {name: int(box.status(name), 16) for name in SETS}


def alike(permitted: int) -> dict[str, int]:
    """Return the sets of a command that is root and may do *permitted*."""
    return {
        "CapInh": 0, "CapPrm": permitted, "CapEff": permitted, "CapBnd": permitted, "CapAmb": 0
    }  # fmt: skip


def call(number: int | str, *arguments: int) -> str:
    """Return a Python script that makes a system call and prints its errno, 0 for none."""
    shown = ", ".join(map(str, arguments))
    return (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
        f"r = c.syscall({number}, {shown}); print(ctypes.get_errno() if r == -1 else 0)"
    )


class Cases:
    """Tests that run in both rooms; a subclass named ``Test…`` collects them."""

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("", DEFAULT),
            ("--cap-drop NET_RAW", DEFAULT & ~bit("NET_RAW")),
            ("--cap-drop cap_net_raw --cap-drop CHOWN", DEFAULT & ~bit("NET_RAW") & ~bit("CHOWN")),
            ("--cap-drop ALL", 0),
            ("--cap-drop ALL --cap-add CHOWN", bit("CHOWN")),
            ("--cap-add NET_ADMIN", DEFAULT | bit("NET_ADMIN")),
            ("--init", DEFAULT),
        ],
    )
    def test_capabilities(
        self, firkin: Firkin, busybox_root: Path, options: str, expected: int
    ) -> None:
        with Running(firkin, busybox_root, *options.split()) as box:
            if "--init" in options:
                # The reaper is pid 1; the command is its child.
                box.pid = leftovers.descendants(box.process.pid)[-1]
            assert sets(box) == alike(expected)

    def test_every_capability(self, firkin: Firkin, busybox_root: Path) -> None:
        with Running(firkin, busybox_root, "--cap-add", "ALL", "--cap-drop", "CHOWN") as box:
            found = sets(box)
            assert found["CapEff"] == found["CapPrm"] == found["CapBnd"]
            assert found["CapEff"] & bit("NET_ADMIN")
            assert not found["CapEff"] & bit("CHOWN")

    def test_privileged(self, firkin: Firkin, busybox_root: Path) -> None:
        with Running(firkin, busybox_root, "--privileged") as box:
            assert sets(box)["CapEff"] & bit("SYS_ADMIN")
            assert box.status("Seccomp") == "0"
            assert box.status("NoNewPrivs") == "0"
            mounts = box.proc("mountinfo")
            assert " /proc/sys " not in mounts
            assert re.search(r" /sys rw,", mounts)

    def test_no_new_privs_and_seccomp_are_on(self, firkin: Firkin, busybox_root: Path) -> None:
        with Running(firkin, busybox_root) as box:
            assert box.status("NoNewPrivs") == "1"
            assert box.status("Seccomp") == "2"

    @pytest.mark.parametrize(
        ("option", "filters", "no_new_privs"),
        [
            ("seccomp=unconfined", "0", "1"),
            ("no-new-privileges=false", "2", "0"),
            ("no-new-privileges", "2", "1"),
        ],
    )
    def test_security_options(
        self, firkin: Firkin, busybox_root: Path, option: str, filters: str, no_new_privs: str
    ) -> None:
        with Running(firkin, busybox_root, "--security-opt", option) as box:
            assert (box.status("Seccomp"), box.status("NoNewPrivs")) == (filters, no_new_privs)
            # A filter loaded early must not cost capabilities, and no more than it gives.
            assert sets(box) == alike(DEFAULT)

    @pytest.mark.parametrize(
        ("command", "says"),
        [
            ("unshare -U true", "unshare.*not permitted"),
            ("unshare -m true", "unshare.*not permitted"),
            ("mount -t tmpfs none /tmp", "permission denied|not permitted"),
            ("umount /proc", "not permitted|permission denied"),
            ("swapoff -a; dmesg -c", "not permitted"),
        ],
    )
    def test_programs_are_refused(
        self, firkin: Firkin, busybox_root: Path, command: str, says: str
    ) -> None:
        done = firkin("run", busybox_root, "sh", "-c", command)
        assert re.search(says, done.stderr, re.IGNORECASE), done.stderr
        assert done.returncode != 0

    @pytest.mark.parametrize("form", ["docker", "oci"])
    @pytest.mark.parametrize("number", [95, 38])
    def test_a_profile_of_ones_own(
        self, firkin: Firkin, busybox_root: Path, tmp_path: Path, form: str, number: int
    ) -> None:
        profile = tmp_path / "profile.json"
        profile.write_text(json.dumps(denying(form, number)))
        done = firkin("run", "--security-opt", f"seccomp={profile}", busybox_root, *MKDIR)
        text = {95: "Not supported", 38: "Function not implemented"}[number]
        assert (done.returncode, done.stdout) == (1, "")
        assert text.lower() in done.stderr.lower()
        with Running(firkin, busybox_root, "--security-opt", f"seccomp={profile}") as box:
            assert box.status("Seccomp") == "2"
        assert firkin("run", busybox_root, *MKDIR).returncode == 0

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (None, "No such file"),
            ("{", "not JSON"),
            ("[]", "not a JSON object"),
            ("{}", "defaultAction"),
            ('{"defaultAction": "SCMP_ACT_MAYBE"}', "SCMP_ACT_MAYBE"),
            ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": 5}', "syscalls"),
            (
                '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
                '[{"names": ["mkdir"], "action": "SCMP_ACT_NO"}]}',
                "SCMP_ACT_NO",
            ),
        ],
    )
    def test_a_broken_profile_is_refused(
        self, firkin: Firkin, busybox_root: Path, tmp_path: Path, text: str | None, says: str
    ) -> None:
        profile = tmp_path / "profile.json"
        if text is not None:
            profile.write_text(text)
        done = firkin("run", "--security-opt", f"seccomp={profile}", busybox_root, "true")
        assert done.returncode == 125
        assert re.fullmatch(r"firkin: .+: .+\n", done.stderr)
        assert says in done.stderr

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ("--cap-add NOTHING", "--cap-add to 'NOTHING'"),
            ("--cap-drop CAP_", "--cap-drop to 'CAP_'"),
            ("--security-opt seccomp", "--security-opt to 'seccomp'"),
            (
                "--security-opt no-new-privileges=maybe",
                "no-new-privileges to 'maybe'",
            ),
            ("--security-opt apparmor=x", "apparmor"),
        ],
    )
    def test_refusals(self, firkin: Firkin, busybox_root: Path, options: str, says: str) -> None:
        done = firkin("run", *options.split(), busybox_root, "true")
        assert (done.returncode, done.stdout) == (125, "")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_torn_filter_is_compiled_again(
        self, firkin: Firkin, busybox_root: Path, tmp_path: Path
    ) -> None:
        """The cache is a shortcut only: what is wrong in it is not loaded and not an error."""
        env = {"FIRKIN_STORE": str(tmp_path / "store")}
        command = ["run", busybox_root, "grep", "Seccomp:", "/proc/self/status"]
        cache = tmp_path / "store/seccomp"

        def run() -> dict[str, bytes]:
            done = firkin(*command, env=env)
            assert (done.returncode, done.stdout) == (0, "Seccomp:\t2\n"), done.stderr
            return {path.name: path.read_bytes() for path in cache.iterdir()}

        first = run()
        assert first
        assert run() == first
        for torn in (b"", b"\0" * 100, next(iter(first.values()))[:-8]):
            for name in first:
                (cache / name).write_bytes(torn)
            assert run() == first


MKDIR = ("mkdir", "/tmp/x")


def denying(form: str, number: int) -> dict[str, Any]:
    """Return a profile that refuses to make folders, in Docker's form or the specification's."""
    entry = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]}
    if form == "docker":
        profile["archMap"] = [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        ]
        # One that does not apply: the container lacks that capability.
        excluded = {"names": ["chdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
        profile["syscalls"].append({**excluded, "includes": {"caps": ["CAP_SYS_ADMIN"]}})
    return profile
