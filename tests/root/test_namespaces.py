"""Namespaces of containers that root runs: new, shared, joined, and user namespaces on request."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from support.command import Firkin, execute
from support.containers import refused, running
from support.namespace_cases import *  # noqa: F403 - the tests that hold for everyone
from support.namespace_cases import DAEMONS, NEW, check_end, members, own
from support.requires import need, requires


def given_to(name: str, path: str = "/etc/subuid") -> int:
    """Return the first subordinate id of *name*."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split(":")[1])
    pytest.fail(f"{path} has no line for {name}; `tools/setup test` adds it")


def test_no_user_namespace_without_being_asked(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, image=busybox_root) as box:
        assert box.namespace("user") == own("user")


def test_user_namespace_with_ids_of_its_own(firkin: Firkin, busybox_root: Path) -> None:
    script = "id -u; stat -c %u:%g /etc/passwd /home/alice; touch /etc/new; stat -c %u /etc/new"
    with running(firkin, "--userns", "auto", image=busybox_root, script=script) as box:
        first = given_to("firkin")
        assert all(box.namespace(kind) != own(kind) for kind in (*NEW, "user"))
        assert box.read("uid_map").split() == ["0", str(first), "65536"]
        assert box.read("gid_map").split() == ["0", str(given_to("firkin", "/etc/subgid")), "65536"]
        assert f"Uid:\t{first}\t{first}\t" in box.read("status")
        # The image's owners are kept, by idmapped mounts.
        assert box.output == ["0", "0:0", "1000:1000", "0"]


def test_user_namespace_on_the_host_base(firkin: Firkin) -> None:
    done = firkin("run", "--userns", "auto", "host", "python3", "-c", "print(6 * 7)")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_root_keeps_its_id(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, "--userns", "keep-id", image=busybox_root, script="id -u") as box:
        assert box.namespace("user") != own("user")
        assert box.read("uid_map").split()[:2] == ["0", "0"]
        assert box.output == ["0"]


@pytest.mark.parametrize("by", ["name", "path"])
def test_joined_user_namespace(firkin: Firkin, busybox_root: Path, by: str) -> None:
    options = ["--userns", "auto", "--name", "first"]
    with running(firkin, *options, image=busybox_root) as first:
        source = "container:first" if by == "name" else f"/proc/{first.pid}/ns/user"
        script = "id -u; stat -c %u / /bin; touch /new && stat -c %u /new"
        with running(firkin, "--userns", source, image=busybox_root, script=script) as other:
            assert other.namespace("user") == first.namespace("user") != own("user")
            assert other.namespace("mnt") != first.namespace("mnt")
            assert other.read("uid_map") == first.read("uid_map")
            assert f"Uid:\t{first.read('uid_map').split()[1]}\t" in other.read("status")
            assert other.output == ["0"] * 4


def test_userns_host_is_none(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, "--userns", "host", image=busybox_root) as box:
        assert box.namespace("user") == own("user")


def test_single_id_map_without_subordinate_ids(firkin: Firkin, busybox_root: Path) -> None:
    need("user:firkin-nosub")
    uid = os.stat("/home/firkin-nosub").st_uid
    options = {"image": busybox_root, "user": "firkin-nosub"}
    with running(firkin, script="id -u; id -g", **options) as box:
        assert box.read("uid_map").split() == ["0", str(uid), "1"]
        assert len(box.read("gid_map").splitlines()) == 1
        assert box.read("setgroups") == "deny\n"
        assert box.output == ["0", "0"]
    done = firkin("run", "-u", "alice", busybox_root, "true", user="firkin-nosub")
    refused(done, "user id 1000", "no subordinate ids", "newuidmap")


# ---------------------------------------------------------------- namespaces by path


# In a mount namespace of the test's own: `ip netns` mounts on the host for good.
NAMED = """
mkdir -p /run/netns; mount -t tmpfs none /run/netns
ip netns add barrel && ip -n barrel link add barrel0 type bridge
stat -c 'net:[%i]' /run/netns/barrel
exec "$@"
"""


