"""The child's half, from the clone to ``execve``: STEPS, in their order.

The order keeps these promises (docs/order.md has the reasons):

- cgroup before cgroup namespace, so that the container sees itself at the top;
- id maps before anything is made that must belong to the container's root;
- propagation private before the first mount; all mounts before the pivot;
- the root turns read-only, and paths are masked, after the pivot;
- READY before rights are dropped: the parent sets the memory limit then.

Each step is told in ``--explain`` and named in errors by its function's name.
"""

from __future__ import annotations

import os

from firkin.init import channel as protocol
from firkin.init import final, mounts
from firkin.init.channel import Channel
from firkin.init.plan import Plan
from firkin.linux import libc, mount, netlink, ns, paths, signals
from firkin.linux.clone import CLONE_NEWCGROUP, CLONE_NEWTIME, CLONE_PARENT, clone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def preload(plan: Plan) -> None:
    """Load what only some plans need; in the parent, for the child can load nothing."""
    if plan.init:
        import firkin.init.reaper
    if plan.terminal:
        import firkin.linux.pty
    if plan.create_hooks or plan.start_hooks:
        import firkin.init.hooks
    if plan.find_home:
        import firkin.init.home
    if plan.fifo_fd >= 0:
        import firkin.init.waiting
    if plan.memory_policy[0] >= 0 or plan.labels:
        import firkin.init.traits
    if plan.listener:
        import firkin.init.listener
    if any(entry.copy_up for entry in plan.mounts):
        import firkin.init.copy_up
    if plan.explain:
        import firkin.linux.decode  # noqa: F401


class Child:
    """What the steps hand on to each other."""

    __slots__ = (
        "channel",
        "empty",
        "mount_namespace",
        "null",
        "path",
        "plan",
        "proc",
        "root",
        "started",
    )

    def __init__(self, plan: Plan, channel: Channel) -> None:
        self.plan = plan
        self.channel = channel
        self.root = -1  # the container's root, before the pivot
        self.null = self.empty = -1  # what masked paths are covered with
        self.path = ""  # of the command
        self.proc = -1  # the host's /proc, where labels are written
        self.started = False  # nobody listens on the channel any more
        self.mount_namespace = 0  # its id, where the parent wants to know


def begin(child: Child) -> None:
    """Die with firkin, and belong to no session of the host."""
    libc.because("the container dies with firkin")
    final.die_with_parent()
    libc.because("a session of its own: the host's terminal does not control it")
    libc.via(os.setsid)
    for fd in child.plan.release_fds:
        os.close(fd)
    child.plan.release_fds = ()
    # Modes of what is made below are exactly those of the configuration.
    os.umask(0)
    if child.plan.labels and child.proc < 0:
        child.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def unshare_namespaces(child: Child) -> None:
    """Enter the namespaces that need no rights over the parent's."""
    plan = child.plan
    if plan.unshare_flags and not plan.new_user and not plan.joins:
        libc.because("new namespaces, while the parent prepares the cgroup")
        ns.unshare(plan.unshare_flags)


def wait_for_start(child: Child) -> None:
    """Wait until the parent has put us into the cgroup and written our id maps."""
    child.channel.expect(protocol.START)


def join_cgroup(child: Child) -> None:
    """Move into the container's cgroup, on v1; on v2 the child was born in it.

    A thread that moves itself waits for nobody. Moved by its pid, as runc does,
    it costs a grace period of RCU, 7 to 20 ms (cgroup_procs_write_start in
    kernel/cgroup/cgroup.c).
    """
    libc.because("from here on what the container uses is counted and limited")
    for fd in child.plan.cgroup_entries:
        libc.via(os.write, fd, b"0")
        os.close(fd)


def join_namespaces(child: Child) -> None:
    """Enter the namespaces of others, then fork into what is new inside those."""
    plan = child.plan
    if not plan.joins:
        return
    libc.because("nothing in the namespaces that are joined may look into this process")
    final.make_undumpable()
    libc.because("namespaces that are shared with another container or the host")
    for fd, flag, path in plan.joins:
        ns.setns(fd, flag, path)
        os.close(fd)
    libc.because("a process enters a PID namespace only by being born in it")
    pid, pidfd = clone(plan.clone_flags | CLONE_PARENT)
    if pid:
        child.channel.send(protocol.FORKED, str(pid), fds=(pidfd,))
        os._exit(0)
    _listen(child)
    begin(child)
    child.channel.expect(protocol.MAPPED)


