"""Ids of a user namespace: which are mapped, and who writes the maps.

Root maps as it likes. An ordinary user maps their own id, and through
``newuidmap`` and ``newgidmap`` the ranges that ``/etc/subuid`` and
``/etc/subgid`` give them.

Source: user_namespaces(7), subuid(5), newuidmap(1).
"""

from __future__ import annotations

import os

from firkin.errors import SetupError, Unsupported
from firkin.linux import caps, clone, libc, ns, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# (first id inside, first id outside, how many)
Mapping = tuple[int, int, int]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4

# One more than the highest id that an image may sensibly use; what Docker's
# and podman's documentation ask an administrator to hand out.
RANGE = 65536

# Who owns the ranges that root takes for `--userns auto`, in this order.
_ROOT_OWNERS = ("firkin", "containers", "root")


class IdMaps:
    """The maps of one user namespace."""

    __slots__ = ("gids", "uids")

    def __init__(self, uids: list[Mapping], gids: list[Mapping]) -> None:
        self.uids = uids
        self.gids = gids

    def write(self, pid: int) -> None:
        """Write the maps of *pid*'s new user namespace; see :func:`write`."""
        write(pid, self)

    def first_ids(self) -> tuple[int, int]:
        """Return the uid and gid inside of who sets the namespace up: 0 where it is mapped."""
        uid, gid = (
            0 if any(inside == 0 for inside, _, _ in mappings) else mappings[0][0]
            for mappings in (self.uids, self.gids)
        )
        return uid, gid

    def outside(self, uid: int) -> int:
        """Return the uid outside that *uid* is inside, or -1 where it is not mapped."""
        for inside, outside, count in self.uids:
            if inside <= uid < inside + count:
                return outside + uid - inside
        return -1

    def is_single(self) -> bool:
        """Whether only one id is mapped, which forbids setgroups(2) to ordinary users."""
        return len(self.gids) == 1 and self.gids[0][2] == 1


