"""Bundles as root and an ordinary user run them: configurations that others wrote, and our own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command import Firkin, execute
from support.requires import requires

SUITE = Path(__file__).parents[1] / "data/runtime-spec/test/config"

Change = Callable[[dict[str, Any]], object]


class Bundle:
    """A bundle whose configuration another runtime has written, and the test changes."""

    def __init__(self, firkin: Firkin, folder: Path, root: Path, writer: str = "runc") -> None:
        self.firkin = firkin
        self.folder = folder
        (folder / "rootfs").symlink_to(root)
        rootless = ["--rootless"] if os.geteuid() else []
        execute([writer, "spec", *rootless], cwd=folder, check=True)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.config["process"]["terminal"] = False

    def run(self, *args: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Write the configuration and run it; *args* are its command."""
        if args:
            self.config["process"]["args"] = list(args)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self.firkin("run", *options, "--bundle", self.folder)

    def shell(self, script: str) -> str:
        """Return what *script* prints, which has to succeed."""
        done = self.run("sh", "-c", script)
        assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
        return str(done.stdout).strip()


@pytest.fixture
def bundle(firkin: Firkin, own_root: Path, tmp_path: Path) -> Bundle:
    return Bundle(firkin, tmp_path, own_root)


def process(**fields: Any) -> Change:
    return lambda config: config["process"].update(fields)


def linux(**fields: Any) -> Change:
    return lambda config: config["linux"].update(fields)


def top(**fields: Any) -> Change:
    return lambda config: config.update(fields)


def mount(destination: str, kind: str, source: str, *options: str) -> Change:
    entry = {"destination": destination, "type": kind, "source": source, "options": options}
    return lambda config: config["mounts"].append(entry)


def not_a_namespace(config: dict[str, Any]) -> None:
    for entry in config["linux"]["namespaces"]:
        if entry["type"] == "uts":
            entry["path"] = "/dev/null"


BOUNDING = {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": [], "permitted": ["CAP_CHOWN"]}

# What is changed, a script that looks from inside, and what it has to see.
FIELDS: dict[str, tuple[Change, str, str]] = {
    "hostname": (top(hostname="kegs"), "hostname", "kegs"),
    "domainname": (top(domainname="cellar"), "cat /proc/sys/kernel/domainname", "cellar"),
    "env": (
        process(env=["A=b c", "PATH=/bin"]),
        "env | sort | grep -vE 'PWD|SHLVL'",
        "A=b c\nPATH=/bin",
    ),
    "cwd": (process(cwd="/var/tmp"), "pwd", "/var/tmp"),
    "new cwd": (process(cwd="/made/for/it"), "pwd", "/made/for/it"),
    "umask": (process(user={"uid": 0, "gid": 0, "umask": 0o027}), "umask", "0027"),
    "rlimits": (
        process(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 33, "hard": 44}]),
        "ulimit -Sn; ulimit -Hn",
        "33\n44",
    ),
    "capabilities": (
        process(capabilities=BOUNDING),
        "grep -E 'Cap(Prm|Bnd)' /proc/1/status",
        # With no_new_privs execve adds nothing, even for root.
        "CapPrm:\t0000000000000001\nCapBnd:\t0000000000000021",
    ),
    "no_new_privs off": (
        process(noNewPrivileges=False),
        "grep NoNew /proc/self/status",
        "NoNewPrivs:\t0",
    ),
    "masked": (
        linux(maskedPaths=["/etc/passwd", "/home"]),
        "cat /etc/passwd; ls /home; ls -ld /home | cut -c1-10",
        "dr-xr-xr-x",
    ),
    "readonly paths": (
        linux(readonlyPaths=["/etc"]),
        "touch /etc/x 2>&1 || touch /tmp/x",
        "touch: /etc/x: Read-only file system",
    ),
    "writable root": (
        lambda config: config["root"].update(readonly=False),
        "touch /here && ls /here",
        "/here",
    ),
    "readonly root": (
        lambda config: config["root"].update(readonly=True),
        "touch /here 2>&1 || :",
        "touch: /here: Read-only file system",
    ),
    "tmpfs": (
        mount("/tmp", "tmpfs", "tmpfs", "size=1m", "noexec", "nosuid"),
        "grep ' /tmp ' /proc/mounts | grep -o 'rw,nosuid,noexec.*size=1024k'",
        "rw,nosuid,noexec,relatime,size=1024k",
    ),
    "bind": (
        mount("/mnt", "bind", "rootfs/etc", "bind", "ro"),
        "cat /mnt/hostname; touch /mnt/x 2>&1 || :",
        "busybox\ntouch: /mnt/x: Read-only file system",
    ),
    "personality": (linux(personality={"domain": "LINUX32"}), "uname -m", "i686"),
    "time": (
        lambda config: (
            config["linux"]["namespaces"].append({"type": "time"}),
            config["linux"].update(timeOffsets={"boottime": {"secs": 8640000}}),
        ),
        "test $(cut -d. -f1 /proc/uptime) -ge 8640000 && echo shifted",
        "shifted",
    ),
    "sysctl": (
        linux(sysctl={"kernel.msgmax": "7777"}),
        "cat /proc/sys/kernel/msgmax",
        "7777",
    ),
    "sysctl with slashes": (
        linux(sysctl={"kernel/msgmax": "7777"}),
        "cat /proc/sys/kernel/msgmax",
        "7777",
    ),
    "oom score": (process(oomScoreAdj=700), "cat /proc/self/oom_score_adj", "700"),
}