@pytest.mark.parametrize("prefix", ["", "ns:"])
def test_named_network_namespace(firkin: Firkin, busybox_root: Path, prefix: str) -> None:
    need("program:ip")
    look = "readlink /proc/self/ns/net; grep -c barrel0: /proc/net/dev"
    run = [firkin.command(), "run", "--net", f"{prefix}/run/netns/barrel", str(busybox_root)]
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", NAMED, "sh"]
    done = execute([*inside, *run, "sh", "-c", look], env=firkin.env())
    name, *rest = done.stdout.split()
    assert rest == [name, "1"], done.stderr


def test_no_process_outlives_the_command_in_a_joined_pid_namespace(
    firkin: Firkin, busybox_root: Path
) -> None:
    with running(firkin, "--name", "first", image=busybox_root) as first:
        options = ["--pid", "container:first"]
        with running(firkin, *options, image=busybox_root, script=DAEMONS) as box:
            assert box.namespace("pid") == first.namespace("pid")
            check_end(box)
        assert members("pid", first.namespace("pid")) == {first.pid}


# ---------------------------------------------------------------- forbidden user namespaces


def test_forbidden_user_namespaces(firkin: Firkin, busybox_root: Path) -> None:
    # The sysctl is one of the user namespace: the machine's own stays as it is.
    before = Path("/proc/sys/user/max_user_namespaces").read_text()
    forbid = "echo 0 >/proc/sys/user/max_user_namespaces"
    # The second shell is root of the namespace, whose ids are mapped by then.
    script = f'echo; read go; exec sh -c \'{forbid}; exec "$@"\' sh "$@"'
    run = [firkin.command(), "run", "--userns", "auto", str(busybox_root), "true"]
    process = subprocess.Popen(
        ["unshare", "--user", "--mount", "sh", "-c", script, "sh", *run],
        env=firkin.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{kind}").write_text("0 0 4294967295")
    out, err = process.communicate("go\n", timeout=30)
    done = subprocess.CompletedProcess(run, process.returncode, out, err)
    refused(done, "user namespace", "user.max_user_namespaces is 0")
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before


def test_no_ranges_for_root(firkin: Firkin, busybox_root: Path) -> None:
    # /etc/subuid is an empty one in a mount namespace of the test's own.
    hide = 'mount --bind /dev/null /etc/subuid && exec "$@"'
    run = [firkin.command(), "run", "--userns", "auto", str(busybox_root), "true"]
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"]
    done = execute([*inside, *run], env=firkin.env())
    refused(done, "user namespace", "/etc/subuid", "'firkin'")


def test_runc_agrees_on_what_is_new(busybox_root: Path, tmp_path: Path) -> None:
    """The check of the check: another runtime's container passes the same comparison."""
    need("program:runc")
    execute(["runc", "spec"], cwd=tmp_path, check=True)
    config = tmp_path / "config.json"
    text = config.read_text().replace('"terminal": true', '"terminal": false')
    text = text.replace('"sh"', '"ls", "-l", "/proc/self/ns"')
    text = text.replace('"rootfs"', f'"{busybox_root}"')
    config.write_text(text)
    name = f"firkin-tests-{os.getpid()}"
    done = execute(["runc", "--root", str(tmp_path / "state"), "run", name], cwd=tmp_path)
    for kind in ("mnt", "pid", "uts", "ipc", "net"):
        assert own(kind) not in done.stdout
    assert own("user") in done.stdout, done.stderr


@requires("user:firkin-nosub")
def test_keep_id_with_a_single_id(firkin: Firkin) -> None:
    box = firkin("run", "--userns", "keep-id", "host", "id", "-u", user="firkin-nosub")
    uid = pwd.getpwnam("firkin-nosub").pw_uid
    assert (box.stdout, box.stderr, box.returncode) == (f"{uid}\n", "", 0)


def test_a_device_under_another_name(firkin: Firkin, busybox_root: Path) -> None:
    options = ["--userns", "auto", "--device", "/dev/null:/dev/full"]
    done = firkin("run", *options, busybox_root, "stat", "-c", "%t:%T", "/dev/full")
    assert (done.stdout, done.stderr) == ("1:3\n", "")
