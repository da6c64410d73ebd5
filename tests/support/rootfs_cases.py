"""Tests of the root file system that hold for root and for ordinary users alike.

``tests/root`` and ``tests/rootless`` import them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from support.command import Firkin
from support.containers import refused, running

STANDARD = {
    "/proc": "proc",
    "/dev": "tmpfs",
    "/dev/pts": "devpts",
    "/dev/shm": "tmpfs",
    "/dev/mqueue": "mqueue",
    "/sys": "sysfs",
}
NODES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


def digest(folder: Path) -> str:
    """Return a digest of all that a folder holds: names, kinds, modes, owners and contents."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        facts = [path.relative_to(folder), status.st_mode, status.st_uid, status.st_gid]
        if path.is_symlink():
            facts.append(path.readlink())
        elif path.is_file():
            facts += [status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()]
        total.update(repr(facts).encode())
    return total.hexdigest()


def shell(firkin: Firkin, *words: str | os.PathLike[str]) -> list[str]:
    """Run ``firkin run OPTIONS IMAGE sh -c SCRIPT`` and return the lines it wrote."""
    *options, script = words
    done = firkin("run", *options, "sh", "-c", os.fspath(script))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# ---------------------------------------------------------------- the root


def test_only_the_containers_mounts_are_there(firkin: Firkin, busybox_root: Path) -> None:
    script = "cat /proc/self/mountinfo; ls /proc/1/root/../.. >/tmp/up; ls / | cmp - /tmp/up"
    with running(firkin, image=busybox_root, script=script) as box:
        # Seen from outside, there is nothing that the container's own view hides.
        mounts = box.mounts()
        assert len(box.output) == len(box.read("mountinfo").splitlines())
        assert {line.split()[4] for line in box.output} == mounts.keys()
        allowed = ("/dev/", "/proc/", "/sys/", "/etc/")
        others = {p for p in mounts if p not in STANDARD and not p.startswith(allowed)}
        assert others == {"/"}
        assert mounts["/"][1] == "overlay"
        assert sum(line.split()[4] == "/" for line in box.output) == 1
        assert not any("master:" in line or "shared:" in line for line in box.output)


def test_standard_mounts(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, image=busybox_root) as box:
        mounts = box.mounts()
    assert {path: mounts[path][1] for path in STANDARD} == STANDARD
    cgroups = [path for path in mounts if path.startswith("/sys/fs/cgroup")]
    for path in ("/sys", *cgroups):
        assert "ro" in mounts[path][0].split(","), path
    for path in STANDARD:
        assert "nosuid" in mounts[path][0].split(","), path
    assert mounts["/dev/shm"][2].startswith("rw,size=65536k")


def test_device_nodes(firkin: Firkin, busybox_root: Path) -> None:
    with running(firkin, image=busybox_root) as box:
        for name, minor in NODES.items():
            status = box.path(f"/dev/{name}").stat()
            assert stat.S_ISCHR(status.st_mode)
            assert stat.S_IMODE(status.st_mode) == 0o666
            assert status.st_rdev == os.makedev(1, minor)
        assert box.path("/dev/tty").stat().st_rdev == os.makedev(5, 0)
        links = {n: os.readlink(box.path(f"/dev/{n}")) for n in ("fd", "stdin", "ptmx")}
        assert links == {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "ptmx": "pts/ptmx"}
        names = {*NODES, "tty", "fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"}
        assert {path.name for path in box.path("/dev").iterdir()} == names


SETTINGS = (
    "/proc/irq/default_smp_affinity",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/sys/fs/cgroup/new",
    "/sys/kernel/new",
)


def test_kernel_settings_are_read_only(firkin: Firkin, busybox_root: Path) -> None:
    # Opened for writing, and nothing written, should it come to that.
    script = "for f; do (: >>$f) 2>&1; echo $?; done"
    done = firkin("run", busybox_root, "sh", "-c", script, "sh", *SETTINGS)
    lines = done.stdout.splitlines()
    assert lines.count("1") == len(SETTINGS), done.stdout
    assert any(line.endswith("Read-only file system") for line in lines)


def test_masked_paths_are_empty(firkin: Firkin, busybox_root: Path) -> None:
    paths = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts")
    here = [path for path in paths if os.path.exists(path)]
    assert here
    script = f"for f in {' '.join(here)}; do head -c 9 $f | wc -c; done; ls -A /sys/firmware"
    assert shell(firkin, busybox_root, script) == ["0"] * len(here)
    unmasked = ["--security-opt", "systempaths=unconfined", busybox_root]
    assert shell(firkin, *unmasked, "head -c 9 /proc/interrupts | wc -c") == ["9"]