class Cases:
    """Tests that run in both rooms."""

    @pytest.mark.parametrize("writer", ["runc", "crun"])
    def test_what_others_write_runs(
        self, firkin: Firkin, own_root: Path, tmp_path: Path, writer: str
    ) -> None:
        if writer == "crun" and os.geteuid():
            writer = "runc"  # crun 1.8 knows no spec --rootless
        box = Bundle(firkin, tmp_path, own_root, writer)
        assert box.shell("id -u; hostname; echo $$") == f"0\n{writer}\n1"

    @pytest.mark.parametrize("field", FIELDS)
    def test_fields(self, bundle: Bundle, field: str) -> None:
        change, script, expected = FIELDS[field]
        change(bundle.config)
        bundle.config["root"].setdefault("readonly", False)
        if field in ("new cwd", "readonly paths", "bind", "masked"):
            bundle.config["root"]["readonly"] = False
        found = bundle.shell(script)
        assert found == expected, found

    @requires("program:script")
    def test_a_terminal(self, bundle: Bundle) -> None:
        bundle.config["process"]["terminal"] = True
        done = bundle.run("sh", "-c", "tty; test -t 0 && test -t 1 && echo yes")
        assert (done.returncode, done.stdout.split()) == (0, ["/dev/pts/0", "yes"])

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (top(hooks={"prestart": [{"path": "/bin/true"}]}), "hooks"),
            (process(apparmorProfile="x"), "process.apparmorProfile"),
            (process(selinuxLabel="x"), "process.selinuxLabel"),
            (linux(mountLabel="x"), "linux.mountLabel"),
            (linux(intelRdt={"closID": "x"}), "linux.intelRdt"),
            (process(args=[]), "process.args"),
            (process(cwd="relative"), "process.cwd"),
            (process(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "RLIMIT_X"),
            (linux(sysctl={"kernel.../x": "1"}), "sysctl"),
            (linux(sysctl={"kernel.panic": "1"}), "sysctl"),
            (linux(namespaces=[{"type": "pid"}]), "linux.namespaces"),
            (lambda config: config["root"].update(path="nothing"), "root.path"),
            (not_a_namespace, "cannot join the uts namespace '/dev/null'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, bundle: Bundle, change: Change, says: str) -> None:
        change(bundle.config)
        done = bundle.run()
        assert (done.returncode, done.stdout) == (125, ""), done.stderr
        assert re.fullmatch(r"firkin: .+: .+\n", done.stderr)
        assert says in done.stderr

    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("invalid-json", "line 1"),
            ("linux-hugepage", "linux.resources.hugepageLimits[0].pageSize"),
            ("linux-netdevice", 'linux.netDevices["eth0"].name'),
            ("linux-rdma", 'linux.resources.rdma["mlx5_1"].hcaHandles'),
        ],
    )
    def test_the_suites_bad_files(
        self, firkin: Firkin, tmp_path: Path, name: str, field: str
    ) -> None:
        assert {path.stem for path in (SUITE / "bad").iterdir()} == {
            "invalid-json", "linux-hugepage", "linux-netdevice", "linux-rdma"
        }  # fmt: skip
        (tmp_path / "config.json").write_bytes((SUITE / f"bad/{name}.json").read_bytes())
        done = firkin("run", "--bundle", tmp_path)
        assert done.returncode == 125
        assert field in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("folder", [None, "missing", "empty"])
    def test_no_bundle(self, firkin: Firkin, tmp_path: Path, folder: str | None) -> None:
        (tmp_path / "empty").mkdir()
        done = firkin("run", "--bundle", tmp_path / (folder or "file/x"))
        assert done.returncode == 125
        assert "config.json': No" in done.stderr

    @pytest.mark.parametrize("options", [[], ["--read-only", "-e", "A=b", "-w", "/tmp"]])
    def test_what_spec_prints_runs_alike(
        self, firkin: Firkin, own_root: Path, tmp_path: Path, options: list[str]
    ) -> None:
        script = "id; hostname; env | sort; pwd; grep -E 'Cap|Secc|NoNew' /proc/self/status"
        options = ["--hostname", "same", *options]
        command = [own_root, "sh", "-c", script]
        printed = firkin("spec", *options, *command, check=True).stdout
        (tmp_path / "config.json").write_text(printed)
        direct = firkin("run", *options, *command)
        bundled = firkin("run", "--bundle", tmp_path)
        assert (bundled.returncode, bundled.stderr) == (0, "")
        assert bundled.stdout == direct.stdout