def become_root(child: Child) -> None:
    """In a user namespace: be its root, and enter the other namespaces as that."""
    plan = child.plan
    if plan.new_user or plan.joined_user:
        libc.because("root inside the user namespace, nobody outside of it")
        if plan.set_groups:
            libc.via(os.setgroups, [])
        libc.via(os.setresgid, plan.ns_gid, plan.ns_gid, plan.ns_gid)
        libc.via(os.setresuid, plan.ns_uid, plan.ns_uid, plan.ns_uid)
        final.die_with_parent()
    if plan.unshare_flags and (plan.new_user or plan.joins):
        libc.because("new namespaces, owned by the new user namespace")
        ns.unshare(plan.unshare_flags)
    libc.because("nothing in the container may trace this process or open its files")
    final.make_undumpable()


def unshare_cgroup(child: Child) -> None:
    """See the own cgroup as the top; after the parent has put us there."""
    if child.plan.new_cgroup:
        libc.because("the container's cgroup is the top of what it sees")
        ns.unshare(CLONE_NEWCGROUP)


def set_time(child: Child) -> None:
    """Enter a time namespace whose clocks are shifted."""
    plan = child.plan
    if not plan.time_offsets:
        return
    libc.because("clocks of its own; offsets can be set until somebody enters")
    ns.unshare(CLONE_NEWTIME)
    lines = "".join(f"{clock} {secs} {nsecs}\n" for clock, secs, nsecs in plan.time_offsets)
    if plan.new_user:
        # The file is root's of the host while this process can't be dumped. Nobody
        # in the container has rights over the new user namespace, so none can trace it.
        final.make_dumpable()
    libc.write_file("/proc/self/timens_offsets", lines)
    final.make_undumpable()
    path = "/proc/self/ns/time_for_children"
    fd = ns.open_namespace(path, CLONE_NEWTIME)
    ns.setns(fd, CLONE_NEWTIME, path)
    os.close(fd)


def set_names(child: Child) -> None:
    """Set the host name and the domain name."""
    plan = child.plan
    libc.because("the container's own host name")
    if plan.hostname:
        ns.sethostname(plan.hostname)
    if plan.domainname:
        ns.setdomainname(plan.domainname)


def bring_up_loopback(child: Child) -> None:
    """Make 127.0.0.1 work in the new network namespace."""
    if child.plan.loopback:
        libc.because("localhost works, and nothing else is there")
        netlink.loopback_up()


def build_root(child: Child) -> None:
    """Make every mount of the container, and its devices."""
    plan = child.plan
    if not plan.root:
        return
    if plan.watch_members:
        child.mount_namespace = ns.mount_namespace_id("self")
    libc.because("what masked paths are covered with")
    child.null, child.empty = mounts.prepare_masks(plan)
    child.root = mounts.enter_root(plan)
    mounts.mount_all(plan, child.root)
    mounts.make_devices(plan, child.root)


def run_hooks(child: Child) -> None:
    """Run the hooks of the creation: the parent's, then those inside our namespaces."""
    plan = child.plan
    if plan.runtime_hooks:
        child.channel.send(protocol.HOOKS)
        child.channel.expect(protocol.HOOKED)
    if plan.create_hooks:
        from firkin.init import hooks

        before, after = plan.hook_states[0]
        hooks.run(plan.create_hooks, "createContainer", f"{before}{os.getpid()}{after}")


def set_sysctls(child: Child) -> None:
    """Set kernel parameters of our namespaces; the host's /proc shows ours, too."""
    libc.because("--sysctl: parameters of the container's own namespaces")
    for path, value in child.plan.sysctl:
        libc.write_file(path, value)


def enter_root(child: Child) -> None:
    """Pivot into the container's root."""
    if child.root >= 0:
        enter = mounts.move_root if child.plan.no_pivot else mounts.pivot
        propagation = child.plan.root_propagation
        # Of what can't be bound nothing could be protected: that is for close_root.
        enter(child.root, 0 if propagation & mount.MS_UNBINDABLE else propagation)
        os.close(child.root)


