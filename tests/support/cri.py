"""Kubernetes' Container Runtime Interface, as the kubelet speaks it to containerd.

Debian has no ``crictl``. The interface is gRPC; of its messages (``runtime.v1`` in
``k8s.io/cri-api/pkg/apis/runtime/v1/api.proto``) the fields that the tests use are below, by
their names and numbers there. A process of its own, this file as a program, speaks gRPC: its
threads are not those of the tests, which fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Message = dict[str, Any]

# Field to number and kind: str, int, bool, bytes, map (of str to str), or a message of this table.
# A kind in a list is repeated.
MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
    "Capability": {"add_capabilities": (1, ["str"]), "drop_capabilities": (2, ["str"])},
    "ContainerConfig": {
        "metadata": (1, "ContainerMetadata"),
        "image": (2, "ImageSpec"),
        "command": (3, ["str"]),
        "args": (4, ["str"]),
        "working_dir": (5, "str"),
        "envs": (6, ["KeyValue"]),
        "mounts": (7, ["Mount"]),
        "log_path": (11, "str"),
        "linux": (15, "LinuxContainerConfig"),
    },
    "ContainerMetadata": {"name": (1, "str"), "attempt": (2, "int")},
    "ContainerStatus": {
        "id": (1, "str"),
        "state": (3, "int"),
        "exit_code": (7, "int"),
        "reason": (10, "str"),
        "message": (11, "str"),
    },
    "ImageSpec": {"image": (1, "str")},
    "Int64Value": {"value": (1, "int")},
    "KeyValue": {"key": (1, "str"), "value": (2, "str")},
    "LinuxContainerConfig": {
        "resources": (1, "LinuxContainerResources"),
        "security_context": (2, "LinuxContainerSecurityContext"),
    },
    "LinuxContainerResources": {
        "cpu_period": (1, "int"),
        "cpu_quota": (2, "int"),
        "cpu_shares": (3, "int"),
        "memory_limit_in_bytes": (4, "int"),
        "oom_score_adj": (5, "int"),
        "cpuset_cpus": (6, "str"),
    },
    "LinuxContainerSecurityContext": {
        "capabilities": (1, "Capability"),
        "privileged": (2, "bool"),
        "namespace_options": (3, "NamespaceOption"),
        "run_as_user": (5, "Int64Value"),
        "readonly_rootfs": (7, "bool"),
        "no_new_privs": (11, "bool"),
        "run_as_group": (12, "Int64Value"),
        "masked_paths": (13, ["str"]),
        "readonly_paths": (14, ["str"]),
        "seccomp": (15, "SecurityProfile"),
    },
    "LinuxPodSandboxConfig": {
        "cgroup_parent": (1, "str"),
        "security_context": (2, "LinuxSandboxSecurityContext"),
        "sysctls": (3, "map"),
    },
    "LinuxSandboxSecurityContext": {
        "namespace_options": (1, "NamespaceOption"),
        "privileged": (6, "bool"),
    },
    "Mount": {
        "container_path": (1, "str"),
        "host_path": (2, "str"),
        "readonly": (3, "bool"),
        "propagation": (5, "int"),
    },
    "NamespaceOption": {"network": (1, "int"), "pid": (2, "int"), "ipc": (3, "int")},
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"),
        "hostname": (2, "str"),
        "log_directory": (3, "str"),
        "linux": (8, "LinuxPodSandboxConfig"),
    },
    "PodSandboxMetadata": {
        "name": (1, "str"),
        "uid": (2, "str"),
        "namespace": (3, "str"),
        "attempt": (4, "int"),
    },
    "PodSandboxNetworkStatus": {"ip": (1, "str")},
    "PodSandboxStatus": {
        "id": (1, "str"),
        "state": (3, "int"),
        "network": (5, "PodSandboxNetworkStatus"),
        "runtime_handler": (9, "str"),
    },
    "RuntimeCondition": {"type": (1, "str"), "status": (2, "bool"), "message": (4, "str")},
    "RuntimeStatus": {"conditions": (1, ["RuntimeCondition"])},
    "SecurityProfile": {"profile_type": (1, "int"), "localhost_ref": (2, "str")},
    # Requests and responses.
    "ContainerStatusRequest": {"container_id": (1, "str"), "verbose": (2, "bool")},
    "ContainerStatusResponse": {"status": (1, "ContainerStatus"), "info": (2, "map")},
    "CreateContainerRequest": {
        "pod_sandbox_id": (1, "str"),
        "config": (2, "ContainerConfig"),
        "sandbox_config": (3, "PodSandboxConfig"),
    },
    "CreateContainerResponse": {"container_id": (1, "str")},
    "ExecSyncRequest": {"container_id": (1, "str"), "cmd": (2, ["str"]), "timeout": (3, "int")},
    "ExecSyncResponse": {"stdout": (1, "str"), "stderr": (2, "str"), "exit_code": (3, "int")},
    "PodSandboxStatusRequest": {"pod_sandbox_id": (1, "str"), "verbose": (2, "bool")},
    "PodSandboxStatusResponse": {"status": (1, "PodSandboxStatus"), "info": (2, "map")},
    "RemoveContainerRequest": {"container_id": (1, "str")},
    "RemoveContainerResponse": {},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "str")},
    "RemovePodSandboxResponse": {},
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig"), "runtime_handler": (2, "str")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "str")},
    "StartContainerRequest": {"container_id": (1, "str")},
    "StartContainerResponse": {},
    "StatusRequest": {},
    "StatusResponse": {"status": (1, "RuntimeStatus")},
    "StopContainerRequest": {"container_id": (1, "str"), "timeout": (2, "int")},
    "StopContainerResponse": {},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "str")},
    "StopPodSandboxResponse": {},
    "UpdateContainerResourcesRequest": {
        "container_id": (1, "str"),
        "linux": (2, "LinuxContainerResources"),
    },
    "UpdateContainerResourcesResponse": {},
    "VersionRequest": {"version": (1, "str")},
    "VersionResponse": {"runtime_name": (2, "str"), "runtime_api_version": (4, "str")},
}
MAP_ENTRY = {"key": (1, "str"), "value": (2, "str")}


class CriError(Exception):
    """A call that containerd refused; the text is its."""


class Cri:
    """A client of the CRI on a socket; its process starts with the first call."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, method: str, **request: Any) -> Message:
        """Call a method of RuntimeService, with the fields of its request.

        Raises:
            CriError: containerd refused.
        """
        if self.process is None:
            command = [sys.executable, "-I", __file__, str(self.socket)]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([method, request]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if isinstance(answer, str):
            raise CriError(answer)
        return dict(answer)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate(timeout=20)
            self.process = None


# ---------------------------------------------------------------- the encoding of protobuf


def varint(number: int) -> bytes:
    """Encode a number; negative ones as 64 bits in two's complement."""
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def encode(fields: dict[str, tuple[int, Any]], message: Message) -> bytes:
    """Encode a message that has *fields*, a row of :data:`MESSAGES`."""
    found = b""
    for name, value in message.items():
        number, kind = fields[name]
        if kind == "map":
            values = [{"key": k, "value": v} for k, v in value.items()]
        else:
            values = value if isinstance(kind, list) else [value]
            kind = kind[0] if isinstance(kind, list) else kind
        for one in values:
            if kind in ("int", "bool"):
                found += varint(number << 3) + varint(int(one))
                continue
            if kind == "str":
                data = one.encode()
            else:
                data = encode(MAP_ENTRY if kind == "map" else MESSAGES[kind], one)
            found += varint(number << 3 | 2) + varint(len(data)) + data
    return found


def decode(fields: dict[str, tuple[int, Any]], data: bytes) -> Message:
    """Decode a message; fields that the row does not name are left out, absent ones too."""
    names = {number: (name, kind) for name, (number, kind) in fields.items()}
    found: Message = {}
    at = 0

    def read() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number - (1 << 64) if number >> 63 else number

    while at < len(data):
        tag = read()
        value: Any
        if tag & 7 == 0:
            value = read()
        else:
            size = {1: 8, 5: 4}.get(tag & 7) or read()
            value, at = data[at : at + size], at + size
        if tag >> 3 not in names:
            continue
        name, kind = names[tag >> 3]
        if kind == "map":
            entry = decode(MAP_ENTRY, value)
            found.setdefault(name, {})[entry.get("key", "")] = entry.get("value", "")
            continue
        inner = kind[0] if isinstance(kind, list) else kind
        if inner == "str":
            value = value.decode()
        elif inner == "bool":
            value = bool(value)
        elif inner != "int":
            value = decode(MESSAGES[inner], value)
        if isinstance(kind, list):
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found


def serve(socket: str) -> None:
    """Read calls from standard input, a JSON line each, and write an answer for each."""
    import grpc

    with grpc.insecure_channel(f"unix://{socket}") as channel:
        for line in sys.stdin:
            method, request = json.loads(line)
            call = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
            answer: Any
            try:
                data = call(encode(MESSAGES[f"{method}Request"], request), timeout=60)
                answer = decode(MESSAGES[f"{method}Response"], data)
            except grpc.RpcError as error:
                answer = error.details()
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