def test_writes_do_not_reach_a_folder(firkin: Firkin, busybox_root: Path) -> None:
    before = digest(busybox_root)
    script = (
        "rm -rf /etc/passwd /home; echo x >/etc/group; chmod 700 /var; touch /new; "
        "ln -s / /bin/link; mv /bin/cat /bin/dog; mkdir -p /a/b; ls -d /new /a/b"
    )
    assert shell(firkin, busybox_root, script) == ["/a/b", "/new"]
    assert digest(busybox_root) == before
    assert shell(firkin, busybox_root, "ls -d /new /a 2>/dev/null; ls -d /home") == ["/home"]


def test_a_read_only_root(firkin: Firkin, busybox_root: Path) -> None:
    script = "touch /new; echo x >>/etc/hosts; echo x >>/etc/passwd; touch /tmp/fine && echo fine"
    options = ["--read-only", "--tmpfs", "/tmp", image := busybox_root]
    done = firkin("run", *options, "sh", "-c", script)
    assert done.stdout == "fine\n", image
    assert done.stderr.count("Read-only file system") == 3


def test_rootfs_option(firkin: Firkin, busybox_root: Path) -> None:
    assert shell(firkin, "--rootfs", busybox_root, "cat /etc/hostname | wc -l") == ["1"]


def test_a_relative_path(firkin: Firkin, own_root: Path) -> None:
    for image in ("./root", "../" + own_root.parent.name + "/root"):
        done = firkin("run", image, "echo", "hello", cwd=own_root.parent)
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


ODD = ["a b", "a:b", "a,b", "a\nb", "Fäßchen ☃", "a\\b", 'a"b', "a=b%", "-rf", "a'b"]


@pytest.mark.parametrize("name", ODD)
def test_odd_paths(firkin: Firkin, own_root: Path, tmp_path: Path, name: str) -> None:
    """An image, a store and a volume, all with *name* in their paths."""
    image = own_root.rename(tmp_path / name)
    (tmp_path / "store").mkdir()
    volume = tmp_path / "store" / name / "volume"
    volume.mkdir(parents=True)
    (volume / "here").touch()
    quoted = str(volume).replace('"', '""')
    mount = f'type=bind,"source={quoted}","target=/mnt/{name.replace(chr(34), chr(34) * 2)}"'
    env = {"FIRKIN_STORE": str(tmp_path / "store" / name)}
    done = firkin("run", "--mount", mount, image, "sh", "-c", "touch /new && ls /mnt/*", env=env)
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr


