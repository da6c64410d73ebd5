"""Pods as the kubelet makes them, through containerd's CRI plugin: see docs/kubernetes.md."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.box import status
from support.clients import Seen
from support.containerd import IMAGE, Containerd
from support.cri import Cri, CriError, Message
from support.requires import requires
from support.running import wait_until

pytestmark = requires("root")

POD, CONTAINER, NODE = range(3)  # NamespaceMode
CREATED, RUNNING, EXITED = range(3)  # ContainerState
HANDLER = "tested"  # what a RuntimeClass names
M = 1 << 20

_numbers = itertools.count(1)


class Pod(Seen):
    """A pod sandbox; its process is that of the pause image."""

    def __init__(self, containerd: Containerd, handler: str, linux: Message) -> None:
        self.containerd = containerd
        self.cri: Cri = containerd.cri
        number = next(_numbers)
        self.logs = containerd.folder / f"pods/{number}"
        self.logs.mkdir()
        options = linux.get("security_context", {}).get("namespace_options", {})
        self.config: Message = {
            "metadata": {"name": f"pod{number}", "uid": f"uid{number}", "namespace": "tests"},
            # The kubelet names none where the pod has the host's.
            "hostname": "" if options.get("network") == NODE else f"pod{number}",
            "log_directory": str(self.logs),
            "linux": {"cgroup_parent": f"/{containerd.namespace}", **linux},
        }
        answer = self.cri("RunPodSandbox", config=self.config, runtime_handler=handler)
        self.id: str = answer["pod_sandbox_id"]
        self.await_command(self.pid)

    def inspect(self) -> Message:
        """Return the status, with the plugin's own information in ``info``."""
        answer = self.cri("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True)
        return answer["status"] | {"info": json.loads(answer["info"]["info"])}

    @property
    def pid(self) -> int:
        return int(self.inspect()["info"]["pid"])

    def create(self, *command: str, linux: Message | None = None, **config: Any) -> Box:
        """Create a container, not started; *config* are fields of ContainerConfig."""
        name = f"c{next(_numbers)}"
        words = list(command or ("sleep", "1000"))
        whole = {
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "command": words,
            "log_path": f"{name}.log",
            "linux": {"security_context": {"namespace_options": {"pid": CONTAINER}}}
            | (linux or {}),
            **config,
        }
        answer = self.cri(
            "CreateContainer", pod_sandbox_id=self.id, config=whole, sandbox_config=self.config
        )
        return Box(self, answer["container_id"], self.logs / f"{name}.log")

    def start(self, *command: str, linux: Message | None = None, **config: Any) -> Box:
        """The same, and start it."""
        box = self.create(*command, linux=linux, **config)
        self.cri("StartContainer", container_id=box.id)
        box.await_command(box.inspect()["info"].get("pid", 0))
        return box

    def remove(self) -> None:
        self.cri("StopPodSandbox", pod_sandbox_id=self.id)
        self.cri("RemovePodSandbox", pod_sandbox_id=self.id)


class Box(Seen):
    """A container of a pod."""

    def __init__(self, pod: Pod, id: str, log: Path) -> None:  # noqa: A002
        self.cri = pod.cri
        self.id = id
        self.log = log

    def inspect(self) -> Message:
        answer = self.cri("ContainerStatus", container_id=self.id, verbose=True)
        return answer["status"] | {"info": json.loads(answer["info"]["info"])}

    @property
    def state(self) -> int:
        return int(self.inspect().get("state", 0))

    @property
    def pid(self) -> int:
        return int(self.inspect()["info"]["pid"])

    def exec(self, *command: str) -> tuple[int, str, str]:
        """Run a command; return its status and what it wrote to both outputs."""
        done = self.cri("ExecSync", container_id=self.id, cmd=list(command), timeout=20)
        return done.get("exit_code", 0), done.get("stdout", ""), done.get("stderr", "")

    def logged(self) -> str:
        """Return what it wrote; a line of a log begins with time, stream and tag."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return "".join(line.split(" ", 3)[3] + "\n" for line in lines)


@contextlib.contextmanager
def new_pod(containerd: Containerd, handler: str = HANDLER, **linux: Any) -> Iterator[Pod]:
    """Start a pod, and remove it on leaving; *linux* are fields of LinuxPodSandboxConfig."""
    pod = Pod(containerd, handler, linux)
    try:
        yield pod
    finally:
        pod.remove()


@pytest.fixture
def pod(containerd: Containerd) -> Iterator[Pod]:
    with new_pod(containerd) as one:
        yield one


def test_the_plugin_is_ready(containerd: Containerd) -> None:
    conditions = containerd.cri("Status")["status"]["conditions"]
    assert {one["type"]: one.get("status") for one in conditions} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }


def test_pod(containerd: Containerd, pod: Pod) -> None:
    found = pod.inspect()
    assert found["runtime_handler"] == HANDLER
    assert found.get("state", 0) == 0  # SANDBOX_READY
    # It is the tested runtime that runs it.
    assert (containerd.state / "k8s.io" / pod.id).is_dir()
    assert pod.proc("cmdline") == "/bin/sleep\x001000000\x00"
    assert f"/{containerd.namespace}/{pod.id}" in pod.proc("cgroup")
    assert found["network"]["ip"].startswith("10.88.0.")


def test_pod_of_the_default_handler(containerd: Containerd) -> None:
    with new_pod(containerd, handler="") as pod:
        assert not (containerd.state / "k8s.io" / pod.id).exists()


def test_unknown_handler(containerd: Containerd) -> None:
    config = {"metadata": {"name": "x", "uid": "x", "namespace": "tests"}, "hostname": "x"}
    with pytest.raises(CriError, match=r"no runtime for .*nosuch"):
        containerd.cri("RunPodSandbox", config=config, runtime_handler="nosuch")


def test_network_of_pods(containerd: Containerd, pod: Pod) -> None:
    """What the plug-ins made in the namespace that the runtime joins."""
    own = pod.inspect()["network"]["ip"]
    with new_pod(containerd) as other:
        box = other.start()
        assert own != other.inspect()["network"]["ip"]
        status_, out, _ = box.exec("ping", "-c", "1", "-W", "5", own)
        assert (status_, "1 packets received" in out) == (0, True)
        assert own not in box.exec("ip", "address")[1]


def test_two_containers_of_one_pod(pod: Pod) -> None:
    first, second = pod.start(), pod.start()
    for kind in ("net", "ipc", "uts"):
        assert first.namespace(kind) == second.namespace(kind) == pod.namespace(kind), kind
        assert pod.namespace(kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
    for kind in ("pid", "mnt"):
        assert len({one.namespace(kind) for one in (first, second, pod)}) == 3, kind
    assert first.exec("hostname") == (0, f"{pod.config['hostname']}\n", "")
    assert first.exec("touch", "/dev/shm/x")[0] == 0
    assert second.exec("ls", "/dev/shm") == (0, "x\n", "")


def test_shared_processes(containerd: Containerd) -> None:
    """``shareProcessNamespace``: containers join the sandbox's PID namespace."""
    shared = {"namespace_options": {"pid": POD}}
    with new_pod(containerd, security_context=shared) as pod:
        box = pod.start(linux={"security_context": shared})
        assert box.namespace("pid") == pod.namespace("pid")
        assert "sleep 1000000" in box.exec("ps")[1]


def test_host_namespaces(containerd: Containerd) -> None:
    """``hostNetwork``, ``hostPID``, ``hostIPC``; the host's network is containerd's here."""
    host = {"namespace_options": {"network": NODE, "pid": NODE, "ipc": NODE}}
    with new_pod(containerd, security_context=host) as pod:
        box = pod.start(linux={"security_context": host})
        for kind in ("net", "pid", "ipc"):
            own = os.readlink(f"/proc/{containerd.daemon.pid}/ns/{kind}")
            assert box.namespace(kind) == pod.namespace(kind) == own, kind


def test_life_of_a_container(pod: Pod) -> None:
    box = pod.create("sh", "-c", "echo out; echo err >&2; exit 3")
    assert box.state == CREATED
    box.cri("StartContainer", container_id=box.id)
    wait_until(lambda: box.state == EXITED, "its end")
    found = box.inspect()
    assert (found["exit_code"], found["reason"]) == (3, "Error")
    assert sorted(box.logged().split()) == ["err", "out"]
    box.cri("RemoveContainer", container_id=box.id)
    with pytest.raises(CriError, match="not found"):
        box.inspect()


def test_stop(pod: Pod) -> None:
    script = "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done"
    box = pod.start("sh", "-c", script)
    wait_until(lambda: box.logged() == "up\n", "the start")
    box.cri("StopContainer", container_id=box.id, timeout=30)
    assert box.inspect()["exit_code"] == 4
    deaf = pod.start()
    deaf.cri("StopContainer", container_id=deaf.id, timeout=1)
    assert deaf.inspect()["exit_code"] == 137


def test_what_cannot_start(pod: Pod) -> None:
    box = pod.create("nosuch")
    with pytest.raises(CriError, match=r"OCI runtime create failed: .*nosuch.*not found"):
        box.cri("StartContainer", container_id=box.id)
    found = box.inspect()
    assert (found["state"], found["reason"]) == (EXITED, "StartError")
    assert pod.start().exec("true")[0] == 0


def test_exec(pod: Pod) -> None:
    box = pod.start(envs=[{"key": "A", "value": "1"}], working_dir="/tmp")
    script = "echo $A; pwd; echo aside >&2; exit 5"
    assert box.exec("sh", "-c", script) == (5, "1\n/tmp\n", "aside\n")
    with pytest.raises(CriError, match=r"OCI runtime exec failed: .*nosuch.*not found"):
        box.exec("nosuch")


def test_resources(pod: Pod) -> None:
    resources = {
        "cpu_period": 100000,
        "cpu_quota": 50000,
        "memory_limit_in_bytes": 64 * M,
        "cpuset_cpus": "0",
        "oom_score_adj": 900,
    }
    box = pod.start(linux={"resources": resources})
    assert (box.limit("memory"), box.cpus(), box.limit("cpuset")) == (str(64 * M), 0.5, "0")
    assert box.proc("oom_score_adj") == "900\n"
    more = {"memory_limit_in_bytes": 96 * M, "cpu_period": 100000, "cpu_quota": 80000}
    box.cri("UpdateContainerResources", container_id=box.id, linux=more)
    assert (box.limit("memory"), box.cpus(), box.limit("cpuset")) == (str(96 * M), 0.8, "0")


def test_out_of_memory(pod: Pod) -> None:
    command = ["sh", "-c", "tail /dev/zero; sleep 1; exit 9"]
    box = pod.start(*command, linux={"resources": {"memory_limit_in_bytes": 16 * M}})
    wait_until(lambda: box.state == EXITED, "its end")
    assert box.inspect()["reason"] == "OOMKilled"


def test_security_context(pod: Pod) -> None:
    context = {
        "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]},
        "run_as_user": {"value": 1000},
        "run_as_group": {"value": 50},
        "readonly_rootfs": True,
        "no_new_privs": True,
        "seccomp": {"profile_type": 0},  # RuntimeDefault
        "masked_paths": ["/proc/keys"],
        "readonly_paths": ["/proc/sys"],
        "namespace_options": {"pid": CONTAINER},
    }
    box = pod.start(linux={"security_context": context})
    found = status(box.pid)
    assert int(found["CapBnd"], 16) == 1 << 10
    assert (found["Uid"].split()[0], found["Gid"].split()[0]) == ("1000", "50")
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert "ro" in box.mount("/")[0] & box.mount("/proc/sys")[0]
    assert Path(f"/proc/{box.pid}/root/proc/keys").read_bytes() == b""


def test_privileged(containerd: Containerd) -> None:
    with new_pod(containerd, security_context={"privileged": True}) as pod:
        box = pod.start(linux={"security_context": {"privileged": True}})
        own = status("self")["CapBnd"]
        assert box.status()["CapEff"] == box.status()["CapBnd"] == own
        assert "rw" in box.mount("/sys")[0]
        assert "/proc/sys" not in box.mounts()


def test_volumes(pod: Pod, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
    volumes = [
        {"container_path": f"/{name}", "host_path": f"{tmp_path}/{name}", "readonly": name == "ro"}
        for name in ("ro", "rw")
    ]
    box = pod.start(mounts=volumes)
    assert box.exec("touch", "/rw/x")[0] == 0
    assert (tmp_path / "rw/x").exists()
    assert "Read-only file system" in box.exec("touch", "/ro/x")[2]


def test_settings_of_the_kernel(containerd: Containerd) -> None:
    with new_pod(containerd, sysctls={"net.ipv4.ip_local_port_range": "2000 3000"}) as pod:
        box = pod.start()
        said = box.exec("cat", "/proc/sys/net/ipv4/ip_local_port_range")
        assert said == (0, "2000\t3000\n", "")


def test_removal_takes_everything_along(containerd: Containerd) -> None:
    with new_pod(containerd) as pod:
        boxes = [pod.start() for _ in range(2)]
        pids = [one.pid for one in (pod, *boxes)]
        folder = pod.cgroup("pids")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not folder.exists()
    assert not (containerd.state / "k8s.io" / pod.id).exists()
