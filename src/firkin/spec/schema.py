"""The OCI runtime configuration for Linux, version 1.3, as tables.

From config.md, config-linux.md and the JSON schemas of the runtime
specification. Where a table says less than the schema, or more, a comment says
why. What a table cannot say, because it concerns two fields, is in
:mod:`firkin.spec.rules`. The sections of other platforms (windows, solaris, vm,
zos, freebsd) are ignored.
"""

from __future__ import annotations

from firkin.spec import forms
from firkin.spec.kinds import Array, Boolean, Choice, Integer, Map, Object, Text

boolean = Boolean()
int64 = Integer(-(1 << 63), (1 << 63) - 1)
uint16 = Integer(0, (1 << 16) - 1)
uint32 = Integer(0, (1 << 32) - 1)
uint64 = Integer(0, (1 << 64) - 1)
# (uid_t) -1 is nobody: to setresuid(2) and chown(2) it means "leave it", which would be root.
user_id = Integer(0, (1 << 32) - 2)
# An amount where -1 stands for "no limit", as in the files of cgroup v1.
amount = Integer(-1, (1 << 63) - 1)

text = Text()
nonempty = Text(forms.nonempty)
absolute = Text(forms.absolute)
texts = Array(text)
environment = Array(Text(forms.environment))

# MAJOR and MINOR of linux/kdev_t.h: 12 and 20 bits.
major = Integer(0, (1 << 12) - 1)
minor = Integer(0, (1 << 20) - 1)

ID_MAPPINGS = Array(
    Object(
        {"containerID": uint32, "hostID": uint32, "size": Integer(1, (1 << 32) - 1)},
        required="containerID hostID size",
    )
)

HOOKS = Array(
    Object(
        {"path": absolute, "args": texts, "env": environment, "timeout": Integer(1, (1 << 63) - 1)},
        required="path",
    )
)

# In the order in which they are run.
HOOK_KINDS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)

MOUNTS = Array(
    Object(
        {
            # A relative destination is deprecated, not wrong: it is taken from "/".
            "destination": nonempty,
            "source": text,
            "type": text,
            "options": texts,
            "uidMappings": ID_MAPPINGS,
            "gidMappings": ID_MAPPINGS,
        },
        required="destination",
    )
)

SCHEDULER = Object(
    {
        "policy": Choice(
            "SCHED_OTHER SCHED_FIFO SCHED_RR SCHED_BATCH SCHED_ISO SCHED_IDLE SCHED_DEADLINE"
        ),
        "nice": Integer(-20, 19),
        "priority": Integer(0, 99),
        "flags": Array(
            Choice(
                "SCHED_FLAG_RESET_ON_FORK SCHED_FLAG_RECLAIM SCHED_FLAG_DL_OVERRUN"
                " SCHED_FLAG_KEEP_POLICY SCHED_FLAG_KEEP_PARAMS"
                " SCHED_FLAG_UTIL_CLAMP_MIN SCHED_FLAG_UTIL_CLAMP_MAX"
            )
        ),
        "runtime": uint64,
        "deadline": uint64,
        "period": uint64,
    },
    required="policy",
)

PROCESS = Object(
    {
        "terminal": boolean,
        # struct winsize of tty_ioctl(4) has 16 bits for each, where the schema says 64.
        "consoleSize": Object({"height": uint16, "width": uint16}, required="height width"),
        "user": Object(
            {
                "uid": user_id,
                "gid": user_id,
                "umask": uint32,
                "additionalGids": Array(user_id),
                "username": text,
            }
        ),
        "args": Array(text, least=1),
        "commandLine": text,
        "env": environment,
        "cwd": absolute,
        # Names that nobody knows are ignored with a warning (config.md, "Linux Process").
        "capabilities": Object(
            dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), texts)
        ),
        "rlimits": Array(
            Object(
                {
                    "type": Choice(
                        "RLIMIT_AS RLIMIT_CORE RLIMIT_CPU RLIMIT_DATA RLIMIT_FSIZE RLIMIT_LOCKS"
                        " RLIMIT_MEMLOCK RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_NOFILE RLIMIT_NPROC"
                        " RLIMIT_RSS RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RLIMIT_STACK"
                    ),
                    "soft": uint64,
                    "hard": uint64,
                },
                required="type soft hard",
            )
        ),
        "noNewPrivileges": boolean,
        "apparmorProfile": text,
        "selinuxLabel": text,
        # proc_pid_oom_score_adj(5)
        "oomScoreAdj": Integer(-1000, 1000),
        # ioprio_set(2)
        "ioPriority": Object(
            {
                "class": Choice("IOPRIO_CLASS_RT IOPRIO_CLASS_BE IOPRIO_CLASS_IDLE"),
                "priority": Integer(0, 7),
            },
            required="class",
        ),
        "scheduler": SCHEDULER,
        "execCPUAffinity": Object(
            dict.fromkeys(("initial", "final"), Text(forms.cpu_list)),
        ),
    },
    required="cwd",
)

