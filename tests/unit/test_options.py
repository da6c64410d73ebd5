"""The grammar of command lines, and what ``firkin run`` makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.cli import options, run_options
from firkin.cli.options import FLAG, LIST, OPTIONAL, VALUE, HelpRequested, Option
from firkin.engine.request import Mount, Request
from firkin.errors import FirkinError, Unsupported, UsageError
from firkin.spec.defaults import SHM_SIZE


def keep(target: Any, value: Any, name: str) -> None:
    target.append((name, value))


TABLE = (
    (
        "Group",
        (
            Option("-i --interactive", "", "Flag i", keep, FLAG),
            Option("-t --tty", "", "Flag t", keep, FLAG),
            Option("-v --volume", "SRC:DST", "List v", keep, LIST),
            Option("--name", "NAME", "Value", keep, VALUE),
            Option("--explain", "text|json", "Optional", keep, OPTIONAL),
        ),
    ),
)


def split(line: str) -> tuple[list[tuple[str, Any]], list[str]]:
    found, rest = options.parse(TABLE, line.split(), "firkin try")
    target: list[tuple[str, Any]] = []
    options.apply(found, target)
    return target, rest


@pytest.mark.parametrize(
    ("line", "found", "rest"),
    [
        ("", [], []),
        ("image -i", [], ["image", "-i"]),
        ("- -i", [], ["-", "-i"]),
        ("-- -i", [], ["-i"]),
        ("--name a image", [("--name", "a")], ["image"]),
        ("--name=a=b image", [("--name", "a=b")], ["image"]),
        ("--name= image", [("--name", "")], ["image"]),
        ("--name --tty image", [("--name", "--tty")], ["image"]),
        ("--name -- image", [("--name", "--")], ["image"]),
        ("--tty image", [("--tty", True)], ["image"]),
        ("--tty=false --tty=1", [("--tty", False), ("--tty", True)], []),
        ("-v x", [("-v", "x")], []),
        ("-vx", [("-v", "x")], []),
        ("-v=x", [("-v", "x")], []),
        ("-v= y", [("-v", "")], ["y"]),
        ("-it", [("-i", True), ("-t", True)], []),
        ("-itv x y", [("-i", True), ("-t", True), ("-v", "x")], ["y"]),
        ("-itvx=y", [("-i", True), ("-t", True), ("-v", "x=y")], []),
        ("-it=false", [("-i", True), ("-t", False)], []),
        ("--explain json", [("--explain", "")], ["json"]),
        ("--explain=json", [("--explain", "json")], []),
        ("-v a -v b", [("-v", "a"), ("-v", "b")], []),
    ],
)
def test_the_grammar(line: str, found: list[tuple[str, Any]], rest: list[str]) -> None:
    assert split(line) == (found, rest)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--nam a", "cannot use option '--nam'.*did you mean --name.*see 'firkin try --help'"),
        ("--qqqqqq", "there is no such option; see 'firkin try --help'"),
        ("-x", "cannot use option '-x'"),
        ("-ix", "cannot use option '-x'"),
        ("--=a", "cannot use option '--'"),
        ("---tty", "cannot use option '---tty'"),
        ("--name", "cannot use option --name: its value is missing"),
        ("-itv", "cannot use option -v: its value is missing"),
        ("--tty=maybe", "cannot set --tty to 'maybe': expected true or false"),
        ("--tty=", "cannot set --tty to '': expected true or false"),
    ],
)
def test_what_the_grammar_refuses(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split(line)


def test_help_is_asked_for_before_the_image_only() -> None:
    with pytest.raises(HelpRequested):
        split("-i --help image")
    assert split("image --help")[1] == ["image", "--help"]


WORDS = ["-", "--", "-i", "-it=", "-v", "--name", "--name=", "--explain", "--tty=0", "a", "-tiv"]


@given(st.lists(st.sampled_from(WORDS) | st.text("-=itvx", max_size=6)))
def test_no_word_is_lost_or_made_up(words: list[str]) -> None:
    try:
        _, rest = options.parse(TABLE, words, "firkin try")
    except UsageError:
        return
    assert rest == words[len(words) - len(rest) :]


@pytest.mark.parametrize("width", [50, 80, 120])
def test_help_is_aligned_and_fits(width: int) -> None:
    text = options.help_text("firkin try", "Tries.", run_options.GROUPS, width=width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines[3:])
    for title, group in run_options.GROUPS:
        assert f"{title}:" in lines
        for option in group:
            assert any(", ".join(option.names) in line for line in lines), option.names
    start = lines.index("Terminal:")
    assert lines[start + 1].index("Keep") == lines[start + 2].index("Give")


def test_the_table_is_sound() -> None:
    rows = [option for _, group in run_options.GROUPS for option in group]
    names = [name for option in rows for name in option.names]
    assert len(names) == len(set(names))
    for option in rows:
        assert option.names[-1].startswith("--")
        assert bool(option.metavar) == (option.kind != FLAG), option.names
        assert option.text[0].isupper() or option.kind in (VALUE, LIST)
        assert not option.text.endswith(".")


# ---------------------------------------------------------------- firkin run


def run(*words: str) -> Request:
    return run_options.parse([*words, "host", "true"])


def test_image_and_command() -> None:
    request = run_options.parse(["-i", "./root", "ls", "-l", "--help"])
    assert (request.image, request.command) == ("./root", ["ls", "-l", "--help"])
    assert request.interactive


@pytest.mark.parametrize(
    "words",
    [
        ["--", "host", "ls", "--", "-i"],
        ["host", "--", "ls", "--", "-i"],
        ["host", "ls", "--", "-i"],
    ],
)
def test_a_double_dash_around_the_image_is_dropped(words: list[str]) -> None:
    request = run_options.parse(words)
    assert (request.image, request.command) == ("host", ["ls", "--", "-i"])
    assert not request.interactive


@pytest.mark.parametrize("words", [["ls", "-l"], ["--", "ls", "-l"]])
def test_rootfs_takes_the_place_of_the_image(words: list[str]) -> None:
    request = run_options.parse(["--rootfs", "some/root", *words])
    assert request.image == os.path.abspath("some/root")
    assert request.command == ["ls", "-l"]


def test_the_image_may_not_be_missing() -> None:
    with pytest.raises(UsageError, match=r"IMAGE is missing.*firkin run --help"):
        run_options.parse(["-i"])
    with pytest.raises(UsageError, match="cannot use image ''"):
        run_options.parse([""])
    assert run_options.parse(["-i"], "spec").image is None


def test_nothing_is_shared_between_requests() -> None:
    run("-e", "A=1", "--cap-add", "kill", "--ulimit", "core=0")
    fresh = run()
    assert (fresh.environment, fresh.cap_add, fresh.rlimits) == ({}, [], {})


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("-w /a/../b", "workdir", "/b"),
        ("-u alice:staff", "user", "alice:staff"),
        ("-u 1000", "user", "1000"),
        ("--group-add 5 --group-add audio", "group_add", ["5", "audio"]),
        ("--entrypoint /bin/sh", "entrypoint", ["/bin/sh"]),
        ("--entrypoint=", "entrypoint", []),
        ("", "entrypoint", None),
        ("--init", "init", True),
        ("--timeout 0.5", "timeout", 0.5),
        ("--preserve-fds 2", "preserve_fds", 2),
        ("--name a --name b", "name", "b"),
        ("-l a=b=c -l d", "labels", {"a": "b=c", "d": ""}),
        ("--annotation a=b", "annotations", {"a": "b"}),
        ("", "userns", None),
        ("--userns keep-id", "userns", ("keep-id", "")),
        ("--userns /proc/1/ns/user", "userns", ("path", "/proc/1/ns/user")),
        ("--pid host", "pid", ("host", "")),
        ("--pid container:web", "pid", ("container", "web")),
        ("", "network", ("none", "")),
        ("--net private", "network", ("none", "")),
        ("--network ns:/run/netns/a", "network", ("path", "/run/netns/a")),
        ("--time-offset boottime=9", "time_offsets", {"boottime": (9, 0)}),
        ("-h web.example", "hostname", "web.example"),
        ("--dns 1.1.1.1 --dns [::1]", "dns", ["1.1.1.1", "::1"]),
        ("--add-host a:1.2.3.4 --add-host b:::1", "add_hosts", [("a", "1.2.3.4"), ("b", "::1")]),
        ("--add-host c=[fe80::1]", "add_hosts", [("c", "fe80::1")]),
        ("--read-only", "read_only", True),
        ("--read-only=false", "read_only", False),
        ("", "shm_size", SHM_SIZE),
        ("--shm-size 1g", "shm_size", 1 << 30),
        ("--device /dev/fuse", "devices", [("/dev/fuse", "/dev/fuse", "rwm")]),
        ("--device /dev/fuse:r", "devices", [("/dev/fuse", "/dev/fuse", "r")]),
        ("--device /dev/fuse:/dev/f", "devices", [("/dev/fuse", "/dev/f", "rwm")]),
        ("--device /dev/fuse:/dev/f:rw", "devices", [("/dev/fuse", "/dev/f", "rw")]),
        ("-m 64m", "memory", 64 << 20),
        ("-m 0", "memory", None),
        ("-m 1m --memory-swap -1", "memory_swap", -1),
        ("--pids-limit 20", "pids_limit", 20),
        ("--pids-limit -1", "pids_limit", None),
        ("--cpus 1.5", "nano_cpus", 1_500_000_000),
        ("-c 512", "cpu_shares", 512),
        ("--cpu-quota 5000", "cpu_quota", 5000),
        ("--cpuset-cpus 0-1", "cpuset_cpus", "0-1"),
        ("--oom-score-adj -500", "oom_score_adj", -500),
        ("--ulimit nofile=1:2 --ulimit nofile=3", "rlimits", {"RLIMIT_NOFILE": (3, 3)}),
        (
            "--device-read-bps /dev/sda:1m",
            "device_rates",
            [("throttleReadBpsDevice", "/dev/sda", 1 << 20)],
        ),
        (
            "--device-write-iops /dev/sda:10",
            "device_rates",
            [("throttleWriteIOPSDevice", "/dev/sda", 10)],
        ),
        ("--cgroup-parent /a", "cgroup_parent", "/a"),
        ("--sysctl net/core/somaxconn=5", "sysctl", {"net.core.somaxconn": "5"}),
        ("--cap-add net_admin --cap-add CAP_KILL", "cap_add", ["CAP_NET_ADMIN", "CAP_KILL"]),
        ("--cap-drop All", "cap_drop", ["ALL"]),
        ("--privileged", "privileged", True),
        ("", "seccomp", None),
        ("--security-opt seccomp=unconfined", "seccomp", "unconfined"),
        ("--security-opt seccomp=/p.json", "seccomp", "/p.json"),
        ("--security-opt seccomp:/p.json", "seccomp", "/p.json"),
        ("--security-opt no-new-privileges", "no_new_privileges", True),
        ("--security-opt no-new-privileges=false", "no_new_privileges", False),
        ("--security-opt no-new-privileges:true", "no_new_privileges", True),
        ("--security-opt systempaths=unconfined", "system_paths", False),
        ("--security-opt apparmor=unconfined", "system_paths", True),
        ("--security-opt label=disable", "system_paths", True),
        ("-t", "tty", True),
        ("", "explain", None),
        ("--explain", "explain", "text"),
        ("--explain=json", "explain", "json"),
    ],
)
def test_options_become_plain_values(words: str, field: str, value: object) -> None:
    assert getattr(run(*words.split()), field) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-m 12q", "cannot set -m to '12q': expected a number of bytes"),
        ("--memory=lots", "cannot set --memory to 'lots': expected a number of bytes"),
        ("--memroy 1", "did you mean --memory"),
        ("--pids-limit many", "cannot set --pids-limit to 'many': expected a whole number"),
        ("--publish 80", "no such option"),
        ("-w relative", "an absolute path in the container"),
        ("-u a:b:c", "cannot set -u to 'a:b:c'"),
        ("-u alice:", "cannot set -u to 'alice:'"),
        ("-h a_b/c", "cannot set -h"),
        ("-h -web", "cannot set -h"),
        (f"-h {'a' * 65}", "at most 64"),
        ("--name a/b", "cannot set --name to 'a/b'"),
        ("--name ..", "cannot set --name to '..'"),
        ("--name _a", "cannot set --name"),
        ("--net bridge", "expected none, host, private, container:ID or the absolute path"),
        ("--pid none", "cannot set --pid to 'none'"),
        ("--pid container:", "cannot set --pid"),
        ("--pid container:../x", "cannot set --pid"),
        ("--userns private", "expected auto, host, keep-id"),
        ("--dns example.org", "an IPv4 or IPv6 address"),
        ("--dns 1.2.3.256", "an IPv4 or IPv6 address"),
        ("--add-host a", "HOST:ADDRESS"),
        ("--device fuse", "with absolute paths"),
        ("--device /dev/fuse:x", "with absolute paths"),
        ("--device /a:/b:r:w", "with absolute paths"),
        ("--device-read-bps sda:1m", "with a path for DEVICE"),
        ("--device-read-bps /dev/sda", "with a path for DEVICE"),
        ("--device-read-bps /dev/sda:x", "a number of bytes"),
        ("--cap-add net_admn", "did you mean CAP_NET_ADMIN"),
        ("--cap-add xyzzy", "see capabilities"),
        ("--security-opt what", "cannot set --security-opt to 'what'"),
        ("--security-opt seccomp=", "cannot set --security-opt"),
        ("--security-opt no-new-privileges=maybe", "expected true or false"),
        ("--sysctl a", "NAME=VALUE"),
        ("--sysctl ../../etc/x=1", "NAME=VALUE"),
        ("--cgroup-parent ../a", "the path of a cgroup"),
        ("--blkio-weight 5", "from 10 to 1000"),
        ("--memory-swappiness 101", "from 0 to 100"),
        ("--cpu-period 5", "from 1000 to 1000000"),
        ("--oom-score-adj 1001", "from -1000 to 1000"),
        ("--explain=yaml", "expected text or json"),
        ("-e =a", "KEY=VALUE or KEY"),
        ("-l =a", "KEY=VALUE"),
        ("--rootfs -it", "cannot set --rootfs to '-it': expected a path"),
        ("--cpus 1 --cpu-quota 1000", "--cpus"),
        ("--env-file /no/such/file", "cannot read --env-file '/no/such/file': No such file"),
    ],
)
def test_bad_values_have_one_clear_line(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(*words.split())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "words", ["--rm=false", "--security-opt apparmor=mine", "--security-opt label=type:x"]
)
def test_what_is_not_supported_says_so(words: str) -> None:
    with pytest.raises(Unsupported):
        run(*words.split())
    assert run("--rm")


def test_a_message_cannot_repaint_the_terminal() -> None:
    with pytest.raises(FirkinError) as caught:
        run("--memory", "1\x1b[2J\n2")
    assert str(caught.value).isprintable()


# ---------------------------------------------------------------- environment


def test_env_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRKIN_A", "of the caller")
    monkeypatch.delenv("FIRKIN_B", raising=False)
    request = run("-e", "FIRKIN_A", "-e", "FIRKIN_B", "-e", "C=", "-e", "D=x=y", "-e", "D=z")
    assert request.environment == {
        "FIRKIN_A": "of the caller",
        "FIRKIN_B": None,
        "C": "",
        "D": "z",
    }


def test_env_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRKIN_A", "of the caller")
    monkeypatch.delenv("FIRKIN_B", raising=False)
    file = tmp_path / "env"
    file.write_bytes(
        b"\xef\xbb\xbfA=1\r\n# comment\n\n  B = two \nFIRKIN_A\nFIRKIN_B\nC=#no=comment\n".replace(
            b"B = two ", b"B=  two "
        )
    )
    other = tmp_path / "other"
    other.write_text("A=2\nZ=3")
    request = run("-e", "Z=mine", "--env-file", str(file), "--env-file", str(other))
    assert request.environment == {
        "A": "2",
        "B": "  two ",
        "FIRKIN_A": "of the caller",
        "C": "#no=comment",
        "Z": "mine",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\nB C=2\n", "line 2"),
        (b"=1\n", "line 1"),
        (b"A=a\0b\n", "line 1"),
        (b"\xff\xfe", "not text in UTF-8"),
    ],
)
def test_bad_env_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "env"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        run("--env-file", str(file))


# ---------------------------------------------------------------- mounts


def mount(*words: str) -> Mount:
    (found,) = run(*words).mounts
    return found


def test_volumes() -> None:
    plain = mount("-v", "/a//b/:/c/../d/")
    assert (plain.kind, plain.source, plain.target) == ("bind", "/a/b", "/d")
    assert plain.options == ("rbind", "rprivate")
    assert (plain.read_only, plain.must_exist) == ("", False)
    assert mount("-v", "./x:/d").source == os.path.abspath("x")
    assert mount("-v", "..:/d").source == os.path.dirname(os.getcwd())
    several = mount("-v", "/a:/b:ro,z,rshared,noexec,nocopy")
    assert (several.options, several.read_only) == (("rbind", "rshared", "noexec"), "auto")
    assert mount("-v", "/a:/b:rro").read_only == "recursive"
    assert mount("-v", "/a:/b:ro,bind").read_only == "top"
    assert mount("-v", "/a:/b:ro,rw").read_only == ""


def test_mounts() -> None:
    quoted = mount("--mount", 'type=bind,"src=/a,""b",target=/t,readonly')
    assert (quoted.source, quoted.read_only, quoted.must_exist) == ('/a,"b', "auto", True)
    assert mount("--mount", "type=bind,src=/a,dst=/t,ro=false").read_only == ""
    never = mount("--mount", "type=bind,src=/a,dst=/t,bind-recursive=disabled")
    assert never.options == ("bind", "rprivate")
    always = mount("--mount", "type=bind,src=/a,dst=/t,ro,bind-recursive=readonly")
    assert (always.options, always.read_only) == (("rbind", "rprivate"), "recursive")
    overlay = mount("--mount", "type=overlay,lowerdir=/a:/b,dst=/t,upperdir=/u,workdir=/w")
    assert (overlay.source, overlay.upper, overlay.work) == ("/a:/b", "/u", "/w")
    private = mount("--mount", "type=overlay,src=./a,dst=/t")
    assert (private.source, private.upper) == (os.path.abspath("a"), "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-v", "data:/x"], "there are no named volumes yet"),
        (["-v", "/x"], "there are no named volumes yet"),
        (["-v", ":/x"], "a path on the host"),
        (["-v", "/a:b"], "an absolute path in the container"),
        (["-v", "/a:/"], "the root itself"),
        (["-v", "/a:/b/.."], "the root itself"),
        (["-v", "/a:/b:ro:rw"], "HOST:CONTAINER"),
        (["-v", "/a:/b:fast"], "instead of 'fast'"),
        (["-v", "/a:/b:"], "instead of ''"),
        (["--tmpfs", "x"], "an absolute path in the container"),
        (["--tmpfs", "/x:size=big"], "cannot set --tmpfs size to 'big'"),
        (["--tmpfs", "/x:size=200%"], "from 1 to 100"),
        (["--tmpfs", "/x:mode=999"], "a mode in octal"),
        (["--tmpfs", "/x:fast"], "instead of 'fast'"),
        (["--tmpfs", "/x:a=b"], "instead of 'a'"),
        (["--mount", "src=/a,dst=/b"], "type=bind, type=tmpfs or type=overlay"),
        (["--mount", "type=volume,dst=/b"], "type=bind, type=tmpfs or type=overlay"),
        (["--mount", "type=bind,dst=/b"], "a path on the host"),
        (["--mount", "type=bind,src=/a"], "an absolute path in the container"),
        (["--mount", "type=bind,src=/a,dst=/b,what=1"], "instead of 'what'"),
        (["--mount", "type=bind,src=/a,dst=/b,tmpfs-size=1"], "instead of 'tmpfs-size'"),
        (["--mount", "type=bind,src=/a,dst=/b,ro=maybe"], "expected true or false"),
        (["--mount", "type=bind,src=/a,dst=/b,bind-propagation=x"], "a bind-propagation out of"),
        (["--mount", "type=bind,src=/a,dst=/b,bind-recursive=x"], "bind-recursive=enabled"),
        (["--mount", "type=bind,src=/a,dst=/b,bind-recursive=readonly"], "readonly together"),
        (["--mount", 'type=bind,"src=/a,dst=/b'], "a closing quote"),
        (["--mount", 'type=bind,"src=/a"x,dst=/b'], "a comma after a closing quote"),
        (["--mount", "type=tmpfs,dst=/b,src=/a"], "instead of 'source'"),
        (["--mount", "type=overlay,src=/a,dst=/b,upperdir=/u"], "upperdir and workdir together"),
        (["--mount", 'type=overlay,"src=/a,upperdir=/etc",dst=/b'], "without ','"),
        (["-v", "/a:/x", "-v", "/b:/x/"], "the target of two mounts"),
    ],
)
def test_mounts_that_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(*words)


# ---------------------------------------------------------------- bundles and start-up


def test_a_bundle_says_everything_itself() -> None:
    request = run_options.parse(["--bundle", "b", "--name", "x", "--explain", "-i"])
    assert request.bundle == os.path.abspath("b")
    assert request.image is None
    with pytest.raises(UsageError, match="cannot combine --bundle with -m"):
        run_options.parse(["--bundle", "b", "-m", "1m"])
    with pytest.raises(UsageError, match="cannot combine --bundle with 'host'"):
        run_options.parse(["--bundle", "b", "host"])


def test_parsing_imports_nothing_costly() -> None:
    source = str(Path(run_options.__file__).parents[2])
    script = (
        f"import sys; sys.path.insert(0, {source!r});"
        "from firkin.cli import run_options; from firkin.engine import compose;"
        "run_options.parse(['-itv', '/a:/b:ro', '-m', '1g', '-e', 'A', 'host', 'ls']);"
        "print(*sys.modules)"
    )
    # Without site: what an environment loads at start-up is not ours.
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    costly = {"json", "re", "typing", "dataclasses", "enum", "argparse", "subprocess", "pathlib"}
    costly |= {"signal", "socket", "contextlib", "functools", "collections", "hashlib", "difflib"}
    assert not costly & set(done.stdout.split())
