"""mounts: every option of the specification's table, seen from inside and from outside."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import execute
from support.oci import Bundle, Container, Runtime, mount, ours
from support.requires import requires

MakeBundle = Callable[..., Bundle]


def mounted(container: Container, path: str) -> tuple[set[str], list[str], str, str]:
    """Return options, optional fields, type and the file system's options of a mount."""
    for line in reversed(container.proc("mountinfo").splitlines()):
        head, _, tail = line.partition(" - ")
        fields = head.split()
        if fields[4] == path:
            kind, _, options = tail.split(" ", 2)
            return set(fields[5].split(",")), fields[6:], kind, options
    raise AssertionError(f"nothing is mounted at {path}")


def add(bundle: Bundle, *args: str, **more: Any) -> Bundle:
    """Add an entry to ``mounts``."""
    bundle.config["mounts"].append(mount(*args) | more)
    return bundle


@pytest.fixture
def own_bundle(make_bundle: MakeBundle, own_root: Path) -> Bundle:
    """A bundle with a root of its own, in which mount points can be made."""
    made = make_bundle(root=own_root)
    made.config["root"]["readonly"] = False
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host with another file system mounted below it, at ``below``."""
    folder = tmp_path / "tree"
    (folder / "below").mkdir(parents=True)
    execute(["mount", "-t", "tmpfs", "tmpfs", str(folder / "below")], check=True)
    (folder / "file").write_text("the host's\n")
    (folder / "below/deep").write_text("deep\n")
    yield folder
    execute(["umount", str(folder / "below")], check=True)


# ---------------------------------------------------------------- options of one mount

# Option, and what mountinfo must and must not say of the mount.
OPTIONS = {
    "ro": ("ro", ""),
    "nosuid": ("nosuid", ""),
    "nodev": ("nodev", ""),
    "noexec": ("noexec", ""),
    "noatime": ("noatime", "relatime"),
    "nodiratime": ("nodiratime", ""),
    "relatime": ("relatime", "noatime"),
    "strictatime": ("", "relatime"),
    "nosymfollow": ("nosymfollow", ""),
    "rw": ("rw", "ro"),
    "defaults": ("rw", ""),
}


def known(runtime: Runtime) -> list[str]:
    """Return what the runtime knows of OPTIONS."""
    # runc 1.1.5 gives "defaults" to the file system.
    unknown = ("nosymfollow", "defaults") if runtime.is_runc else ()
    return [name for name in OPTIONS if name not in unknown]


def as_said(container: Container, path: str, option: str) -> bool:
    has, lacks = OPTIONS[option]
    options = mounted(container, path)[0]
    return has in options | {""} and lacks not in options


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_flags(runtime: Runtime, own_bundle: Bundle, tree: Path, kind: str) -> None:
    for option in known(runtime):
        words = [option, "bind"] if kind == "bind" else [option]
        add(own_bundle, f"/on/{option}", kind, str(tree) if kind == "bind" else "tmpfs", *words)
    container = runtime.up(own_bundle)
    assert [o for o in known(runtime) if not as_said(container, f"/on/{o}", o)] == []


def test_the_last_of_two_that_contradict_counts(
    runtime: Runtime, own_bundle: Bundle, tree: Path
) -> None:
    undone = {
        "ro": "rw",
        "nosuid": "suid",
        "nodev": "dev",
        "noexec": "exec",
        "noatime": "atime",
        "nodiratime": "diratime",
    }
    if not runtime.is_runc:
        undone["nosymfollow"] = "symfollow"
    for option, other in undone.items():
        add(own_bundle, f"/off/{option}", "bind", str(tree), "bind", option, other)
        add(own_bundle, f"/on/{option}", "bind", str(tree), "bind", other, option)
    container = runtime.up(own_bundle)
    for option in undone:
        assert option not in mounted(container, f"/off/{option}")[0]
        assert option in mounted(container, f"/on/{option}")[0]


def test_options_of_the_file_system(runtime: Runtime, own_bundle: Bundle) -> None:
    found = {"sync": "sync", "dirsync": "dirsync", "size=1m": "size=1024k", "mode=711": "mode=711"}
    if not runtime.is_runc:
        found["lazytime"] = "lazytime"
    for number, option in enumerate(found):
        add(own_bundle, f"/on/{number}", "tmpfs", "tmpfs", option)
    container = runtime.up(own_bundle)
    for number, word in enumerate(found.values()):
        assert word in mounted(container, f"/on/{number}")[3].split(",")


def test_options_that_leave_things_as_they_are(runtime: Runtime, own_bundle: Bundle) -> None:
    """Each is taken, and none reaches tmpfs, which refuses what it does not know."""
    options = ["async", "suid", "dev", "exec", "atime", "diratime", "norelatime", "nostrictatime"]
    options += ["iversion", "noiversion", "silent", "loud", "nomand"]
    if not runtime.is_runc:
        options += ["mand", "nolazytime", "symfollow"]
    for option in options:
        add(own_bundle, f"/on/{option}", "tmpfs", "tmpfs", option)
    assert runtime.shell(own_bundle, "grep -c ' /on/.* tmpfs' /proc/mounts") == str(len(options))


def test_what_nobody_knows_is_for_the_file_system(runtime: Runtime, own_bundle: Bundle) -> None:
    add(own_bundle, "/mnt", "tmpfs", "tmpfs", "nosuch=1")
    done = runtime.run(own_bundle)
    assert done.returncode == 1
    assert os.strerror(errno.EINVAL).lower() in done.stderr.lower()


# ---------------------------------------------------------------- recursive ones


@requires("kernel:5.12")
def test_recursive_flags(runtime: Runtime, own_bundle: Bundle, tree: Path) -> None:
    options = [name for name in known(runtime) if name not in ("defaults", "rw")]
    for option in options:
        add(own_bundle, f"/on/{option}", "bind", str(tree), "rbind", f"r{option}")
    container = runtime.up(own_bundle)
    for path in ("", "/below"):
        assert [o for o in options if not as_said(container, f"/on/{o}{path}", o)] == []


def test_flags_are_not_recursive_by_themselves(
    runtime: Runtime, own_bundle: Bundle, tree: Path
) -> None:
    add(own_bundle, "/on", "bind", str(tree), "rbind", "ro", "nosuid")
    container = runtime.up(own_bundle)
    assert {"ro", "nosuid"} <= mounted(container, "/on")[0]
    assert not {"ro", "nosuid"} & mounted(container, "/on/below")[0]


@ours  # runc sets the source's own flags again after it
@requires("kernel:5.12")
def test_recursive_flags_are_cleared(runtime: Runtime, own_bundle: Bundle, tree: Path) -> None:
    undone = {
        "ro": "rrw",
        "nosuid": "rsuid",
        "nodev": "rdev",
        "noexec": "rexec",
        "nodiratime": "rdiratime",
        "noatime": "ratime",
        "nosymfollow": "rsymfollow",
    }
    execute(["mount", "-o", f"remount,bind,{','.join(undone)}", str(tree / "below")], check=True)
    for option, word in undone.items():
        add(own_bundle, f"/off/{option}", "bind", str(tree), "rbind", word)
    container = runtime.up(own_bundle)
    for option in undone:
        options = mounted(container, f"/off/{option}/below")[0]
        assert options & set(undone) == set(undone) - {option}


# ---------------------------------------------------------------- propagation


@pytest.mark.parametrize(
    ("option", "own", "below"),
    [
        ("rprivate", "", ""),
        ("shared", "shared", ""),
        ("rshared", "shared", "shared"),
        ("unbindable", "unbindable", ""),
        ("runbindable", "unbindable", "unbindable"),
    ],
)
def test_propagation(
    runtime: Runtime, own_bundle: Bundle, tree: Path, option: str, own: str, below: str
) -> None:
    execute(["mount", "--make-private", str(tree / "below")], check=True)
    add(own_bundle, "/mnt", "bind", str(tree), "rbind", "rprivate", option)
    container = runtime.up(own_bundle)
    kinds = [
        ",".join(field.partition(":")[0] for field in mounted(container, path)[1])
        for path in ("/mnt", "/mnt/below")
    ]
    assert kinds == [own, below]


@pytest.mark.parametrize(
    ("root", "option", "arrives", "leaves"),
    [
        ("rslave", "rslave", True, False),
        ("rshared", "rshared", True, True),
        ("rprivate", "rprivate", False, False),
    ],
)
def test_mounts_travel_as_the_propagation_says(
    runtime: Runtime,
    own_bundle: Bundle,
    tmp_path: Path,
    root: str,
    option: str,
    arrives: bool,
    leaves: bool,
) -> None:
    shared = tmp_path / "shared"
    (shared / "in").mkdir(parents=True)
    (shared / "out").mkdir()
    execute(["mount", "-t", "tmpfs", "tmpfs", str(shared)], check=True)
    try:
        execute(["mount", "--make-shared", str(shared)], check=True)
        for name in ("in", "out"):
            (shared / name).mkdir()
        add(own_bundle, "/mnt", "bind", str(shared), "rbind", option)
        own_bundle.linux["rootfsPropagation"] = root
        own_bundle.process["capabilities"] = {
            kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "permitted", "effective")
        }
        container = runtime.up(own_bundle)
        execute(["mount", "-t", "tmpfs", "tmpfs", str(shared / "in")], check=True)
        container.exec("mount", "-t", "tmpfs", "tmpfs", "/mnt/out", check=True)
        assert (" /mnt/in " in container.proc("mountinfo")) == arrives
        assert (f" {shared}/out " in Path("/proc/self/mountinfo").read_text()) == leaves
    finally:
        execute(["umount", "-R", str(shared)])


# ---------------------------------------------------------------- binds


def test_a_bind_of_a_file(runtime: Runtime, bundle: Bundle, tree: Path) -> None:
    add(bundle, "/etc/hostname", "bind", str(tree / "file"), "bind", "ro")
    assert runtime.shell(bundle, "cat /etc/hostname") == "the host's"


def test_bind_takes_one_mount_and_rbind_all(
    runtime: Runtime, own_bundle: Bundle, tree: Path
) -> None:
    add(own_bundle, "/mnt", "none", str(tree), "bind")
    add(own_bundle, "/opt", "none", str(tree), "rbind")
    assert (
        runtime.shell(own_bundle, "ls /mnt/below /opt/below") == "/mnt/below:\n\n/opt/below:\ndeep"
    )


def test_a_relative_source_begins_at_the_bundle(runtime: Runtime, bundle: Bundle) -> None:
    (bundle.folder / "data").mkdir()
    (bundle.folder / "data/file").write_text("in the bundle\n")
    add(bundle, "/tmp", "bind", "data", "bind")
    assert runtime.shell(bundle, "cat /tmp/file") == "in the bundle"


def test_a_source_that_is_missing(runtime: Runtime, bundle: Bundle) -> None:
    add(bundle, "/tmp", "bind", "/nosuch/source", "bind")
    done = runtime.run(bundle)
    assert done.returncode == 1
    assert "/nosuch/source" in done.stderr
    assert "no such file or directory" in done.stderr.lower()


def test_remount_changes_what_is_mounted(runtime: Runtime, bundle: Bundle) -> None:
    add(bundle, "/tmp", "tmpfs", "tmpfs", "size=1m")
    add(bundle, "/tmp", "tmpfs", "tmpfs", "remount", "size=2m", "nosuid")
    container = runtime.up(bundle)
    options, _, _, data = mounted(container, "/tmp")
    assert "nosuid" in options
    assert "size=2048k" in data
    assert container.proc("mountinfo").count(" /tmp ") == 1


def test_remount_of_a_bind_changes_its_flags(runtime: Runtime, bundle: Bundle, tree: Path) -> None:
    add(bundle, "/tmp", "bind", str(tree), "bind")
    add(bundle, "/tmp", "bind", str(tree), "bind", "remount", "ro", "nodev")
    container = runtime.up(bundle)
    assert {"ro", "nodev"} <= mounted(container, "/tmp")[0]
    assert container.proc("mountinfo").count(" /tmp ") == 1


def test_remount_of_what_is_no_mount(runtime: Runtime, bundle: Bundle) -> None:
    add(bundle, "/tmp", "tmpfs", "tmpfs", "remount", "ro")
    assert runtime.run(bundle).returncode == 1


# ---------------------------------------------------------------- links


@pytest.fixture
def link(tree: Path) -> Path:
    """A link of the host to a file of the host."""
    made = tree / "link"
    made.symlink_to("file")
    return made


@ours  # runc knows no src-nofollow
@requires("kernel:5.12")
def test_a_link_is_bound_itself(runtime: Runtime, bundle: Bundle, link: Path) -> None:
    add(bundle, "/etc/hostname", "bind", str(link), "bind", "src-nofollow")
    assert runtime.shell(bundle, "readlink /etc/hostname") == "file"


def test_a_link_is_followed_without(runtime: Runtime, bundle: Bundle, link: Path) -> None:
    add(bundle, "/etc/hostname", "bind", str(link), "bind")
    assert runtime.shell(bundle, "cat /etc/hostname") == "the host's"


@ours  # runc knows no dest-nofollow
def test_a_destination_that_is_a_link_is_mounted_on(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, link: Path
) -> None:
    (own_root / "etc/name").symlink_to("hostname")
    bundle = make_bundle(root=own_root)
    add(bundle, "/etc/name", "bind", str(link), "bind", "dest-nofollow")
    assert runtime.shell(bundle, "cat /etc/name /etc/hostname") == "the host's\nbusybox"
    assert (own_root / "etc/name").is_symlink()


@ours  # runc knows no copy-symlink
def test_a_link_is_copied(runtime: Runtime, make_bundle: MakeBundle, own_root: Path) -> None:
    bundle = make_bundle(root=own_root)
    (bundle.folder / "link").symlink_to("/etc/passwd")
    add(bundle, "/copied", "bind", "link", "bind", "copy-symlink")
    assert runtime.shell(bundle, "readlink /copied") == "/etc/passwd"


@ours  # runc knows no copy-symlink
def test_the_words_for_links_exclude_each_other(runtime: Runtime, own_bundle: Bundle) -> None:
    add(own_bundle, "/mnt", "bind", "/", "bind", "copy-symlink", "src-nofollow")
    assert "mounts[7].options" in runtime.refused(runtime.run(own_bundle))


# ---------------------------------------------------------------- mapped ids

IDS = [{"containerID": 0, "hostID": 200000, "size": 65536}]
OTHER_IDS = [{"containerID": 0, "hostID": 300000, "size": 65536}]
MAPPED = {"uidMappings": IDS, "gidMappings": IDS}


def give_user_namespace(bundle: Bundle, root: Path) -> None:
    bundle.namespaces.append({"type": "user"})
    bundle.linux.update(MAPPED)
    # The container's root can look into what it does not own.
    root.chmod(0o755)


@pytest.fixture
def owned(tree: Path) -> Path:
    """The folder, with files of several ids of the host."""
    for folder in (tree, tree / "below"):
        folder.chmod(0o755)
        for uid in (0, 1000):
            path = folder / f"of{uid}"
            path.write_text("")
            os.chown(path, uid, uid + 1)
    return tree


SHOW = "stat -c '%n %u %g' /mnt/of* /mnt/below/of* 2>/dev/null; :"
AS_ON_HOST = "/mnt/of0 0 1\n/mnt/of1000 1000 1001"
BELOW_AS_ON_HOST = "/mnt/below/of0 0 1\n/mnt/below/of1000 1000 1001"
BELOW_NOBODY = "/mnt/below/of0 65534 65534\n/mnt/below/of1000 65534 65534"


@ours  # runc maps the ids of mounts only from 1.2 on
@requires("kernel:5.12")
@pytest.mark.parametrize(
    ("options", "below"),
    [
        (("bind", "idmap"), ""),
        (("rbind", "idmap"), BELOW_NOBODY),
        (("rbind", "ridmap"), BELOW_AS_ON_HOST),
    ],
)
def test_the_container_s_own_ids(
    runtime: Runtime,
    make_bundle: MakeBundle,
    own_root: Path,
    owned: Path,
    options: tuple[str, ...],
    below: str,
) -> None:
    bundle = make_bundle(root=own_root)
    give_user_namespace(bundle, own_root)
    (own_root / "mnt").mkdir()
    add(bundle, "/mnt", "bind", str(owned), *options)
    assert runtime.shell(bundle, SHOW) == "\n".join(filter(None, [AS_ON_HOST, below]))
    # Of the files themselves nothing has changed.
    assert (owned / "of1000").stat().st_uid == 1000


@ours  # runc maps the ids of mounts only with a user namespace's
@requires("kernel:5.12")
@pytest.mark.parametrize("options", [("bind",), ("bind", "idmap")])
def test_ids_of_the_mount_s_own(
    runtime: Runtime, own_bundle: Bundle, owned: Path, options: tuple[str, ...]
) -> None:
    add(own_bundle, "/mnt", "bind", str(owned), *options, uidMappings=IDS, gidMappings=OTHER_IDS)
    found = runtime.shell(own_bundle, SHOW)
    assert found == "/mnt/of0 200000 300001\n/mnt/of1000 201000 301001"


@ours  # runc maps the ids of mounts only from 1.2 on
@requires("kernel:5.12")
def test_new_files_get_ids_of_the_host(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, owned: Path
) -> None:
    bundle = make_bundle(root=own_root)
    give_user_namespace(bundle, own_root)
    (own_root / "mnt").mkdir()
    add(bundle, "/mnt", "bind", str(owned), "rbind", "ridmap")
    bundle.process["capabilities"] = {
        kind: ["CAP_CHOWN"] for kind in ("bounding", "permitted", "effective")
    }
    runtime.shell(bundle, "touch /mnt/new; chown 5:6 /mnt/new")
    status = (owned / "new").stat()
    assert (status.st_uid, status.st_gid) == (5, 6)


@ours  # runc maps the ids of mounts only from 1.2 on
@requires("kernel:5.12")
def test_ids_of_a_joined_user_namespace(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, owned: Path
) -> None:
    (own_root / "mnt").mkdir()
    first = make_bundle(root=own_root, folder="first")
    give_user_namespace(first, own_root)
    pid = runtime.up(first).pid
    bundle = make_bundle(root=own_root)
    bundle.namespaces.append({"type": "user", "path": f"/proc/{pid}/ns/user"})
    add(bundle, "/mnt", "bind", str(owned), "bind", "idmap", "ro")
    script = "cat /proc/self/uid_map | tr -s ' '; " + SHOW
    assert runtime.shell(bundle, script) == f"0 200000 65536\n{AS_ON_HOST}"


@ours  # runc takes idmap for a word of the file system's
def test_ids_from_nowhere(runtime: Runtime, own_bundle: Bundle, tree: Path) -> None:
    add(own_bundle, "/mnt", "bind", str(tree), "bind", "idmap")
    assert "mounts[7].options: there are no ids to map" in runtime.refused(runtime.run(own_bundle))


@ours  # runc asks for a user namespace first
def test_only_binds_have_ids(runtime: Runtime, own_bundle: Bundle) -> None:
    add(own_bundle, "/mnt", "tmpfs", "tmpfs", **MAPPED)
    assert "mounts[7].options: only the ids of a bind mount" in runtime.refused(
        runtime.run(own_bundle)
    )


@ours  # runc takes it for a word of the file system's
def test_ids_in_crun_s_own_form(runtime: Runtime, own_bundle: Bundle, tree: Path) -> None:
    add(own_bundle, "/mnt", "bind", str(tree), "bind", "idmap=uids=0-1-10;gids=0-1-10")
    assert "mounts[7].options: ids are given as uidMappings" in runtime.refused(
        runtime.run(own_bundle)
    )


# ---------------------------------------------------------------- tmpcopyup


# To look into what belongs to others.
DAC = {kind: ["CAP_DAC_OVERRIDE"] for kind in ("bounding", "permitted", "effective")}


@pytest.fixture
def full(own_root: Path) -> Path:
    """A root whose ``/data`` has a file of every kind."""
    data = own_root / "data"
    (data / "folder/deep").mkdir(parents=True)
    (data / "folder/deep/file").write_text("deep\n")
    (data / "script").write_text("#!/bin/sh\n")
    os.chown(data / "script", 1000, 50)
    (data / "script").chmod(0o4750)
    os.utime(data / "script", (1, 2))
    os.link(data / "script", data / "folder/again")
    (data / "link").symlink_to("/etc/shadow")
    os.mkfifo(data / "fifo", 0o640)
    os.mknod(data / "null", stat.S_IFCHR, os.makedev(1, 3))
    (data / "null").chmod(0o620)
    with (data / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"middle")
    os.chown(data, 1000, 1000)
    data.chmod(0o1770)
    return own_root


@ours  # runc copies no hard links, and the holes of sparse files
def test_a_tmpfs_begins_with_what_it_covers(
    runtime: Runtime, make_bundle: MakeBundle, full: Path
) -> None:
    bundle = make_bundle(root=full)
    bundle.process["capabilities"] = DAC
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup", "size=4m")
    script = """
        cd /data && grep -q ' /data tmpfs' /proc/mounts && cat folder/deep/file
        stat -c '%n %F %a %u:%g %h %Y' script folder/again | sed 's/regular.*file/file/'
        readlink link
        stat -c '%n %F %a' fifo null . && stat -c '%t:%T' null
        stat -c '%s' sparse && dd if=sparse bs=1 skip=549755813888 count=6 2>/dev/null && echo
        echo new > folder/deep/file && cat folder/deep/file
    """
    assert runtime.shell(bundle, script).split("\n") == [
        "deep",
        "script file 4750 1000:50 2 2",
        "folder/again file 4750 1000:50 2 2",
        "/etc/shadow",
        "fifo fifo 640",
        "null character special file 620",
        ". directory 1770",
        "1:3",
        str(1 << 40),
        "middle",
        "new",
    ]
    # What is written there stays there.
    assert (full / "data/folder/deep/file").read_text() == "deep\n"


def test_copying_up_follows_no_link_of_the_image(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the host's\n")
    data = own_root / "data"
    data.mkdir()
    (data / "folder").symlink_to(tmp_path)
    (data / "file").symlink_to(tmp_path / "secret")
    (data / "up").symlink_to("../../../../../../../../..")
    bundle = make_bundle(root=own_root)
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup")
    script = (
        "cat /data/file /data/folder/secret 2>/dev/null; for l in /data/*; do readlink $l; done"
    )
    assert runtime.shell(bundle, script).split() == [
        str(tmp_path / "secret"),
        str(tmp_path),
        "../../../../../../../../..",
    ]


def test_a_destination_that_leads_out_is_covered_inside(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, tmp_path: Path
) -> None:
    """The image says where /data is; only inside the root."""
    (tmp_path / "secret").write_text("the host's\n")
    (own_root / "data").symlink_to(tmp_path)
    bundle = make_bundle(root=own_root)
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup")
    assert runtime.shell(bundle, f"ls -A {tmp_path}") == ""
    assert (tmp_path / "secret").exists()


@ours  # runc copies no attributes
def test_extended_attributes_are_copied_up(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    (own_root / "data").mkdir()
    file = own_root / "data/file"
    file.write_text("")
    # CAP_NET_RAW, permitted and effective: struct vfs_cap_data of linux/capability.h.
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(file, "security.capability", capability)
    bundle = make_bundle(root=own_root)
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup")
    container = runtime.up(bundle)
    copied = Path(f"/proc/{container.pid}/root/data/file")
    assert os.getxattr(copied, "security.capability") == capability


@ours  # runc copies other file systems, too
def test_what_is_mounted_below_is_not_copied(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path, tree: Path
) -> None:
    (own_root / "data/below").mkdir(parents=True)
    bundle = make_bundle(root=own_root)
    add(bundle, "/data/below", "bind", str(tree / "below"), "bind")
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup")
    assert runtime.shell(bundle, "find /data") == "/data\n/data/below"


def test_a_tmpfs_that_is_too_small(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    (own_root / "data").mkdir()
    (own_root / "data/big").write_bytes(b"x" * (1 << 20))
    bundle = make_bundle(root=own_root)
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup", "size=64k")
    done = runtime.run(bundle)
    assert done.returncode == 1
    assert "no space left on device" in done.stderr.lower()
    assert runtime.is_runc or "/data/big" in done.stderr


@ours  # runc mounts it read-only, and can't copy then
def test_a_copy_that_is_read_only(runtime: Runtime, make_bundle: MakeBundle, full: Path) -> None:
    bundle = make_bundle(root=full)
    bundle.process["capabilities"] = DAC
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup", "ro")
    script = "cat /data/folder/deep/file; touch /data/x 2>&1 || :"
    assert runtime.shell(bundle, script) == "deep\ntouch: /data/x: Read-only file system"


@ours  # runc passes over it
def test_only_a_tmpfs_copies_up(runtime: Runtime, own_bundle: Bundle, tree: Path) -> None:
    add(own_bundle, "/mnt", "bind", str(tree), "bind", "tmpcopyup")
    assert "mounts[7].options: tmpcopyup is for a tmpfs" in runtime.refused(runtime.run(own_bundle))


def test_copying_up_in_a_user_namespace(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    data = own_root / "data"
    data.mkdir()
    (data / "file").write_text("")
    for path in (data, data / "file"):
        os.chown(path, 201000, 200050)
    bundle = make_bundle(root=own_root)
    give_user_namespace(bundle, own_root)
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup")
    assert runtime.shell(bundle, "stat -c '%u:%g' /data/file") == "1000:50"


def test_a_tmpfs_has_the_mode_of_what_it_covers(
    runtime: Runtime, make_bundle: MakeBundle, own_root: Path
) -> None:
    for name, mode in (("own", 0o705), ("given", 0o700)):
        (own_root / name).mkdir()
        (own_root / name).chmod(mode)
    bundle = make_bundle(root=own_root)
    bundle.config["root"]["readonly"] = False
    add(bundle, "/own", "tmpfs", "tmpfs")
    add(bundle, "/new", "tmpfs", "tmpfs")
    add(bundle, "/given", "tmpfs", "tmpfs", "mode=711")
    found = runtime.shell(bundle, "stat -c %a /own /new /given").split()
    assert found[:2] == ["705", "1777"]
    # runc 1.1.5 sets the folder's mode, whatever was asked for.
    assert found[2] == ("700" if runtime.is_runc else "711")


# ---------------------------------------------------------------- cgroups and /dev


def test_cgroups_are_shown(runtime: Runtime, bundle: Bundle) -> None:
    """On v1 a folder a hierarchy, with the container's own cgroup in it, read-only."""
    script = """
        cd /sys/fs/cgroup
        path=$(find . -name cgroup.procs -maxdepth 2 | grep -E 'pids|^./cgroup.procs' | head -n 1)
        grep -x 1 "$path"
        mkdir "$(dirname $path)/new" 2>&1 | grep -o 'Read-only file system'
    """
    assert runtime.shell(bundle, script) == "1\nRead-only file system"