DEVICES = Array(
    Object(
        {
            "path": absolute,
            "type": Choice("c b u p"),
            "major": major,
            "minor": minor,
            # The schema stops at 0o777. podman writes st_mode whole, with the
            # bits of the file's type, and runc and crun drop those.
            "fileMode": Integer(0, 0o177777),
            "uid": user_id,
            "gid": user_id,
        },
        required="path type",
    )
)

THROTTLES = Array(
    Object({"major": major, "minor": minor, "rate": uint64}, required="major minor rate")
)

RESOURCES = Object(
    {
        "devices": Array(
            Object(
                {
                    "allow": boolean,
                    "type": Choice("a c b"),
                    # -1 is every number, as an absent field is; CRI-O writes it.
                    "major": Integer(-1, major.high),
                    "minor": Integer(-1, minor.high),
                    "access": Text(forms.device_access),
                },
                required="allow",
            )
        ),
        "memory": Object(
            {
                "limit": amount,
                "reservation": amount,
                "swap": amount,
                "kernel": amount,
                "kernelTCP": amount,
                "swappiness": Integer(0, 100),
                "disableOOMKiller": boolean,
                "useHierarchy": boolean,
                "checkBeforeUpdate": boolean,
            }
        ),
        "cpu": Object(
            {
                "shares": uint64,
                "quota": amount,
                "burst": uint64,
                "period": uint64,
                "realtimeRuntime": amount,
                "realtimePeriod": uint64,
                "cpus": text,
                "mems": text,
                "idle": Integer(0, 1),
            }
        ),
        "pids": Object({"limit": amount}, required="limit"),
        "blockIO": Object(
            {
                "weight": uint16,
                "leafWeight": uint16,
                "weightDevice": Array(
                    Object(
                        {"major": major, "minor": minor, "weight": uint16, "leafWeight": uint16},
                        required="major minor",
                    )
                ),
                "throttleReadBpsDevice": THROTTLES,
                "throttleWriteBpsDevice": THROTTLES,
                "throttleReadIOPSDevice": THROTTLES,
                "throttleWriteIOPSDevice": THROTTLES,
            }
        ),
        "hugepageLimits": Array(
            Object({"pageSize": Text(forms.page_size), "limit": uint64}, required="pageSize limit")
        ),
        "network": Object(
            {
                "classID": uint32,
                "priorities": Array(
                    Object(
                        {"name": Text(forms.interface), "priority": uint32},
                        required="name priority",
                    )
                ),
            }
        ),
        "rdma": Map(Object({"hcaHandles": uint32, "hcaObjects": uint32})),
        # The keys become names of files in the container's cgroup.
        "unified": Map(text, forms.file_name),
    }
)

ACTION = Choice(
    "SCMP_ACT_ALLOW SCMP_ACT_ERRNO SCMP_ACT_KILL SCMP_ACT_KILL_PROCESS SCMP_ACT_KILL_THREAD"
    " SCMP_ACT_LOG SCMP_ACT_NOTIFY SCMP_ACT_TRACE SCMP_ACT_TRAP"
)
ARCHITECTURE = Choice(
    "SCMP_ARCH_X86 SCMP_ARCH_X86_64 SCMP_ARCH_X32 SCMP_ARCH_ARM SCMP_ARCH_AARCH64"
    " SCMP_ARCH_LOONGARCH64 SCMP_ARCH_M68K SCMP_ARCH_MIPS SCMP_ARCH_MIPS64"
    " SCMP_ARCH_MIPS64N32 SCMP_ARCH_MIPSEL SCMP_ARCH_MIPSEL64"
    " SCMP_ARCH_MIPSEL64N32 SCMP_ARCH_PPC SCMP_ARCH_PPC64 SCMP_ARCH_PPC64LE"
    " SCMP_ARCH_S390 SCMP_ARCH_S390X SCMP_ARCH_SH SCMP_ARCH_SHEB SCMP_ARCH_PARISC"
    " SCMP_ARCH_PARISC64 SCMP_ARCH_RISCV64"
)
SECCOMP_FLAG = Choice(
    "SECCOMP_FILTER_FLAG_TSYNC SECCOMP_FILTER_FLAG_LOG"
    " SECCOMP_FILTER_FLAG_SPEC_ALLOW SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
)
OPERATOR = Choice(
    "SCMP_CMP_NE SCMP_CMP_LT SCMP_CMP_LE SCMP_CMP_EQ SCMP_CMP_GE SCMP_CMP_GT SCMP_CMP_MASKED_EQ"
)

