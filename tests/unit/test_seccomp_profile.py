"""Profiles become the right rules, bad ones are refused, and the cache can be trusted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import ConfigError, UsageError
from firkin.linux import caps
from firkin.linux import seccomp as linux_seccomp
from firkin.runtime import seccomp, seccomp_cache

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

ALLOW_EVERYTHING = bytes([6, 0, 0, 0, 0, 0, 0xFF, 0x7F])  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW


def moby() -> dict[str, Any]:
    profile: dict[str, Any] = json.loads(Path(seccomp_cache.PROFILE).read_text())
    return profile


def resolve(
    profile: dict[str, Any],
    capabilities: Any = DOCKER,
    arch: str = "x86_64",
    kernel: tuple[int, int] = (6, 1),
) -> dict[str, Any]:
    return seccomp.resolve_profile(profile, capabilities=capabilities, arch=arch, kernel=kernel)


def allowed(resolved: dict[str, Any]) -> set[str]:
    """Names that are allowed whatever their arguments."""
    return {
        name
        for entry in resolved["syscalls"]
        if entry["action"] == "SCMP_ACT_ALLOW" and not entry.get("args")
        for name in entry["names"]
    }


def entries(resolved: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [entry for entry in resolved["syscalls"] if name in entry["names"]]


# --- resolving ------------------------------------------------------------------------


def test_default_set_gets_chroot_and_no_more() -> None:
    names = allowed(resolve(moby()))
    assert {"read", "execve", "chroot", "ptrace"} <= names
    for name in ("mount", "unshare", "setns", "bpf", "reboot", "open_by_handle_at", "syslog"):
        assert name not in names, name


def test_no_capabilities_lose_chroot() -> None:
    assert "chroot" not in allowed(resolve(moby(), capabilities=[]))


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("CAP_SYS_ADMIN", {"mount", "umount2", "unshare", "setns", "clone", "clone3", "bpf"}),
        ("CAP_DAC_READ_SEARCH", {"open_by_handle_at"}),
        ("CAP_SYS_BOOT", {"reboot"}),
        ("CAP_SYS_MODULE", {"init_module", "finit_module", "delete_module"}),
        ("CAP_SYS_TIME", {"clock_settime", "settimeofday"}),
        ("CAP_BPF", {"bpf"}),
        ("CAP_PERFMON", {"perf_event_open"}),
        ("CAP_SYSLOG", {"syslog"}),
    ],
)
def test_a_capability_brings_its_calls(capability: str, names: set[str]) -> None:
    without = allowed(resolve(moby()))
    with_it = allowed(resolve(moby(), capabilities=[*DOCKER, capability]))
    assert names <= with_it
    assert not names & without


def test_clone_may_not_make_namespaces_without_sys_admin() -> None:
    resolved = resolve(moby())
    (clone,) = entries(resolved, "clone")
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}]
    (clone3,) = entries(resolved, "clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", errno.ENOSYS)


def test_clone_on_s390x_has_its_flags_second() -> None:
    (clone,) = entries(resolve(moby(), arch="s390x"), "clone")
    assert clone["args"][0]["index"] == 1


def test_includes_of_an_architecture() -> None:
    assert "arch_prctl" in allowed(resolve(moby(), arch="x86_64"))
    aarch64 = allowed(resolve(moby(), arch="aarch64"))
    assert "arch_prctl" not in aarch64
    assert "arm_fadvise64_64" in aarch64
    assert "riscv_flush_icache" in allowed(resolve(moby(), arch="riscv64"))


@pytest.mark.parametrize(
    ("arch", "architectures"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        ("aarch64", ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        ("riscv64", ["SCMP_ARCH_RISCV64"]),
        ("unheard-of", None),
    ],
)
def test_arch_map(arch: str, architectures: list[str] | None) -> None:
    assert resolve(moby(), arch=arch).get("architectures") == architectures


@pytest.mark.parametrize(
    ("where", "kernel", "kept"),
    [
        ("includes", (4, 7), False),
        ("includes", (4, 8), True),
        ("includes", (4, 10), True),
        ("includes", (5, 0), True),
        ("excludes", (4, 7), True),
        ("excludes", (4, 8), False),
    ],
)
def test_minimum_kernel(where: str, kernel: tuple[int, int], kept: bool) -> None:
    entry = {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", where: {"minKernel": "4.8"}}
    resolved = resolve({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [entry]}, kernel=kernel)
    assert bool(resolved["syscalls"]) is kept


def test_every_included_capability_is_needed_and_one_excluded_is_enough() -> None:
    both = ["CAP_CHOWN", "CAP_KILL"]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": both}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": both}},
        ],
    }
    assert allowed(resolve(profile, capabilities=["CAP_CHOWN"])) == set()
    assert allowed(resolve(profile, capabilities=both)) == {"mount"}
    assert allowed(resolve(profile, capabilities=[])) == {"bpf"}


def test_old_forms_of_a_profile() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW", "args": None}],
    }
    assert resolve(profile) == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
    }


def test_errno_names_as_podman_writes_them() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrno": "ENOSYS",
        "defaultErrnoRet": 1,
        "syscalls": [
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM"},
            {"names": ["acct"], "action": "SCMP_ACT_ERRNO", "errno": "13"},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "errno": "EPERM", "errnoRet": 1},
        ],
    }
    resolved = resolve(profile)
    assert resolved["defaultErrnoRet"] == errno.ENOSYS
    assert [entry.get("errnoRet") for entry in resolved["syscalls"]] == [1, 13, None]


def test_oci_form_passes_unharmed() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/agent.sock",
        "listenerMetadata": "m",
        "syscalls": [
            {
                "names": ["getcwd"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 38,
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
            }
        ],
    }
    assert resolve(profile) == profile
    # Resolving is idempotent, so `firkin spec` and `run --bundle` agree.
    once = resolve(moby())
    assert resolve(once) == once


def test_flags_survive_resolving() -> None:
    profile = moby() | {"flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "/run/x"}
    resolved = resolve(profile)
    assert (resolved["flags"], resolved["listenerPath"]) == (profile["flags"], "/run/x")


def test_default_profile_is_for_this_machine() -> None:
    major, minor = os.uname().release.split(".")[:2]
    expected = resolve(moby(), arch=os.uname().machine, kernel=(int(major), int(minor)))
    assert seccomp.default_profile(DOCKER) == expected


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"defaultAction": None}, "linux.seccomp.defaultAction"),
        ({"defaultErrno": "EWHAT"}, "linux.seccomp.defaultErrno"),
        ({"defaultErrno": 5}, "linux.seccomp.defaultErrno"),
        ({"syscalls": {}}, "linux.seccomp.syscalls"),
        ({"syscalls": ["read"]}, "linux.seccomp.syscalls[0]"),
        ({"architectures": ["SCMP_ARCH_X86"]}, "linux.seccomp.archMap"),
        ({"archMap": ["x86"]}, "linux.seccomp.archMap[0]"),
        ({"archMap": "x86"}, "linux.seccomp.archMap"),
        (
            {"syscalls": [{"name": "read", "names": ["write"], "action": "SCMP_ACT_ALLOW"}]},
            "linux.seccomp.syscalls[0].name",
        ),
        ({"syscalls": [{"names": ["read"]}]}, "linux.seccomp.syscalls[0].action"),
        (
            {"syscalls": [{"names": ["read"], "includes": {"minKernel": "new"}}]},
            "linux.seccomp.syscalls[0].includes.minKernel",
        ),
        (
            {"syscalls": [{"names": ["read"], "excludes": {"minKernel": "9" * 5000 + ".1"}}]},
            "linux.seccomp.syscalls[0].excludes.minKernel",
        ),
        (
            {"syscalls": [{"names": ["read"], "includes": {"caps": [["CAP_CHOWN"]]}}]},
            "linux.seccomp.syscalls[0].includes.caps[0]",
        ),
        (
            {"syscalls": [{"names": ["read"], "excludes": ["CAP_CHOWN"]}]},
            "linux.seccomp.syscalls[0].excludes",
        ),
    ],
)
def test_bad_profile_names_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(moby() | change, capabilities=set(DOCKER))
    assert caught.value.field == field


# --- compiling ------------------------------------------------------------------------


def rule(**fields: Any) -> dict[str, Any]:
    entry = {"names": ["read"], "action": "SCMP_ACT_ERRNO"} | fields
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]}


def condition(**fields: Any) -> dict[str, Any]:
    return rule(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"} | fields])


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ([], "linux.seccomp"),
        ({}, "linux.seccomp.defaultAction"),
        ({"defaultAction": "ALLOW"}, "linux.seccomp.defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction"),
        (
            {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4095},
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1},
            "linux.seccomp.defaultErrnoRet",
        ),
        (rule() | {"architectures": ["SCMP_ARCH_VAX"]}, "linux.seccomp.architectures[0]"),
        (rule() | {"architectures": ["x86_64"]}, "linux.seccomp.architectures[0]"),
        (rule() | {"architectures": [7]}, "linux.seccomp.architectures[0]"),
        # Of the other byte order, so it cannot be in one filter with ours.
        (rule() | {"architectures": ["SCMP_ARCH_S390X"]}, "linux.seccomp.architectures"),
        (rule() | {"flags": ["SECCOMP_FILTER_FLAG_WHAT"]}, "linux.seccomp.flags[0]"),
        (rule() | {"flags": [[]]}, "linux.seccomp.flags[0]"),
        (rule() | {"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "linux.seccomp.flags"),
        (rule(names=[]), "linux.seccomp.syscalls[0].names"),
        (rule(names=None), "linux.seccomp.syscalls[0].names"),
        (rule(names="read"), "linux.seccomp.syscalls[0].names"),
        (rule(names=["read", ""]), "linux.seccomp.syscalls[0].names[1]"),
        (rule(names=["read\0x"]), "linux.seccomp.syscalls[0].names[0]"),
        (rule(names=["\udcff"]), "linux.seccomp.syscalls[0].names[0]"),
        (rule(action=None), "linux.seccomp.syscalls[0].action"),
        (rule(action="SCMP_ACT_WHAT"), "linux.seccomp.syscalls[0].action"),
        (rule(errnoRet=-1), "linux.seccomp.syscalls[0].errnoRet"),
        (rule(errnoRet=True), "linux.seccomp.syscalls[0].errnoRet"),
        (rule(action="SCMP_ACT_LOG", errnoRet=1), "linux.seccomp.syscalls[0].errnoRet"),
        (rule(action="SCMP_ACT_TRACE", errnoRet=65536), "linux.seccomp.syscalls[0].errnoRet"),
        (rule(args=[7]), "linux.seccomp.syscalls[0].args[0]"),
        (condition(index=6), "linux.seccomp.syscalls[0].args[0].index"),
        (condition(index=None), "linux.seccomp.syscalls[0].args[0].index"),
        (condition(value=-1), "linux.seccomp.syscalls[0].args[0].value"),
        (condition(value=2**64), "linux.seccomp.syscalls[0].args[0].value"),
        (condition(value=1.0), "linux.seccomp.syscalls[0].args[0].value"),
        (condition(valueTwo="x"), "linux.seccomp.syscalls[0].args[0].valueTwo"),
        (condition(op="="), "linux.seccomp.syscalls[0].args[0].op"),
    ],
)
def test_bad_config_names_the_field(config: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        seccomp.compile_oci(config)
    assert caught.value.field == field


def test_too_long_a_program_is_refused() -> None:
    conditions = [{"index": 0, "value": value << 32, "op": "SCMP_CMP_EQ"} for value in range(2000)]
    with pytest.raises(ConfigError, match="the kernel takes 4096"):
        seccomp.compile_oci(rule(args=conditions))


def test_missing_library_says_what_to_install() -> None:
    script = (
        "import ctypes\n"
        "real = ctypes.CDLL\n"
        "def CDLL(name, *a, **k):\n"
        "    if name and 'seccomp' in name: raise OSError('no such library')\n"
        "    return real(name, *a, **k)\n"
        "ctypes.CDLL = CDLL\n"
        "from firkin.errors import Unsupported\n"
        "from firkin.runtime import seccomp\n"
        "try: seccomp.compile_oci({'defaultAction': 'SCMP_ACT_ALLOW'})\n"
        "except Unsupported as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "libseccomp2" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("names", "notify", "bits"),
    [
        ([], False, 0),
        (["SECCOMP_FILTER_FLAG_TSYNC"], False, 1),
        (["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"], False, 2 | 4),
        ([], True, 8),
        (["SECCOMP_FILTER_FLAG_TSYNC"], True, 1 | 8 | 16),
        (["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], True, 8 | 32),
    ],
)
def test_filter_flags(names: list[str], notify: bool, bits: int) -> None:
    action = "SCMP_ACT_NOTIFY" if notify else "SCMP_ACT_LOG"
    assert seccomp.filter_flags(rule(action=action) | {"flags": names}) == bits


@pytest.mark.parametrize("program", [b"", b"1234567", ALLOW_EVERYTHING * 4097])
def test_filter_of_a_wrong_size(program: bytes) -> None:
    with pytest.raises(UsageError, match="cannot use a seccomp filter"):
        linux_seccomp.Filter(program)


def test_flag_names() -> None:
    assert linux_seccomp.flag_names(0) == "0"
    assert linux_seccomp.flag_names(0b1010) == "LOG|NEW_LISTENER"
    assert linux_seccomp.flag_names(0x101) == "TSYNC|0x100"


# --- the cache ------------------------------------------------------------------------

MASK = caps.mask(DOCKER)


@pytest.fixture(scope="module")
def program() -> bytes:
    return seccomp.compile_oci(seccomp.default_profile(caps.names(MASK)))


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def plant(folder: Path, name: str, program: bytes = ALLOW_EVERYTHING) -> Path:
    """Write a sound entry that no compiler made, which shows whether it is read."""
    header = seccomp_cache._HEADER.pack(
        seccomp_cache._MAGIC, len(program), seccomp_cache._checksum(name, program)
    )
    path = folder / name
    path.write_bytes(header + program)
    path.chmod(0o600)
    return path


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder whose entry for MASK is a planted one."""
    folder = tmp_path / "cache"
    seccomp_cache.cached_default(MASK, [str(folder)])
    plant(folder, only_file(folder).name)
    assert seccomp_cache.cached_default(MASK, [str(folder)]) == ALLOW_EVERYTHING
    return folder