def make_directory(child: Child) -> None:
    """Make the working directory where the image lacks it, as Docker does."""
    if child.root < 0 or child.plan.cwd == "/":
        return
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(paths.make_in_root(root, child.plan.cwd, "dir"))
    finally:
        os.close(root)


def open_console(child: Child) -> None:
    """Make the terminal from the container's devpts and send its master to the parent."""
    plan = child.plan
    if not plan.terminal:
        return
    from firkin.linux import pty

    libc.because("a terminal of the container's own, which nothing outside can be reached by")
    master = pty.open_ptmx("/dev/pts/ptmx")
    slave = pty.open_slave(master)
    rows, columns = plan.window
    if rows or columns:
        pty.set_winsize(master, rows, columns)
    if child.root >= 0:
        _bind_console(slave)
    child.channel.send(protocol.CONSOLE, fds=(master,))
    os.close(master)
    os.fchown(slave, plan.uid, -1)
    libc.because("the terminal controls the command's session")
    pty.set_controlling(slave)
    for fd in (0, 1, 2):
        libc.via(os.dup2, slave, fd)
    os.close(slave)


def _bind_console(slave: int) -> None:
    libc.because("/dev/console is the container's terminal")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    target = paths.make_in_root(root, "/dev/console", "file")
    tree = mount.open_tree(f"/proc/self/fd/{slave}", recursive=False)
    mount.move_mount(tree, target, at="/dev/console")
    for fd in (tree, target, root):
        os.close(fd)


def close_root(child: Child) -> None:
    """Turn the root read-only and hide what is to be hidden."""
    if child.root < 0:
        return
    if child.plan.readonly_root:
        mounts.readonly_root()
    mounts.mask_paths(child.plan, child.null, child.empty)
    if child.plan.root_propagation & mount.MS_UNBINDABLE:
        libc.because("rootfsPropagation")
        mount.mount("", "/", "", child.plan.root_propagation)


def wait_for_go(child: Child) -> None:
    """Tell the parent that only the command is missing; it sets the memory limit."""
    if child.plan.null_fd >= 0 and not child.plan.terminal:
        os.dup2(child.plan.null_fd, 0)
    child.channel.send(protocol.READY, str(child.mount_namespace))
    child.channel.expect(protocol.GO)


def run_init(child: Child) -> None:
    """With --init: fork; this process stays as pid 1, the new one goes on."""
    if not child.plan.init:
        return
    from firkin.init import reaper

    if child.plan.detached:
        # Its maker may end from CREATED on, which the command's process sends. Should it
        # end before, that process finds the channel closed, and takes this one along.
        final.live_without_parent()
    final.close_files(child.plan)
    reaper.run(
        lambda: _finish(child, FINAL),
        lambda _pid: final.limit_reaper(child.plan),
        arguments=child.plan.arguments_area,
    )


def set_traits(child: Child) -> None:
    """Set what few configurations ask for: memory nodes, labels of security modules."""
    plan = child.plan
    if plan.memory_policy[0] < 0 and not plan.labels:
        return
    from firkin.init import traits

    if plan.memory_policy[0] >= 0:
        traits.set_memory_policy(plan)
    if plan.labels:
        traits.set_labels(plan, child.proc)


def drop_privileges(child: Child) -> None:
    """Take the command's user, groups and bounding set."""
    final.drop_privileges(child.plan)


def find_command(child: Child) -> None:
    """Find the command as the user who is to run it."""
    if child.plan.find_home:
        from firkin.init import home

        child.plan.env = (*child.plan.env, f"HOME={home.find(child.plan.uid)}")
    child.path = final.find_command(child.plan)


def check_interpreters(child: Child) -> None:
    """See that the command is not, by way of a link, the host's Python."""
    final.refuse_magic_links(child.path)


def limit_capabilities(child: Child) -> None:
    """Give up all capabilities but those of the configuration."""
    final.limit_capabilities(child.plan)


def clean_process(child: Child) -> None:
    """Leave nothing of ours in the process: files, signals."""
    libc.because("signals are as a program expects them")
    signals.reset_dispositions()
    final.close_files(child.plan)
    if child.plan.fifo_fd < 0:
        signals.set_mask(0)