@ours  # runc leaves it writable
@requires("cgroup v1")
def test_what_holds_the_hierarchies_is_read_only(runtime: Runtime, bundle: Bundle) -> None:
    assert "ro" in mounted(runtime.up(bundle), "/sys/fs/cgroup")[0]


def test_cgroups_can_be_written(runtime: Runtime, bundle: Bundle) -> None:
    bundle.namespaces.append({"type": "cgroup"})
    bundle.config["mounts"][-1]["options"].remove("ro")
    script = """
        set -e; cd /sys/fs/cgroup; test -d pids && cd pids
        mkdir inner; ls -d inner; rmdir inner
        grep -v '/\\.\\.' /proc/self/cgroup | cut -d: -f3 | sort -u
    """
    assert runtime.shell(bundle, script) == "inner\n/"


def test_a_read_only_dev_still_has_devices(runtime: Runtime, bundle: Bundle) -> None:
    dev = next(entry for entry in bundle.config["mounts"] if entry["destination"] == "/dev")
    dev["options"].append("ro")
    script = """
        echo x > /dev/null; touch /dev/x 2>&1 | grep -o 'Read-only file system'
        touch /dev/shm/x; test -c /dev/tty && echo tty
    """
    assert runtime.shell(bundle, script) == "Read-only file system\ntty"