def test_an_image_without_folders(firkin: Firkin, tmp_path: Path, busybox_root: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(busybox_root / "bin/busybox", tmp_path / "bare/sh")
    options = ["-w", "/made/for/it", "-v", f"{tmp_path}:/mnt/deep/in"]
    script = "echo $$; pwd; echo /etc/* /mnt/deep/in/*"
    done = firkin("run", *options, tmp_path / "bare", "/sh", "-c", script)
    expected = "1\n/made/for/it\n/etc/hostname /etc/hosts /etc/resolv.conf /mnt/deep/in/bare\n"
    assert done.stdout == expected, done.stderr
    assert os.listdir(tmp_path / "bare") == ["sh"]


def test_scratch(firkin: Firkin, busybox_root: Path) -> None:
    volume = f"{busybox_root}/bin/busybox:/bin/busybox:ro"
    done = firkin("run", "-v", volume, "scratch", "/bin/busybox", "ls", "/")
    assert done.stdout.split() == ["bin", "dev", "etc", "proc", "sys"], done.stderr
    refused(firkin("run", "scratch", "/bin/true"), "'/bin/true'", status=127)


# ---------------------------------------------------------------- archives

PACKERS = {
    ".tar": ["cat"],
    ".tar.gz": ["gzip", "-1"],
    ".tar.xz": ["xz", "-0"],
    ".tar.zst": ["zstd", "-q", "-c"],
}


def make_archive(root: Path, path: Path, ending: str) -> Path:
    archive = path / f"image{ending}"
    script = f'tar -C "$0" -c . | {" ".join(PACKERS[ending])} >"$1"'
    subprocess.run(["sh", "-c", script, root, archive], check=True)
    return archive


def unpacked(store: Path) -> dict[str, tuple[int, int]]:
    """Return what the store holds, with what would change if it were made again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_ctime_ns)
        for path in (store / "rootfs").iterdir()
    }


@pytest.mark.parametrize("ending", PACKERS)
def test_an_archive_is_unpacked_once(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, ending: str
) -> None:
    archive = make_archive(busybox_root, tmp_path, ending)
    env = {"FIRKIN_STORE": str(tmp_path / "store")}
    script = "rm /etc/passwd && touch /new; ls /new; stat -c %a /tmp"
    seen = []
    for _ in range(2):
        done = firkin("run", archive, "sh", "-c", script, env=env)
        assert (done.returncode, done.stdout) == (0, "/new\n1777\n"), done.stderr
        seen.append(unpacked(tmp_path / "store"))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1
    assert os.listdir(tmp_path / "store" / "containers") == []


def test_two_unpack_one_archive_at_once(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    archive = make_archive(busybox_root, tmp_path, ".tar.gz")
    env = {"FIRKIN_STORE": str(tmp_path / "store")}
    started = [firkin.start("run", archive, "cat", "/etc/group", env=env) for _ in range(4)]
    done = [(*process.communicate(timeout=60), process.returncode) for process in started]
    assert done == [((busybox_root / "etc/group").read_text(), "", 0)] * 4
    assert len(unpacked(tmp_path / "store")) == 1
    assert os.listdir(tmp_path / "store" / "partial") == []


# ---------------------------------------------------------------- the host base


def test_writes_to_the_host_base_vanish(firkin: Firkin) -> None:
    names = ["/etc/new", "/home/new", "/new", "/root/new", "/tmp/new"]
    # An ordinary user's container can't write where the host's root owns the folder.
    names += ["/usr/bin/new", "/opt/new"] if os.geteuid() == 0 else []
    script = f"touch {' '.join(names)} && rm /etc/passwd && ls {' '.join(names)}"
    assert shell(firkin, "host", script) == sorted(names)
    script = f"ls {' '.join(names)} 2>/dev/null; ls /etc/passwd"
    assert shell(firkin, "host", script) == ["/etc/passwd"]
    assert not any(os.path.exists(name) for name in names)


def test_the_host_base_runs_python(firkin: Firkin) -> None:
    code = "import ssl, sqlite3, ctypes, pwd; print(pwd.getpwuid(0).pw_name)"
    done = firkin("run", "host", "python3", "-c", code)
    assert done.stdout == "root\n", done.stderr


def test_the_host_base_has_no_secrets(firkin: Firkin, tmp_path: Path) -> None:
    (tmp_path / "firkin-secret").touch()
    script = (
        "ls /etc/shadow /etc/gshadow /etc/sudoers /etc/ssh /etc/machine-id 2>/dev/null;"
        "find / -xdev -name 'firkin-secret*'; ls -A /home /var/tmp /tmp /run /mnt;"
        "cut -d: -f1 /etc/passwd | tr '\\n' ' '"
    )
    lines = [line for line in shell(firkin, "host", f"{script}; true") if line]
    assert lines[-1].split() == ["root", "daemon", "bin", "sys", "nobody"]
    assert lines[:-1] == ["/home:", "/mnt:", "/run:", "lock", "/tmp:", "/var/tmp:"]


# ---------------------------------------------------------------- files made for the container


def test_etc_files(firkin: Firkin, busybox_root: Path) -> None:
    options = ["--hostname", "barrel", "--add-host", "oak:10.1.2.3", busybox_root]
    lines = shell(firkin, *options, "cat /etc/hostname /etc/hosts")
    assert lines[0] == "barrel"
    assert {"127.0.0.1\tlocalhost", "10.1.2.3\toak"} < set(lines)
    assert any(line.endswith("\tbarrel") for line in lines)
    resolv = Path("/etc/resolv.conf")
    theirs = resolv.read_text().splitlines() if resolv.exists() else []
    assert shell(firkin, busybox_root, "cat /etc/resolv.conf") == theirs
    assert shell(firkin, "--dns", "10.9.8.7", busybox_root, "cat /etc/resolv.conf") == [
        "nameserver 10.9.8.7"
    ]
    # They are the container's own to change.
    assert shell(firkin, busybox_root, "echo x >/etc/hosts; cat /etc/hosts") == ["x"]


@pytest.mark.parametrize("name", ["hosts", "hostname", "resolv.conf"])
def test_a_volume_over_an_etc_file(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine").write_text("mine\n")
    options = ["-v", f"{tmp_path}/mine:/etc/{name}", busybox_root]
    assert shell(firkin, *options, f"cat /etc/{name}") == ["mine"]


# ---------------------------------------------------------------- volumes and other mounts


def test_volumes(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
    options = ["-v", f"{tmp_path}/rw:/rw", "-v", f"{tmp_path}/ro:/ro:ro", busybox_root]
    script = "echo hello >/rw/new; touch /ro/new 2>&1; "
    script += "mount -o remount,rw,bind /ro 2>/dev/null; touch /ro/x 2>/dev/null; true"
    assert shell(firkin, *options, script) == ["touch: /ro/new: Read-only file system"]
    assert (tmp_path / "rw/new").read_text() == "hello\n"
    assert (tmp_path / "rw/new").stat().st_uid == os.getuid()
    assert os.listdir(tmp_path / "ro") == []


@pytest.mark.parametrize("source", ["./here", "../{folder}/here"])
def test_a_relative_volume(firkin: Firkin, busybox_root: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "here").mkdir()
    volume = source.format(folder=tmp_path.name) + ":/v"
    done = firkin("run", "-v", volume, busybox_root, "touch", "/v/new", cwd=tmp_path)
    assert (done.returncode, os.listdir(tmp_path / "here")) == (0, ["new"]), done.stderr


def test_mount_option(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    for name in ("bind", "lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/old").touch()
    overlay = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    options = [
        *("--mount", f"type=bind,src={tmp_path}/bind,dst=/b,readonly"),
        *("--mount", "type=tmpfs,dst=/t,tmpfs-mode=1770,tmpfs-size=1m"),
        *("--mount", f"type=overlay,target=/o,{overlay}"),
        *("--mount", f"type=overlay,target=/p,source={tmp_path}/lower"),
    ]
    script = "stat -c %a /t; touch /b/x 2>/dev/null; rm /o/old; touch /o/new /p/new; ls /o /p"
    lines = shell(firkin, *options, busybox_root, script)
    assert lines == ["1770", "/o:", "new", "", "/p:", "new", "old"]
    assert os.listdir(tmp_path / "bind") == []
    assert os.listdir(tmp_path / "lower") == ["old"]
    assert sorted(os.listdir(tmp_path / "upper")) == ["new", "old"]


@pytest.mark.parametrize(
    "option", ["--tmpfs=/t:size=1m", "--mount=type=tmpfs,dst=/t,tmpfs-size=1m", "--shm-size=1m"]
)
def test_a_tmpfs_holds_no_more_than_its_size(
    firkin: Firkin, busybox_root: Path, option: str
) -> None:
    where = "/dev/shm" if "shm" in option else "/t"
    script = f"dd if=/dev/zero of={where}/x bs=64k count=64 2>/dev/null; stat -c %s {where}/x"
    assert shell(firkin, option, busybox_root, script) == [str(1 << 20)]


@pytest.mark.parametrize(("source", "target"), [("file", "/tmp"), ("folder", "/etc/passwd")])
def test_a_file_is_not_mounted_on_a_folder(
    firkin: Firkin, busybox_root: Path, tmp_path: Path, source: str, target: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    done = firkin("run", "-v", f"{tmp_path}/{source}:{target}", busybox_root, "true")
    refused(done, target)


def test_a_missing_source(firkin: Firkin, busybox_root: Path, tmp_path: Path) -> None:
    mount = f"type=bind,source={tmp_path}/missing,target=/x"
    refused(firkin("run", "--mount", mount, busybox_root, "true"), f"{tmp_path}/missing")


# ---------------------------------------------------------------- hostile images

UP = "../" * 30
# Where each link of the image leads. HOST is a folder of the host outside of the image.
LINKS = ["/", "HOST", f"{UP}HOST", "/proc/self/cwd", "/proc/1/root", "loop", "missing"]


@pytest.mark.parametrize("where", ["etc", "dev", "sys", "tmp", "mnt", "proc"])
@pytest.mark.parametrize("link", LINKS)
def test_links_of_an_image_lead_nowhere_outside(
    firkin: Firkin, own_root: Path, tmp_path: Path, where: str, link: str
) -> None:
    """Mount points that are links: the container starts with them inside, or is refused."""
    outside, volume = tmp_path / "outside", tmp_path / "volume"
    for folder in (outside, volume, outside / "pts"):
        folder.mkdir()
    (outside / "hosts").write_text("the host's\n")
    (own_root / "loop").symlink_to("loop")
    if (own_root / where).exists():
        shutil.rmtree(own_root / where)
    (own_root / where).symlink_to(
        link.replace("HOST", str(outside).lstrip("/" if UP in link else ""))
    )
    before, image_before = digest(outside), digest(own_root)
    options = ["-v", f"{volume}:/tmp/v", "-v", f"{volume}:/mnt/deep/v", "--tmpfs", "/mnt/t"]
    done = firkin("run", *options, own_root, "sh", "-c", "echo x >/etc/hosts; touch /tmp/v/new")
    assert done.returncode in (0, 125), done.stderr
    if done.returncode:
        refused(done)
    else:
        assert os.listdir(volume) == ["new"]
    if where in ("proc", "sys"):
        refused(done, f"/{where}")
    assert digest(outside) == before
    assert digest(own_root) == image_before