def load_listener(child: Child) -> None:
    """Load a filter that asks someone while the parent, who finds that one, is there."""
    plan = child.plan
    if plan.listener and plan.no_new_privs:
        final.load_seccomp(plan)
        plan.seccomp = None


def wait_on_fifo(child: Child) -> None:
    """Of an OCI container: let the creator go, wait for the start, and run its hooks."""
    plan = child.plan
    if not plan.detached:
        return
    if plan.fifo_fd >= 0:
        from firkin.init import waiting

        # What can fail does so while the creator is there to tell of it.
        ready = waiting.prepare(plan.fifo_fd)
        final.close_others(plan, (plan.fifo_fd, plan.error_fd, child.channel.fileno(), ready[0]))
    libc.because("the container lives on without the process that made it")
    final.live_without_parent()
    child.channel.send(protocol.CREATED)
    if plan.fifo_fd >= 0:
        child.started = True
        waiting.wait(plan.fifo_fd, *ready)
        signals.set_mask(0)
    if plan.start_hooks:
        from firkin.init import hooks

        before, after = plan.hook_states[1]
        hooks.run(plan.start_hooks, "startContainer", f"{before}{os.getpid()}{after}")


def limit_resources(child: Child) -> None:
    """Lower the resource limits; those on files and memory would hit all that is above."""
    final.set_rlimits(child.plan)


def execute(child: Child) -> None:
    """Load the seccomp filter and become the command."""
    final.execute(child.plan, child.path)


STEPS = (
    begin,
    unshare_namespaces,
    wait_for_start,
    join_cgroup,
    join_namespaces,
    become_root,
    unshare_cgroup,
    set_time,
    set_names,
    bring_up_loopback,
    build_root,
    run_hooks,
    set_sysctls,
    enter_root,
    make_directory,
    open_console,
    close_root,
    wait_for_go,
    run_init,
)

# What the command's own process does; with --init that is pid 1's child.
FINAL = (
    set_traits,
    drop_privileges,
    find_command,
    check_interpreters,
    limit_capabilities,
    clean_process,
    load_listener,
    wait_on_fifo,
    limit_resources,
    execute,
)


def run(plan: Plan, channel: Channel) -> NoReturn:
    """Carry out *plan* in the process that the parent has just cloned. Never returns."""
    child = Child(plan, channel)
    if plan.listener and plan.seccomp is not None:
        from firkin.init.listener import Loader

        plan.seccomp = Loader(plan.seccomp, plan.listener, channel).load
    _listen(child)
    _finish(child, STEPS + FINAL)


def _finish(child: Child, steps: tuple[Any, ...]) -> NoReturn:
    """Take *steps* in turn; report the first failure and end. Nothing carries on."""
    name = ""
    try:
        for step in steps:
            name = step.__name__
            step(child)
    except protocol.ChannelError:
        # The parent is gone, and whoever cleans up after it finds no process here.
        os._exit(125)
    except OSError as error:
        _report(child, name, error.errno or 0, error.filename, error.strerror or str(error))
    except BaseException as error:
        _report(child, name, 0, "", f"{type(error).__name__}: {error}")
    os._exit(125)


def _report(child: Child, step: str, number: int, path: Any, text: str) -> None:
    name = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
    if child.started:
        from firkin.init import waiting

        waiting.report(child.plan.error_fd, step, number, name, text)
        return
    try:
        child.channel.send(protocol.ERROR, step, str(number), name, text)
    except OSError:
        os._exit(125)


def _listen(child: Child) -> None:
    """Send every kernel call to the parent, where --explain prints it."""
    if not child.plan.explain:
        return

    from firkin.linux import decode

    def tell(name: str, shown: tuple[Any, ...], result: Any, seconds: float, why: str) -> None:
        name, arguments = decode.decode(name, shown)
        answer = decode.describe_result(result)
        try:
            child.channel.send(protocol.DEBUG, name, arguments, answer, f"{seconds:.9f}", why)
        except OSError:
            # A seccomp profile that forbids sendmsg is in force: the rest stays untold.
            libc.listen(None)

    libc.listen(tell)