def test_a_dev_of_the_host_s_is_left_alone(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    bundle.config["mounts"] = [
        entry for entry in bundle.config["mounts"] if not entry["destination"].startswith("/dev")
    ]
    os.mknod(dev / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # runc needs it
    add(bundle, "/dev", "bind", str(dev), "rbind")
    runtime.shell(bundle, ":")
    assert os.listdir(dev) == ["null"]


def test_mounts_are_made_in_order(runtime: Runtime, bundle: Bundle, tree: Path) -> None:
    add(bundle, "/tmp", "bind", str(tree), "bind")
    add(bundle, "/tmp/below", "tmpfs", "tmpfs")
    add(bundle, "/tmp/below/inner", "bind", str(tree), "bind")
    assert runtime.shell(bundle, "cat /tmp/below/inner/file; ls /tmp/below") == "the host's\ninner"


def test_a_relative_destination_begins_at_the_root(runtime: Runtime, bundle: Bundle) -> None:
    add(bundle, "tmp", "tmpfs", "tmpfs")
    done = runtime.run(bundle.shell("grep -c ' /tmp tmpfs' /proc/mounts"))
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_nothing_of_a_failed_mount_is_left(runtime: Runtime, bundle: Bundle, tree: Path) -> None:
    add(bundle, "/tmp", "bind", str(tree), "rbind", "rshared")
    add(bundle, "/var/tmp", "nosuchfs", "none")
    assert runtime.run(bundle).returncode == 1
    about = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(tree) in line or str(bundle.folder) in line
    ]
    assert len(about) == 1  # the tree's own
