"""The options of ``firkin run``, and what they make of a command line: a Request."""

from __future__ import annotations

from firkin.cli import options, units, values
from firkin.cli.options import FLAG, LIST, OPTIONAL, Option
from firkin.cli.values import add, put, store
from firkin.engine.request import Request
from firkin.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# fmt: off
_PROCESS = (
    Option("-e --env", "KEY[=VALUE]", "Set a variable; KEY alone takes the caller's value",
           values.take_env, LIST),
    Option("--env-file", "FILE", "Read variables from a file, before --env",
           values.take_env_file, LIST),
    Option("-w --workdir", "PATH", "Working directory in the container",
           store("workdir", units.absolute)),
    Option("-u --user", "NAME|UID[:GROUP]", "Run as this user of the container",
           store("user", values.user)),
    Option("--group-add", "GROUP", "Add a supplementary group, by name or number",
           add("group_add"), LIST),
    Option("--entrypoint", "PROGRAM", "Put this program before the command; empty for none",
           store("entrypoint", values.entrypoint)),
    Option("--init", "", "Run a process at pid 1 that reaps orphans and forwards signals",
           store("init"), FLAG),
    Option("--timeout", "SECONDS", "End the whole container after this time",
           store("timeout", units.seconds)),
    Option("--preserve-fds", "N", "Hand N more descriptors to the command, from 3 on",
           store("preserve_fds", values.integer(0, 1024))),
)

_NAMESPACES = (
    Option("--userns", "MODE", "User namespace: auto, host, keep-id, container:ID, PATH",
           store("userns", values.namespace("auto", "host", "keep-id"))),
    Option("--pid", "MODE", "Process ids: private, host, container:ID, PATH",
           store("pid", values.namespace("private", "host"))),
    Option("--ipc", "MODE", "System V IPC and message queues: private, host, container:ID, PATH",
           store("ipc", values.namespace("private", "host"))),
    Option("--uts", "MODE", "Host name: private, host, container:ID, PATH",
           store("uts", values.namespace("private", "host"))),
    Option("--net --network", "MODE", "Network: none (with lo), host, container:ID, PATH",
           store("network", values.network)),
    Option("--cgroupns", "MODE", "View of cgroups: private, host, container:ID, PATH",
           store("cgroupns", values.namespace("private", "host"))),
    Option("--time-offset", "CLOCK=SECONDS", "Shift boottime or monotonic, in a new time namespace",
           put("time_offsets", units.offset), LIST),
    Option("-h --hostname", "NAME", "Host name of the container",
           store("hostname", values.host_name)),
    Option("--domainname", "NAME", "NIS domain name of the container",
           store("domainname", values.host_name)),
    Option("--dns", "ADDRESS", "Name server in /etc/resolv.conf",
           add("dns", values.address), LIST),
    Option("--add-host", "HOST:ADDRESS", "Line in /etc/hosts",
           add("add_hosts", values.extra_host), LIST),
)

_FILES = (
    Option("-v --volume", "HOST:PATH[:ro,…]", "Bind a file or folder of the host",
           add("mounts", values.volume), LIST),
    Option("--mount", "KEY=VALUE,…",
           "Mount with type= (bind, tmpfs, overlay), source=, target=, readonly, …",
           add("mounts", values.mount), LIST),
    Option("--tmpfs", "PATH[:size=…,…]", "Mount an empty file system in memory",
           add("mounts", values.tmpfs), LIST),
    Option("--read-only", "", "Make the root file system read-only",
           store("read_only"), FLAG),
    Option("--rootfs", "PATH", "Use this folder or archive in the place of IMAGE",
           values.take_rootfs),
    Option("--shm-size", "BYTES", "Size of /dev/shm, 64m if not given",
           store("shm_size", units.size)),
    Option("--device", "HOST[:PATH[:rwm]]", "Add a device of the host",
           add("devices", values.device), LIST),
)

_LIMITS = (
    Option("-m --memory", "BYTES", "Memory",
           store("memory", values.size_or_none)),
    Option("--memory-reservation", "BYTES", "Memory that is taken back last",
           store("memory_reservation", values.size_or_none)),
    Option("--memory-swap", "BYTES", "Memory and swap together; -1 for unlimited swap",
           store("memory_swap", values.memory_swap)),
    Option("--memory-swappiness", "0-100", "How readily memory is swapped",
           store("memory_swappiness", values.integer(0, 100, ("-1",)))),
    Option("--pids-limit", "N", "Processes and threads; -1 for unlimited",
           store("pids_limit", values.integer(1, 2**22, ("-1", "0")))),
    Option("--cpus", "N", "Processors, as 1.5",
           store("nano_cpus", values.cpus_or_none)),
    Option("-c --cpu-shares", "N", "Weight against other containers, 1024 is normal",
           store("cpu_shares", values.integer(2, 262144, ("0",)))),
    Option("--cpu-quota", "MICROSECONDS", "Processor time in each period",
           store("cpu_quota", values.integer(1000, unset=("0", "-1")))),
    Option("--cpu-period", "MICROSECONDS", "Length of a period",
           store("cpu_period", values.integer(1000, 1000000, ("0",)))),
    Option("--cpuset-cpus", "LIST", "Processors to run on, as 0-2,5",
           store("cpuset_cpus", units.cpuset)),
    Option("--cpuset-mems", "LIST", "Memory nodes to use",
           store("cpuset_mems", units.cpuset)),
    Option("--blkio-weight", "10-1000", "Weight of block input and output",
           store("blkio_weight", values.integer(10, 1000, ("0",)))),
    Option("--device-read-bps", "DEVICE:BYTES", "Bytes read in a second",
           add("device_rates", values.rate("throttleReadBpsDevice", units.size)), LIST),
    Option("--device-write-bps", "DEVICE:BYTES", "Bytes written in a second",
           add("device_rates", values.rate("throttleWriteBpsDevice", units.size)), LIST),
    Option("--device-read-iops", "DEVICE:N", "Reads in a second",
           add("device_rates", values.rate("throttleReadIOPSDevice", values.integer(0))), LIST),
    Option("--device-write-iops", "DEVICE:N", "Writes in a second",
           add("device_rates", values.rate("throttleWriteIOPSDevice", values.integer(0))), LIST),
    Option("--ulimit", "NAME=SOFT[:HARD]", "Resource limit of each process, as nofile=1024",
           put("rlimits", units.ulimit), LIST),
    Option("--oom-score-adj", "-1000..1000", "Preference of the out-of-memory killer",
           store("oom_score_adj", values.integer(-1000, 1000))),
    Option("--cgroup-parent", "PATH", "Cgroup or slice to make the container's cgroup in",
           store("cgroup_parent", values.cgroup_parent)),
)

