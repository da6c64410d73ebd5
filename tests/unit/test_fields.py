"""Fields of a configuration, compiled: the parts that need no container."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from firkin.errors import ConfigError, FirkinError, SetupError
from firkin.init import listener
from firkin.linux import mount as m
from firkin.linux import sched
from firkin.runtime import process_fields, rdt, seccomp_notify
from firkin.runtime.mount_options import parse_options

# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("0", (0,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        ("7,0-1", (0, 1, 7)),
        (" 1 , 2 ", (1, 2)),
        ("2-2", (2,)),
        ("1,1-2", (1, 2)),
    ],
)
def test_lists_of_numbers(text: str, found: tuple[int, ...]) -> None:
    assert process_fields.numbers(text, "field") == found


@pytest.mark.parametrize(
    "text", ["x", "-1", "1-", "1,", ",", "1-2-3", "2-1", "8192", "0-99999999999", "1 2", "٣", "+1"]
)
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="field"):
        process_fields.numbers(text, "field")


def test_masks_are_whole_words() -> None:
    assert sched.mask(()) == b""
    assert int.from_bytes(sched.mask((0, 3)), sys.byteorder) == 0b1001
    size = struct.calcsize("L")
    assert len(sched.mask((size * 8 - 1,))) == size
    two = sched.mask((0, size * 8))
    assert struct.unpack("LL", two) == (1, 1)


def test_processors_before_and_after() -> None:
    every = tuple(range(os.sysconf("SC_NPROCESSORS_CONF")))
    assert process_fields.affinity({}) == ((), ())
    assert process_fields.affinity({"execCPUAffinity": {}}) == ((), ())
    assert process_fields.affinity({"execCPUAffinity": {"final": "0"}}) == ((), (0,))
    assert process_fields.affinity({"execCPUAffinity": {"initial": "0"}}) == ((0,), every)
    both = {"execCPUAffinity": {"initial": "0", "final": "1-2"}}
    assert process_fields.affinity(both) == ((0,), (1, 2))


# ---------------------------------------------------------------- options of mounts


def test_options_of_every_kind() -> None:
    found = parse_options(
        ["rbind", "ro", "rnosuid", "rslave", "tmpcopyup", "src-nofollow", "dest-nofollow"], "f"
    )
    assert found.bind
    assert found.recursive
    assert found.flags & m.MS_RDONLY
    assert found.attr_set == m.MOUNT_ATTR_RDONLY
    assert found.rec_set == m.MOUNT_ATTR_NOSUID
    assert found.propagation == [m.MS_SLAVE | m.MS_REC]
    assert found.tmpcopyup
    assert found.src_nofollow
    assert found.dest_nofollow


def test_later_options_win_over_earlier_ones() -> None:
    found = parse_options(["ro", "rro", "rw", "rrw", "noatime", "rnoatime", "ratime"], "f")
    assert (found.flags & m.MS_RDONLY, found.attr_set & m.MOUNT_ATTR_RDONLY) == (0, 0)
    assert found.rec_set & (m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOATIME) == 0
    assert found.rec_clr & m.MOUNT_ATTR_RDONLY
    assert found.rec_clr & m.MOUNT_ATTR__ATIME == m.MOUNT_ATTR__ATIME


def test_words_of_the_file_system() -> None:
    assert parse_options(["size=1m", "ro", "mode=700"], "f").data == "size=1m,mode=700"


@pytest.mark.parametrize(
    "options", [["idmap=uids=0-1-1"], ["ridmap=uids=0-1-1"], ["copy-symlink", "src-nofollow"]]
)
def test_options_that_are_refused(options: list[str]) -> None:
    with pytest.raises(ConfigError, match="here"):
        parse_options(options, "here")


# ---------------------------------------------------------------- the listener's way


def profile(default: str, *rules: tuple[str, str], args: bool = False) -> dict[str, Any]:
    more = {"args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]} if args else {}
    return {
        "defaultAction": f"SCMP_ACT_{default}",
        "syscalls": [{"names": [name], "action": f"SCMP_ACT_{act}"} | more for name, act in rules],
    }


@pytest.mark.parametrize(
    ("given", "way"),
    [
        (profile("ALLOW", ("mkdir", "NOTIFY")), listener.BY_MESSAGE),
        (profile("LOG"), listener.BY_MESSAGE),
        (profile("ALLOW", ("sendmsg", "NOTIFY")), listener.BY_NUMBER),
        (profile("ALLOW", ("sendmsg", "ERRNO"), args=True), listener.BY_NUMBER),
        (profile("ERRNO", ("sendmsg", "ALLOW"), ("recvmsg", "ALLOW")), listener.BY_MESSAGE),
        (profile("ERRNO", ("write", "ALLOW"), ("recvmsg", "NOTIFY")), listener.BY_NUMBER),
    ],
)
def test_a_way_for_the_listener(given: dict[str, Any], way: int) -> None:
    assert seccomp_notify.way(given) == way


@pytest.mark.parametrize(
    "given",
    [
        profile("ERRNO"),
        profile("ALLOW", ("sendmsg", "NOTIFY"), ("write", "NOTIFY")),
        profile("ALLOW", ("recvmsg", "ERRNO")),
        # A rule with a condition leaves the default to the other calls.
        profile("ERRNO", ("sendmsg", "ALLOW"), ("recvmsg", "ALLOW"), args=True),
    ],
)
def test_no_way_for_the_listener(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"linux\.seccomp"):
        seccomp_notify.way(given)


# ---------------------------------------------------------------- groups of resctrl

# Where the machine has no resctrl, folders and files stand for it: what is read, written,
# made and removed is the same.


@pytest.fixture
def resctrl(tmp_path: Path) -> Path:
    (tmp_path / "there/mon_groups").mkdir(parents=True)
    (tmp_path / "mon_groups").mkdir()
    for folder in (tmp_path, tmp_path / "there"):
        (folder / "schemata").write_text("    L3:0=00ff;1=ff\n    MB:0=100;1=100\n")
        (folder / "tasks").write_text("")
    return tmp_path


def group(resctrl: Path, **wanted: Any) -> rdt.Group:
    return rdt.Group(wanted, "box", str(resctrl))


def test_a_group_of_the_container_s_own_goes_with_it(resctrl: Path) -> None:
    made = group(resctrl)
    assert made.record() == {"join": [f"{resctrl}/box"], "remove": [f"{resctrl}/box"]}
    made.create()
    assert (resctrl / "box").is_dir()


def test_a_group_by_name_stays(resctrl: Path) -> None:
    made = group(resctrl, closID="there", l3CacheSchema="L3:0=FF")
    assert made.record() == {"join": [f"{resctrl}/there"], "remove": []}
    made.create()
    # It had these shares already.
    assert (resctrl / "there/schemata").read_text().startswith("    L3:")


def test_the_group_at_the_top(resctrl: Path) -> None:
    made = group(resctrl, closID="/")
    assert made.record() == {"join": [str(resctrl)], "remove": []}
    made.create()


@pytest.mark.parametrize(
    "wanted",
    [
        {"l3CacheSchema": "L3:0=7f"},
        {"l3CacheSchema": "L3:2=ff"},
        {"memBwSchema": "MB:0=50"},
        {"l3CacheSchema": "L3:0=ff", "memBwSchema": "MB:0=50"},
    ],
)
def test_a_group_by_name_with_other_shares(resctrl: Path, wanted: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="other shares"):
        group(resctrl, closID="there", **wanted).create()


def test_a_group_by_name_that_is_not_there(resctrl: Path) -> None:
    with pytest.raises(ConfigError, match="there is no group"):
        group(resctrl, closID="nosuch").create()


def test_monitoring(resctrl: Path) -> None:
    made = group(resctrl, closID="there", enableMonitoring=True)
    monitor = f"{resctrl}/there/mon_groups/box"
    assert made.record() == {"join": [f"{resctrl}/there", monitor], "remove": [monitor]}
    made.create()
    (Path(monitor) / "tasks").write_text("")
    rdt.join(made.record(), 42)
    assert (resctrl / "there/tasks").read_text() == "42\n"
    assert (Path(monitor) / "tasks").read_text() == "42\n"
    # The name is taken.
    with pytest.raises(SetupError, match="mon_groups/box"):
        group(resctrl, closID="there", enableMonitoring=True).create()


def test_shares_are_written_one_line_a_call(resctrl: Path) -> None:
    path = resctrl / "there/schemata"
    path.unlink()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        group(resctrl, closID="there", schemata=["L2:0=1", "L3:1=1"]).create()
        assert os.read(reader, 100) == b"L2:0=1\nL3:1=1\n"
    finally:
        os.close(reader)


def test_shares_that_mean_the_same_are_the_same() -> None:
    assert rdt.shares("  L3:0=00FF;1=0\nMB:01= 100\n") == {
        ("L3", "0"): "ff",
        ("L3", "1"): "0",
        ("MB", "1"): "100",
    }


def test_the_kernel_s_refusal_is_told(resctrl: Path) -> None:
    (resctrl / "info").mkdir()
    (resctrl / "info/last_cmd_status").write_text("mask is not contiguous\n")
    with pytest.raises(FirkinError, match="mask is not contiguous"):
        rdt.join({"join": [f"{resctrl}/nosuch"], "remove": []}, 1)