def test_miss_fills_and_hit_reads(tmp_path: Path, program: bytes) -> None:
    folder = tmp_path / "a" / "b"
    assert seccomp_cache.cached_default(DOCKER, [str(folder)]) == program
    entry = only_file(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600
    before = entry.stat()
    assert seccomp_cache.cached_default(MASK, [str(folder)]) == program
    after = only_file(folder).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_each_capability_set_has_its_own_program(tmp_path: Path, program: bytes) -> None:
    other = seccomp_cache.cached_default([*DOCKER, "CAP_SYS_ADMIN"], [str(tmp_path)])
    assert other != program
    assert seccomp_cache.cached_default(MASK, [str(tmp_path)]) == program
    assert len(list(tmp_path.iterdir())) == 2


def test_hit_imports_next_to_nothing(planted: Path) -> None:
    script = (
        "import sys\n"
        "from firkin.runtime import seccomp_cache\n"
        f"program = seccomp_cache.cached_default({MASK}, [{str(planted)!r}])\n"
        "expensive = {'json', 'hashlib', 're', 'dataclasses', 'subprocess', 'enum', 'argparse',\n"
        "    'pathlib', 'tempfile', 'contextlib', 'firkin.linux.libseccomp'}\n"
        "site = set(sys.argv[1].split())\n"
        "print(program.hex(), sorted(expensive & set(sys.modules) - site))\n"
    )
    # What the interpreter itself loads at its start is not ours to save.
    bare = "import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True).stdout
    done = subprocess.run(
        [sys.executable, "-c", script, loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{ALLOW_EVERYTHING.hex()} []\n"


def test_torn_or_changed_entry_is_made_again(tmp_path: Path, program: bytes) -> None:
    seccomp_cache.cached_default(MASK, [str(tmp_path)])
    entry = only_file(tmp_path)
    sound = entry.read_bytes()
    flipped = [
        sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
        for at in (0, 9, 13, 16, len(sound) - 1)
    ]
    for bad in [b"", sound[:10], sound[:16], sound[:-8], sound + b"\0" * 8, *flipped]:
        entry.write_bytes(bad)
        assert seccomp_cache.cached_default(MASK, [str(tmp_path)]) == program
        assert only_file(tmp_path).read_bytes() == sound


def test_entry_under_another_name_is_refused(tmp_path: Path, program: bytes) -> None:
    seccomp_cache.cached_default([*DOCKER, "CAP_SYS_ADMIN"], [str(tmp_path)])
    privileged = only_file(tmp_path)
    (tmp_path / "x").mkdir()
    seccomp_cache.cached_default(MASK, [str(tmp_path / "x")])
    name = only_file(tmp_path / "x").name
    privileged.rename(tmp_path / name)
    assert seccomp_cache.cached_default(MASK, [str(tmp_path)]) == program


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_folder_that_others_can_write_is_not_used(planted: Path, program: bytes, mode: int) -> None:
    planted.chmod(mode)
    before = only_file(planted).read_bytes()
    assert seccomp_cache.cached_default(MASK, [str(planted)]) == program
    assert only_file(planted).read_bytes() == before


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_entry_that_others_can_write_is_made_again(
    planted: Path, program: bytes, mode: int
) -> None:
    only_file(planted).chmod(mode)
    assert seccomp_cache.cached_default(MASK, [str(planted)]) == program
    assert only_file(planted).stat().st_mode & 0o777 == 0o600


def test_links_are_not_followed(planted: Path, program: bytes, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(planted)
    assert seccomp_cache.cached_default(MASK, [str(link)]) == program
    entry = only_file(planted)
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert seccomp_cache.cached_default(MASK, [str(planted)]) == program
    assert not entry.is_symlink()


def test_fifo_does_not_hang(planted: Path, program: bytes) -> None:
    entry = only_file(planted)
    entry.unlink()
    os.mkfifo(entry, 0o600)
    assert seccomp_cache.cached_default(MASK, [str(planted)]) == program
    assert entry.is_file()


def test_second_folder_serves_where_the_first_cannot(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "file").touch()
    folders = [str(tmp_path / "file" / "x"), str(tmp_path / "second")]
    assert seccomp_cache.cached_default(MASK, folders) == program
    assert only_file(tmp_path / "second").name.startswith("default-")


def test_no_folder_at_all(program: bytes) -> None:
    assert seccomp_cache.cached_default(MASK, []) == program


def test_many_writers_at_once(tmp_path: Path, program: bytes) -> None:
    """Writers and readers that start together all get the whole program."""
    release, hold = os.pipe()
    children = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(hold)
                os.read(release, 1)  # EOF starts all at once
                for _ in range(20):
                    if seccomp_cache.cached_default(MASK, [str(tmp_path)]) != program:
                        break
                    for entry in tmp_path.glob("default-*"):
                        entry.unlink(missing_ok=True)
                else:
                    status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(release)
    os.close(hold)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    assert not list(tmp_path.glob(".tmp-*"))


def test_writer_sweeps_what_is_old(tmp_path: Path) -> None:
    old = time.time() - 91 * 86400
    for name in (".tmp-1-old", "oci-old.bpf", "notes.txt"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    for name in (".tmp-1-new", "oci-new.bpf"):
        (tmp_path / name).touch()
    seccomp_cache.cached_default(MASK, [str(tmp_path)])
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("default-")}
    assert left == {"notes.txt", ".tmp-1-new", "oci-new.bpf"}


def test_custom_profile_is_cached_by_content(tmp_path: Path) -> None:
    config = condition()
    compiled = seccomp.compile_oci(config)
    assert seccomp_cache.cached(config, [str(tmp_path)]) == compiled
    entry = only_file(tmp_path)
    same = json.loads(json.dumps(config))
    plant(tmp_path, entry.name)
    assert seccomp_cache.cached(same, [str(tmp_path)]) == ALLOW_EVERYTHING
    assert seccomp_cache.cached(condition(value=2), [str(tmp_path)]) != ALLOW_EVERYTHING
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_custom_profile_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        seccomp_cache.cached(rule(action="SCMP_ACT_WHAT"), [str(tmp_path)])
    assert not list(tmp_path.iterdir())