SECCOMP = Object(
    {
        "defaultAction": ACTION,
        # SECCOMP_RET_DATA of seccomp(2) has 16 bits.
        "defaultErrnoRet": uint16,
        "architectures": Array(
            ARCHITECTURE,
        ),
        "flags": Array(
            SECCOMP_FLAG,
        ),
        "listenerPath": text,
        "listenerMetadata": text,
        "syscalls": Array(
            Object(
                {
                    "names": Array(nonempty, least=1),
                    "action": ACTION,
                    "errnoRet": uint16,
                    "args": Array(
                        Object(
                            {
                                # A system call has at most six arguments.
                                "index": Integer(0, 5),
                                "value": uint64,
                                "valueTwo": uint64,
                                "op": OPERATOR,
                            },
                            required="index value op",
                        )
                    ),
                },
                required="names action",
            )
        ),
    },
    required="defaultAction",
)

# clock_gettime(2): a second has fewer nanoseconds than this.
TIME_OFFSET = Object({"secs": int64, "nanosecs": Integer(0, 999_999_999)})

LINUX = Object(
    {
        "namespaces": Array(
            Object(
                {
                    "type": Choice("pid network mount ipc uts user cgroup time"),
                    "path": absolute,
                },
                required="type",
            )
        ),
        "uidMappings": ID_MAPPINGS,
        "gidMappings": ID_MAPPINGS,
        "timeOffsets": Object({"boottime": TIME_OFFSET, "monotonic": TIME_OFFSET}),
        "devices": DEVICES,
        "netDevices": Map(Object({"name": Text(forms.interface)}), forms.interface),
        "cgroupsPath": Text(forms.cgroup_path),
        "resources": RESOURCES,
        # The r variants are not in the schema; runc and crun take them, as
        # mount(8) does, and Docker writes them.
        "rootfsPropagation": Choice(
            "private shared slave unbindable rprivate rshared rslave runbindable"
        ),
        "maskedPaths": Array(absolute),
        "readonlyPaths": Array(absolute),
        "mountLabel": text,
        "seccomp": SECCOMP,
        "sysctl": Map(text),
        "personality": Object(
            {"domain": Choice("LINUX LINUX32"), "flags": texts}, required="domain"
        ),
        "intelRdt": Object(
            {
                "closID": Text(forms.class_of_service),
                "schemata": Array(Text(forms.one_line)),
                "l3CacheSchema": Text(forms.one_line),
                "memBwSchema": Text(forms.memory_bandwidth),
                "enableMonitoring": boolean,
            }
        ),
        "memoryPolicy": Object(
            {
                "mode": Choice(
                    "MPOL_DEFAULT MPOL_BIND MPOL_INTERLEAVE MPOL_WEIGHTED_INTERLEAVE"
                    " MPOL_PREFERRED MPOL_PREFERRED_MANY MPOL_LOCAL"
                ),
                "nodes": text,
                "flags": Array(
                    Choice("MPOL_F_NUMA_BALANCING MPOL_F_RELATIVE_NODES MPOL_F_STATIC_NODES")
                ),
            },
            required="mode",
        ),
    }
)

CONFIG = Object(
    {
        "ociVersion": Text(forms.version),
        "root": Object({"path": nonempty, "readonly": boolean}, required="path"),
        "process": PROCESS,
        "hostname": Text(forms.hostname),
        "domainname": Text(forms.hostname),
        "mounts": MOUNTS,
        "hooks": Object(dict.fromkeys(HOOK_KINDS, HOOKS)),
        "linux": LINUX,
        "annotations": Map(text),
    },
    # config.md: "root" is required on every platform but Windows and Hyper-V.
    required="ociVersion root",
)