_PRIVILEGES = (
    Option("--cap-add", "NAME", "Add a capability, or ALL",
           add("cap_add", values.capability), LIST),
    Option("--cap-drop", "NAME", "Drop a capability, or ALL",
           add("cap_drop", values.capability), LIST),
    Option("--security-opt", "KEY=VALUE",
           "seccomp=FILE|unconfined, no-new-privileges=false, systempaths=unconfined",
           values.take_security, LIST),
    Option("--privileged", "", "Give up nearly all protection of the host",
           store("privileged"), FLAG),
    Option("--sysctl", "NAME=VALUE", "Set a kernel parameter that has a namespace",
           put("sysctl", values.sysctl), LIST),
)

_TERMINAL = (
    Option("-i --interactive", "", "Keep standard input open",
           store("interactive"), FLAG),
    Option("-t --tty", "", "Give the command a terminal",
           store("tty"), FLAG),
)

_OTHER = (
    Option("--name", "NAME", "Name of the container",
           store("name", values.container_name)),
    Option("--cidfile", "FILE", "Write the container's id to a file",
           store("cidfile", values.host_path)),
    Option("-l --label", "KEY[=VALUE]", "Label of the container",
           put("labels", units.pair), LIST),
    Option("--annotation", "KEY[=VALUE]", "Annotation in the OCI configuration",
           put("annotations", units.pair), LIST),
    Option("--bundle", "DIR", "Run the config.json of an OCI bundle",
           store("bundle", values.host_path)),
    Option("--explain", "text|json", "Print every kernel call that makes the container",
           store("explain", values.explain), OPTIONAL),
    Option("--rm", "", "Remove the container at its end, which is always done",
           values.take_rm, FLAG),
)

GROUPS = (
    ("Process", _PROCESS),
    ("Namespaces", _NAMESPACES),
    ("File system", _FILES),
    ("Limits", _LIMITS),
    ("Privileges", _PRIVILEGES),
    ("Terminal", _TERMINAL),
    ("Other", _OTHER),
)

# fmt: on

# What may stand beside --bundle: the rest is said by its config.json.
_WITH_BUNDLE = (
    "--bundle",
    "--cidfile",
    "--explain",
    "--interactive",
    "--name",
    "--preserve-fds",
    "--rm",
    "--timeout",
)

_NOTES = """\
IMAGE is
  host        the programs of this machine, read-only, with files of its own
  scratch     nothing: for static programs brought in with -v
  PATH        a root file system: a folder, or an archive (.tar, .tar.gz, .tar.xz,
              .tar.zst); it starts with /, ./ or ../ and is never changed"""


def parse(argv: Sequence[str], verb: str = "run") -> Request:
    """Return what the words after ``firkin run`` ask for.

    IMAGE may be left out for verbs other than ``run``. A relative path becomes
    absolute; nothing else on the machine is looked at, but ``--env-file``.

    Raises:
        UsageError, Unsupported: with the option, the value and the reason.
        HelpRequested: ``--help`` was given.
    """
    command = f"firkin {verb}"
    given, words = options.parse(GROUPS, argv, command)
    # docker reads the files first, wherever they stand: --env is the more explicit.
    given.sort(key=lambda one: one[2] != "--env-file")
    request = Request()
    options.apply(given, request)
    if request.bundle is not None:
        _check_bundle(given, words)
        return request
    if request.image is None and words:
        request.image = words.pop(0)
        if not request.image:
            raise UsageError("cannot use image ''", "its name is empty")
    elif request.image is None and verb == "run":
        raise UsageError("cannot run", "IMAGE is missing", f"see '{command} --help'")
    request.command = words[1:] if words[:1] == ["--"] else words
    request.check()
    return request


def help_text(verb: str = "run") -> str:
    """Return the help of ``firkin run``, or of another *verb* with the same options."""
    summaries = {
        "run": "Run a command in a new container.",
        "spec": "Print the OCI configuration that 'firkin run' would run, as JSON.",
    }
    image = "IMAGE" if verb == "run" else "[IMAGE"
    end = "" if verb == "run" else "]"
    usage = f"firkin {verb} [OPTIONS] {image} [COMMAND [ARG...]]{end}"
    return options.help_text(usage, summaries[verb], GROUPS, _NOTES)


def _check_bundle(given: Sequence[options.Given], words: Sequence[str]) -> None:
    why = "its config.json says what to run and how"
    for option, _, name in given:
        if option.names[-1] not in _WITH_BUNDLE:
            raise UsageError(f"cannot combine --bundle with {name}", why)
    if words:
        raise UsageError(f"cannot combine --bundle with '{words[0]}'", why)
