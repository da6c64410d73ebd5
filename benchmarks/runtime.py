"""How long firkin-runtime takes next to runc: verb by verb, and under podman; see README.md.

Both get the same bundle and configuration, in turns, after a warm-up.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import start  # noqa: E402

import firkin  # noqa: E402

RUNTIME = str(Path(sys.executable).with_name("firkin-runtime"))
RUNTIMES = {"firkin-runtime": RUNTIME, "runc": "runc"}
VERBS = ("create", "start", "state", "exec", "kill", "delete")
PODMAN_GOAL = 1.15


def make_bundle(folder: Path, root: Path, env: dict[str, str]) -> Path:
    """Make a bundle whose command sleeps, with what ``firkin run`` isolates and limits."""
    bundle = folder / "bundle"
    bundle.mkdir()
    made = subprocess.run(
        [start.FIRKIN, "spec", "--memory", "64m", "--pids-limit", "64", str(root), "sleep", "100"],
        env=env,
        check=True,
        capture_output=True,
    )
    config = json.loads(made.stdout)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    known = json.loads((bundle / "config.json").read_text())
    # runc 1.1 does not know all of our own; what it knows is enough to compare.
    known["process"] = config["process"] | {"terminal": False}
    known["root"] = {"path": str(root), "readonly": False}
    known["linux"]["resources"] = config["linux"]["resources"]
    known["linux"]["seccomp"] = config["linux"]["seccomp"]
    (bundle / "config.json").write_text(json.dumps(known))
    return bundle


def verbs(folder: Path, bundle: Path, runs: int, warm: int) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by verb and runtime: each takes one container through its life."""
    times: dict[str, dict[str, list[float]]] = {
        verb: {name: [] for name in RUNTIMES} for verb in VERBS
    }
    env = start.environment()
    for number in range(-warm, runs):
        for name, program in RUNTIMES.items():
            container = f"bench-{name}-{number + warm}"
            words = {
                "create": ["--bundle", str(bundle), container],
                "exec": [container, "/bin/true"],
                "kill": [container, "KILL"],
            }
            for verb in VERBS:
                if verb == "delete":
                    wait_until_stopped(folder, program, container)
                command = [program, "--root", str(folder / name), verb]
                began = time.perf_counter()
                done = subprocess.run(
                    [*command, *words.get(verb, [container])],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE if verb != "create" else None,
                    check=False,
                )
                if done.returncode:
                    raise SystemExit(f"{name} {verb}: {done.stderr!r}")
                if number >= 0:
                    times[verb][name].append((time.perf_counter() - began) * 1000)
    return times


def wait_until_stopped(folder: Path, program: str, container: str) -> None:
    """Wait for the end of a process that was killed: `delete` refuses one that runs."""
    root = folder / next(name for name, path in RUNTIMES.items() if path == program)
    for _ in range(1000):
        done = subprocess.run(
            [program, "--root", str(root), "state", container], capture_output=True, check=True
        )
        if json.loads(done.stdout)["status"] == "stopped":
            return
        time.sleep(0.005)
    raise SystemExit(f"{container} does not end")


def podman(folder: Path, root: Path, runs: int, warm: int) -> dict[str, list[float]]:
    """Return milliseconds of `podman run` with each runtime."""
    names = {"root": "podman", "runroot": "podman-run", "tmpdir": "podman-tmp"}
    where = [f"--{option}={folder / name}" for option, name in names.items()]
    # As an image, as people run one.
    archive = folder / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    subprocess.run(
        ["podman", *where, "import", "-q", str(archive), "bench"], check=True, capture_output=True
    )
    archive.unlink()

    def action(program: str) -> start.Action:
        command = ["podman", *where, f"--runtime={program}", "run", "--rm", "--network=none"]

        def run() -> None:
            subprocess.run(
                [*command, *start.ULIMITS, "bench", "/bin/true"],
                env=start.environment(),
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )

        return run

    actions = {name: action(program) for name, program in RUNTIMES.items()}
    return start.measure(actions, runs, warm)


def verb_table(times: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = [
        "| verb | firkin-runtime ms | quartiles | runc ms | quartiles | ratio | goal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for verb, by_runtime in times.items():
        (low, ours, high), (their_low, theirs, their_high) = (
            start.quartiles(by_runtime[name]) for name in RUNTIMES
        )
        ratio = ours / theirs
        goal = "" if verb == "exec" else f"≤ 1.00, {'met' if ratio <= 1 else 'missed'}"
        lines.append(
            f"| `{verb}` | {ours:.1f} | {low:.1f} to {high:.1f} "
            f"| {theirs:.1f} | {their_low:.1f} to {their_high:.1f} | {ratio:.2f} | {goal} |"
        )
    return lines


def bare_interpreter(runs: int) -> list[float]:
    """Return the milliseconds of a Python that does nothing: below that no verb can come."""
    call = [sys.executable, "-I", "-S", "-c", "pass"]
    return start.measure({"": lambda: subprocess.run(call, check=True) and None}, runs, 3)[""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="how often each is measured")
    parser.add_argument("--quick", action="store_true", help="five runs: no numbers to publish")
    parser.add_argument("--folder", default="/var/tmp", help="where roots and state lie")
    options = parser.parse_args()
    runs, warm = (5, 1) if options.quick else (options.runs, 3)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(str(Path(firkin.__file__).parent), quiet=2)
    print(*start.machine(), sep="\n")
    with start.workspace(options.folder) as folder, contextlib.ExitStack() as cleanup:
        cleanup.callback(start.remove_cgroups, before=start.engine_cgroups())
        root = start.make_busybox_root(folder / "root")
        env = start.environment() | {
            "FIRKIN_STORE": str(folder / "store"),
            "FIRKIN_STATE": str(folder / "state"),
        }
        bundle = make_bundle(folder, root, env)
        low, middle, high = start.quartiles(bare_interpreter(runs))
        print(f"- a bare interpreter: {middle:.1f} ms ({low:.1f} to {high:.1f})")
        print("\n### Verb by verb\n")
        print(*verb_table(verbs(folder, bundle, runs, warm)), sep="\n")
        print("\n### `podman run --rm --network none`\n")
        print(*start.table(podman(folder, root, runs, warm), {"runc": PODMAN_GOAL}), sep="\n")


if __name__ == "__main__":
    main()
