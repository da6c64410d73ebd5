"""How long firkin takes to start a container, next to others, in one run; see README.md.

All that is compared runs ``/bin/true`` on the same root file system of BusyBox, in
turns (A B C, A B C, …), after a warm-up, and is shown as median and quartiles.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import firkin  # noqa: E402
from firkin.engine.request import Request  # noqa: E402
from firkin.engine.run import Run  # noqa: E402
from support.roots import make_busybox_root  # noqa: E402

MIB = 1 << 20
MEMORY, PIDS = 64 * MIB, 64
FIRKIN = str(Path(sys.executable).with_name("firkin"))
KINDS = ("process", "command", "memory", "calls")
# Debian's containers.conf asks for more than an unprivileged outer container may have.
ULIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096")

Action = Callable[[], None]

# The command, in an interpreter of its own, but for a look at its child before GO.
LOOK_AT_CHILD = """
from firkin.cli import main
from firkin.init import channel
from firkin.runtime import launch

send = launch._Start._send

def look(start, kind):
    if kind == channel.GO:
        with open(f"/proc/{start.pid}/smaps_rollup") as file:
            print(*[line.split()[1] for line in file if line.startswith("Private_Dirty:")])
    send(start, kind)

launch._Start._send = look
main.main()
"""


def environment() -> dict[str, str]:
    """Return an environment in which Python may use and keep byte code."""
    wanted = ("PATH", "HOME", "TERM", "LANG")
    return {name: os.environ[name] for name in wanted if name in os.environ}


class Bench:
    """What is measured, and the folder where it is.

    Args:
        folder: for roots, stores and sockets.
        only: names to measure beside firkin; all without.
    """

    def __init__(self, folder: Path, only: set[str]) -> None:
        self.folder = folder
        self.only = only
        self.root = make_busybox_root(folder / "root")
        self.env = environment() | {
            "FIRKIN_STORE": str(folder / "store"),
            "FIRKIN_STATE": str(folder / "state"),
        }
        self.missing: list[str] = []
        self.cleanup = contextlib.ExitStack()
        # The last to be undone: what Docker and podman leave when they have ended.
        self.cleanup.callback(remove_cgroups, before=engine_cgroups())

    def wants(self, name: str, program: str = "") -> bool:
        if self.only and name not in self.only:
            return False
        if program and not shutil.which(program):
            self.missing.append(f"{name}: {program} is not installed")
            return False
        return True

    def call(self, *command: str) -> Action:
        """Return what runs *command* to its end, and fails where it does."""

        def run() -> None:
            subprocess.run(
                command,
                env=self.env,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

        return run

    # ------------------------------------------------------------ from a living process

    def processes(self) -> dict[str, Action]:
        actions: dict[str, Action] = {"firkin, in process": self.in_process}
        if self.wants("bwrap", "bwrap"):
            actions["bwrap"] = self.call(
                *("bwrap", "--unshare-all", "--bind", str(self.root), "/"),
                *("--proc", "/proc", "--dev", "/dev", "/bin/true"),
            )
        return actions

    def request(self) -> Request:
        return Request(image=str(self.root), command=["/bin/true"], memory=MEMORY, pids_limit=PIDS)

    def in_process(self) -> None:
        status = Run(self.request()).run()
        if status:
            raise RuntimeError(f"status {status}")

    # ------------------------------------------------------------ as a command

    def commands(self) -> dict[str, Action]:
        limits = ("--memory", f"{MEMORY}b", "--pids-limit", str(PIDS))
        actions = {"firkin run": self.call(FIRKIN, "run", *limits, str(self.root), "/bin/true")}
        if self.wants("runc", "runc"):
            actions["runc run"] = self.bundle("runc")
        if self.wants("crun", "crun"):
            # crun 1.8 refuses machines with cgroup v1 and v2, even when it is to use neither:
            # it runs where v2 alone is mounted. Without cgroups it has less to do.
            inside = ("nsenter", "--mount", f"--target={self.v2_alone()}")
            actions["crun run, no cgroup, by nsenter"] = self.bundle(
                "crun", "--cgroup-manager=disabled", through=inside
            )
        if self.wants("podman", "podman"):
            # All of it our own, so that it goes with the folder.
            names = {"root": "podman", "runroot": "podman-run", "tmpdir": "podman-tmp"}
            root = [f"--{option}={self.folder / name}" for option, name in names.items()]
            actions["podman run"] = self.call(
                # With runc, for the same reason.
                *(
                    "podman",
                    *root,
                    "--runtime=runc",
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    *limits,
                    *ULIMITS,
                ),
                *("--rootfs", str(self.root), "/bin/true"),
            )
        if self.wants("docker", "dockerd"):
            docker = self.docker()
            actions["docker run"] = self.call(
                *(*docker, "run", "--rm", "--network", "none", *limits, "busybox", "/bin/true")
            )
        return actions

    def v2_alone(self) -> int:
        """Return a process in a mount namespace that shows cgroup v2 and no v1."""
        script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && echo up && exec sleep infinity"
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
        )
        self.cleanup.callback(stop, process)
        assert process.stdout
        self.cleanup.enter_context(process.stdout)
        if not process.stdout.readline():
            raise RuntimeError("cannot mount cgroup2")
        return process.pid

    def bundle(self, runtime: str, *options: str, through: tuple[str, ...] = ()) -> Action:
        """Make a bundle with the limits and the isolation of firkin's."""
        bundle = self.folder / runtime
        bundle.mkdir()
        subprocess.run(
            ["runc" if shutil.which("runc") else runtime, "spec"], cwd=bundle, check=True
        )
        spec = [FIRKIN, "spec", "--memory", f"{MEMORY}b", "--pids-limit", str(PIDS)]
        made = subprocess.run(
            [*spec, str(self.root), "/bin/true"], env=self.env, check=True, capture_output=True
        )
        ours, config = json.loads(made.stdout), json.loads((bundle / "config.json").read_text())
        process = ours["process"]
        process["terminal"] = False
        config["process"] = process
        config["root"] = {"path": str(self.root), "readonly": False}
        for name in ("seccomp", "resources", "maskedPaths", "readonlyPaths"):
            if name in ours["linux"]:
                config["linux"][name] = ours["linux"][name]
        config["linux"]["namespaces"] = ours["linux"]["namespaces"]
        if "--cgroup-manager=disabled" in options:
            config["linux"].pop("resources")
            config["mounts"] = [one for one in config["mounts"] if one["type"] != "cgroup"]
        (bundle / "config.json").write_text(json.dumps(config))
        state = ("--root", str(self.folder / f"{runtime}-state"))
        number = iter(range(1 << 30))

        def run() -> None:
            self.call(
                *(*through, runtime, *state, *options, "run", "--bundle", str(bundle)),
                f"firkin-bench-{os.getpid()}-{next(number)}",
            )()

        return run

    def docker(self) -> list[str]:
        """Start a Docker of our own; return the beginning of its commands."""
        folder = self.folder / "docker"
        folder.mkdir()
        socket = f"unix://{folder}/socket"
        log = self.cleanup.enter_context((folder / "log").open("wb"))
        daemon = subprocess.Popen(
            [
                *("dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
                *("--pidfile", f"{folder}/pid", "--host", socket),
                *("--bridge=none", "--iptables=false", "--ip6tables=false"),
            ],
            stdout=log,
            stderr=log,
            env=self.env,
        )
        self.cleanup.callback(stop, daemon)
        docker = ["docker", "--host", socket]
        deadline = time.monotonic() + 60
        while subprocess.run([*docker, "info"], capture_output=True).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"dockerd did not start:\n{(folder / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.1)
        with subprocess.Popen(["tar", "-C", self.root, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                [*docker, "import", "-", "busybox"],
                stdin=tar.stdout,
                check=True,
                capture_output=True,
            )
        return docker

    # ------------------------------------------------------------ memory before execve

    def private_dirty(self) -> int:
        """Return the bytes that the child of ``firkin run`` has for itself, before its execve."""
        words = ["run", "--memory", f"{MEMORY}b", "--pids-limit", str(PIDS), str(self.root)]
        done = subprocess.run(
            [sys.executable, "-c", LOOK_AT_CHILD, *words, "/bin/true"],
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        )
        return int(done.stdout) * 1024

    # ------------------------------------------------------------ call by call

    def calls(self, runs: int) -> dict[tuple[str, str], list[float]]:
        """Return the milliseconds of one start by process and call, a number a run."""
        totals: dict[tuple[str, str], list[float]] = {}
        command = [FIRKIN, "run", "--explain=json", "--memory", f"{MEMORY}b"]
        command += ["--pids-limit", str(PIDS), str(self.root), "/bin/true"]
        for number in range(runs):
            done = subprocess.run(command, env=self.env, check=True, capture_output=True)
            for line in done.stderr.splitlines():
                call = json.loads(line)
                if "call" not in call:
                    continue
                times = totals.setdefault((call["process"], call["call"]), [])
                times += [0.0] * (number + 1 - len(times))
                times[number] += call["milliseconds"]
        return totals


def engine_cgroups() -> set[Path]:
    """Return the cgroups in which Docker and podman make theirs."""
    names = ("docker", "libpod_parent")
    return {one for name in names for one in Path("/sys/fs/cgroup").glob(f"*/{name}")}


def remove_cgroups(before: set[Path]) -> None:
    """Remove those that are new and empty."""
    for top in engine_cgroups() - before:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


@contextlib.contextmanager
def workspace(where: str) -> Iterator[Path]:
    """Yield a folder in a mount namespace of our own, which takes what is mounted there along."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) or libc.mount(b"", b"/", b"", 1 << 18 | 1 << 14, b""):
        raise OSError(ctypes.get_errno(), "cannot unshare the mount namespace: root is needed")
    folder = Path(tempfile.mkdtemp(prefix="firkin-bench.", dir=where))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for line in reversed(lines):
            point = line.split()[4]
            if point.startswith(f"{folder}/"):
                subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def measure(actions: dict[str, Action], runs: int, warm: int) -> dict[str, list[float]]:
    """Return the milliseconds of each action, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(-warm, runs):
        for name, action in actions.items():
            started = time.perf_counter()
            try:
                action()
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{name}: {error}\n{error.stderr.decode()}") from None
            if number >= 0:
                times[name].append((time.perf_counter() - started) * 1000)
    return times


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(times: dict[str, list[float]], goals: dict[str, float]) -> list[str]:
    """Return a Markdown table; the first entry is ours, *goals* are ratios to the others."""
    lines = [
        "| | median ms | quartiles | firkin / it | goal |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    ours = quartiles(next(iter(times.values())))[1]
    for name, values in times.items():
        low, middle, high = quartiles(values)
        goal = next((goal for key, goal in goals.items() if name.startswith(key)), None)
        ratio = ours / middle
        verdict = "" if goal is None else f"≤ {goal:.2f}, {'met' if ratio <= goal else 'missed'}"
        shown = "" if middle == ours else f"{ratio:.2f}"
        lines.append(f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} | {shown} | {verdict} |")
    return lines


def machine() -> list[str]:
    """Return what the numbers depend on, as a Markdown list."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU implementer")):
            model = line.partition(":")[2].strip()
            break
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    lines = [
        f"- {model}, {os.cpu_count()} processors, {memory:.0f} GiB; load before: {load}",
        f"- Linux {platform.release()}, Python {platform.python_version()}, "
        f"firkin {firkin.__version__}",
    ]
    versions = []
    for command in ("bwrap", "runc", "crun", "podman", "dockerd"):
        if shutil.which(command):
            done = subprocess.run([command, "--version"], capture_output=True, text=True)
            versions.append(done.stdout.splitlines()[0])
    return [*lines, "- " + "; ".join(versions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="how often each is measured")
    parser.add_argument("--quick", action="store_true", help="five runs: no numbers to publish")
    parser.add_argument("--only", default="", help="which to compare with: runc,podman,…")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"out of {','.join(KINDS)}")
    # Not /tmp: overlayfs takes no upper folder on some file systems of that.
    parser.add_argument("--folder", default="/var/tmp", help="where store, roots and state lie")
    options = parser.parse_args()
    runs, warm = (5, 1) if options.quick else (options.runs, 5)
    kinds = set(options.kinds.split(","))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(str(Path(firkin.__file__).parent), quiet=2)
    print(*machine(), sep="\n")
    with workspace(options.folder) as folder:
        bench = Bench(folder, set(filter(None, options.only.split(","))))
        os.environ.clear()
        os.environ.update(bench.env)
        with bench.cleanup:
            report(bench, kinds, runs, warm)


def report(bench: Bench, kinds: set[str], runs: int, warm: int) -> None:
    if "process" in kinds:
        times = measure(bench.processes(), runs, warm)
        print("\n### From a living Python process to the end of `/bin/true`\n")
        print(*table(times, {"bwrap": 1.0}), sep="\n")
    if "memory" in kinds:
        values = [bench.private_dirty() for _ in range(min(runs, 10))]
        size = statistics.median(values) / MIB
        print(f"\nPrivate dirty memory of the child just before `execve`: {size:.2f} MiB", end="")
        print(f" (goal: ≤ 2 MiB, {'met' if size <= 2 else 'missed'})")
    if "command" in kinds:
        times = measure(bench.commands(), runs, warm)
        print("\n### As a command\n")
        print(*table(times, {"runc": 1.0, "podman": 1 / 6, "docker": 1 / 6}), sep="\n")
    if "calls" in kinds:
        totals = bench.calls(runs)
        print("\n### Call by call\n\n| process | call | median ms a start |\n| --- | --- | ---: |")
        medians = {key: statistics.median(times) for key, times in totals.items()}
        for (process, name), value in sorted(medians.items(), key=lambda one: -one[1]):
            if value >= 0.01:
                print(f"| {process} | `{name}` | {value:.2f} |")
    if bench.missing:
        print("\nNot measured: " + "; ".join(bench.missing))


if __name__ == "__main__":
    main()