def subordinate(path: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the ranges (first id, count) that *path* gives to any of *names*.

    Args:
        path: ``/etc/subuid`` or ``/etc/subgid``.
        names: the login name and the uid as text.
    """
    ranges = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.strip().split(":")
                if len(fields) == 3 and fields[0] in names:
                    try:
                        first, count = int(fields[1]), int(fields[2])
                    except ValueError:
                        continue
                    if first > 0 and count > 0:
                        ranges.append((first, count))
    except OSError:
        return []
    return ranges


def choose(mode: str, uid: int, gid: int) -> IdMaps:
    """Return the maps for ``--userns`` *mode* and the caller's ids.

    Args:
        mode: ``auto`` or ``keep-id``.
        uid: the caller's effective user id; 0 may map what it likes.
        gid: the caller's effective group id.

    Raises:
        Unsupported: root has no subordinate ids to use.
    """
    if uid == 0 and mode == "auto":
        for owner in _ROOT_OWNERS:
            uids = subordinate("/etc/subuid", (owner,))
            gids = subordinate("/etc/subgid", (owner,))
            if uids and gids:
                return IdMaps(_stack(0, uids), _stack(0, gids))
        raise Unsupported(
            "cannot make a user namespace with ids of its own",
            "/etc/subuid and /etc/subgid give no ids to 'firkin', 'containers' or 'root'",
            "add a line such as 'containers:2147483647:2147483648' to both",
        )
    names = _names(uid)
    can_map = _has_helpers()
    uids = subordinate("/etc/subuid", names) if can_map and uid else []
    gids = subordinate("/etc/subgid", names) if can_map and uid else []
    if not uids or not gids:
        inside = (uid, gid) if mode == "keep-id" else (0, 0)
        return IdMaps([(inside[0], uid, 1)], [(inside[1], gid, 1)])
    if mode == "keep-id":
        return IdMaps(_keep(uid, uids), _keep(gid, gids))
    return IdMaps([(0, uid, 1), *_stack(1, uids)], [(0, gid, 1), *_stack(1, gids)])


def _stack(inside: int, ranges: list[tuple[int, int]]) -> list[Mapping]:
    """Map ids from *inside* on to *ranges*, one after the other, up to RANGE in all."""
    mappings = []
    for first, count in ranges:
        count = min(count, RANGE - inside)
        if count <= 0:
            break
        mappings.append((inside, first, count))
        inside += count
    return mappings


def _keep(own: int, ranges: list[tuple[int, int]]) -> list[Mapping]:
    """Map *own* to itself and all other ids, around it, to *ranges*."""
    mappings: list[Mapping] = []
    for inside, first, count in _stack(0, ranges):
        if inside <= own < inside + count:
            before = own - inside
            if before:
                mappings.append((inside, first, before))
            mappings.append((own, own, 1))
            mappings.append((own + 1, first + before, count - before))
        elif own < inside:
            mappings.append((inside + 1, first, count))
        else:
            mappings.append((inside, first, count))
    if not any(inside == own for inside, _, _ in mappings):
        mappings.append((own, own, 1))
    return sorted(mappings)


def _names(uid: int) -> tuple[str, ...]:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name, str(uid)
    except KeyError:
        return (str(uid),)


def _has_helpers() -> bool:
    return bool(_find("newuidmap") and _find("newgidmap"))


def _find(program: str) -> str:
    for folder in ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"):
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK):
            return path
    return ""


def write(pid: int, maps: IdMaps) -> None:
    """Write the maps of *pid*'s new user namespace.

    Raises:
        SetupError: the kernel or ``newuidmap`` refused them.
    """
    libc.because("which ids of the host the ids inside the user namespace are")
    own_uid, own_gid = os.geteuid(), os.getegid()
    privileged = own_uid == 0
    for kind, mappings, own in (("uid", maps.uids, own_uid), ("gid", maps.gids, own_gid)):
        single = len(mappings) == 1 and mappings[0][1:] == (own, 1)
        try:
            if privileged or single:
                if kind == "gid" and not privileged:
                    # Without it a user could drop a group that denies them access.
                    libc.write_file(f"/proc/{pid}/setgroups", "deny")
                text = "".join(f"{a} {b} {n}\n" for a, b, n in mappings)
                libc.write_file(f"/proc/{pid}/{kind}_map", text)
            else:
                libc.via(_helper, f"new{kind}map", pid, mappings)
        except OSError as error:
            raise SetupError(
                f"cannot map the {kind}s of the user namespace",
                error.strerror or str(error),
                f"see /etc/sub{kind} and user_namespaces(7)",
                step="write_id_maps",
                errno=error.errno or 0,
                path=error.filename or "",
            ) from error


def _helper(program: str, pid: int, mappings: list[Mapping]) -> None:
    arguments = [program, str(pid)]
    for mapping in mappings:
        arguments += [str(number) for number in mapping]
    reader, writer = os.pipe()
    try:
        child = os.posix_spawn(
            _find(program), arguments, {}, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)]
        )
        os.close(writer)
        writer = -1
        message = os.read(reader, 4096).decode(errors="replace").strip()
        _, status = os.waitpid(child, 0)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if status:
        raise OSError(1, message or f"{program} failed", program)


def holder(maps: IdMaps) -> int:
    """Return a descriptor of a new user namespace with *maps*, for idmapped mounts.

    Raises:
        SetupError: as :func:`write`.
        OSError: the namespace could not be made.
    """
    reader, writer = os.pipe()
    pid, pidfd = clone.clone(clone.CLONE_NEWUSER)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        write(pid, maps)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.close(pidfd)
        os.waitpid(pid, 0)


def of_namespace(path: str) -> IdMaps:
    """Return the maps of the user namespace that *path* names.

    The kernel shows the maps of processes, not of namespaces: a child goes there.

    Raises:
        OSError, ValueError: it is no user namespace, or not ours to join.
    """
    fd = ns.open_namespace(path, clone.CLONE_NEWUSER)
    joined_reader, joined_writer = os.pipe()
    end_reader, end_writer = os.pipe()
    pid, pidfd = clone.clone(0)
    if pid == 0:
        try:
            os.close(end_writer)
            # From here on the root of that namespace has rights over this process.
            caps.prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)
            ns.setns(fd, clone.CLONE_NEWUSER, path)
            os.write(joined_writer, b"\0")
            os.read(end_reader, 1)
        except OSError as error:
            os.write(joined_writer, bytes([min(error.errno or 255, 255)]))
        finally:
            os._exit(0)
    os.close(joined_writer)
    os.close(end_reader)
    try:
        number = (os.read(joined_reader, 1) or b"\x05")[0]
        if number:
            raise OSError(number, os.strerror(number), path)
        return of_process(pid)
    finally:
        for descriptor in (fd, joined_reader, end_writer, pidfd):
            os.close(descriptor)
        os.waitpid(pid, 0)


def of_process(pid: int) -> IdMaps:
    """Return the maps of *pid*'s user namespace, in terms of our own.

    Raises:
        OSError: there is no such process.
    """
    return IdMaps(*(_read_map(f"/proc/{pid}/{kind}_map") for kind in ("uid", "gid")))


def _read_map(path: str) -> list[Mapping]:
    mappings = []
    with open(path) as file:
        for line in file:
            inside, outside, count = (int(word) for word in line.split())
            mappings.append((inside, outside, count))
    return mappings


def run_mapped(maps: IdMaps, function: Callable[[], Any]) -> None:
    """Run *function* as the root of a user namespace with *maps*, in a process of its own.

    Files that the ids of a container own can be made and removed so by a user
    who does not own those ids outside.

    Raises:
        SetupError: what *function* raised, as text.
    """
    ready_reader, ready_writer = os.pipe()
    error_reader, error_writer = os.pipe()
    pid, pidfd = clone.clone(clone.CLONE_NEWUSER)
    if pid == 0:
        _run_mapped_child(maps, function, ready_reader, ready_writer, error_writer)
    os.close(ready_reader)
    os.close(error_writer)
    try:
        try:
            write(pid, maps)
            os.write(ready_writer, b"x")
        finally:
            os.close(ready_writer)
        with os.fdopen(error_reader, "rb", closefd=False) as file:
            message = file.read().decode(errors="replace")
    except BaseException:
        signals.pidfd_send_signal(pidfd, signals.SIGKILL)
        raise
    finally:
        os.close(error_reader)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
    if status:
        what, why, mend = (*message.split("\0"), "", "")[:3]
        raise SetupError(what or "cannot work in a user namespace", why or f"status {status}", mend)


def _run_mapped_child(
    maps: IdMaps, function: Callable[[], Any], ready: int, other: int, errors: int
) -> None:
    status = 1
    try:
        os.close(other)
        if os.read(ready, 1) == b"x":
            if not maps.is_single() or os.geteuid() == 0:
                os.setgroups([])
            uid, gid = maps.first_ids()
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            caps.prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signals.SIGKILL)
            function()
            status = 0
    except BaseException as error:
        what = getattr(error, "what", type(error).__name__)
        why = getattr(error, "why", str(error))
        mend = getattr(error, "mend", "")
        os.write(errors, f"{what}\0{why}\0{mend}".encode(errors="replace")[:4096])
    finally:
        os._exit(status)
