"""The mount options of the runtime specification, as the kernel's flags.

Source: runtime-spec config.md, "Linux mount options"; mount(8).
"""

from __future__ import annotations

from firkin.errors import ConfigError
from firkin.linux import mount as m

# option: (flags to set, flags to clear), of mount(2)
_FLAGS = {
    "defaults": (0, 0),
    "ro": (m.MS_RDONLY, 0),
    "rw": (0, m.MS_RDONLY),
    "nosuid": (m.MS_NOSUID, 0),
    "suid": (0, m.MS_NOSUID),
    "nodev": (m.MS_NODEV, 0),
    "dev": (0, m.MS_NODEV),
    "noexec": (m.MS_NOEXEC, 0),
    "exec": (0, m.MS_NOEXEC),
    "nosymfollow": (m.MS_NOSYMFOLLOW, 0),
    "symfollow": (0, m.MS_NOSYMFOLLOW),
    "sync": (m.MS_SYNCHRONOUS, 0),
    "async": (0, m.MS_SYNCHRONOUS),
    "dirsync": (m.MS_DIRSYNC, 0),
    "mand": (m.MS_MANDLOCK, 0),
    "nomand": (0, m.MS_MANDLOCK),
    "atime": (0, m.MS_NOATIME),
    "noatime": (m.MS_NOATIME, 0),
    "diratime": (0, m.MS_NODIRATIME),
    "nodiratime": (m.MS_NODIRATIME, 0),
    "relatime": (m.MS_RELATIME, 0),
    "norelatime": (0, m.MS_RELATIME),
    "strictatime": (m.MS_STRICTATIME, 0),
    "nostrictatime": (0, m.MS_STRICTATIME),
    "lazytime": (m.MS_LAZYTIME, 0),
    "nolazytime": (0, m.MS_LAZYTIME),
    "iversion": (m.MS_I_VERSION, 0),
    "noiversion": (0, m.MS_I_VERSION),
    "silent": (m.MS_SILENT, 0),
    "loud": (0, m.MS_SILENT),
}

_PROPAGATION = {
    "private": m.MS_PRIVATE,
    "shared": m.MS_SHARED,
    "slave": m.MS_SLAVE,
    "unbindable": m.MS_UNBINDABLE,
}

# option: (attributes to set, attributes to clear), of mount_setattr(2); an
# access-time mode always clears the field first.
_ATTRIBUTES = {
    "ro": (m.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, m.MOUNT_ATTR_RDONLY),
    "nosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, m.MOUNT_ATTR_NOSUID),
    "nodev": (m.MOUNT_ATTR_NODEV, 0),
    "dev": (0, m.MOUNT_ATTR_NODEV),
    "noexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, m.MOUNT_ATTR_NOEXEC),
    "nodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, m.MOUNT_ATTR_NODIRATIME),
    "relatime": (m.MOUNT_ATTR_RELATIME, m.MOUNT_ATTR__ATIME),
    "norelatime": (0, m.MOUNT_ATTR__ATIME),
    "noatime": (m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME),
    "atime": (0, m.MOUNT_ATTR__ATIME),
    "strictatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "nostrictatime": (0, m.MOUNT_ATTR__ATIME),
    "nosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
}


_SWITCHES = {
    "remount": "remount",
    "tmpcopyup": "tmpcopyup",
    "src-nofollow": "src_nofollow",
    "dest-nofollow": "dest_nofollow",
    "copy-symlink": "copy_symlink",
}


def propagation_flags(name: str, field: str) -> int:
    """Return the ``MS_…`` flags of a propagation such as ``rslave``.

    Raises:
        ConfigError: on *field*, for an unknown word.
    """
    if name in _PROPAGATION:
        return _PROPAGATION[name]
    if name[:1] == "r" and name[1:] in _PROPAGATION:
        return _PROPAGATION[name[1:]] | m.MS_REC
    raise ConfigError(
        field, f"unknown propagation {name!r}", "use [r]private, [r]slave or [r]shared"
    )


class MountOptions:
    """One mount's options, sorted by the call that they go to."""

    __slots__ = (
        "attr_clr",
        "attr_set",
        "bind",
        "copy_symlink",
        "data",
        "dest_nofollow",
        "flags",
        "idmap",
        "propagation",
        "rec_clr",
        "rec_set",
        "recursive",
        "remount",
        "src_nofollow",
        "tmpcopyup",
    )

    def __init__(self) -> None:
        self.flags = 0  # MS_… for mount(2)
        self.data = ""  # for the file system
        self.bind = False
        self.recursive = False  # rbind
        self.attr_set = self.attr_clr = 0  # for the bind itself
        self.rec_set = self.rec_clr = 0  # for it and all below it
        self.propagation: list[int] = []
        self.idmap = ""  # "", "idmap" or "ridmap"
        self.tmpcopyup = False
        self.remount = False
        # crun's, for links in the place of a source or a destination
        self.src_nofollow = self.dest_nofollow = self.copy_symlink = False


def parse_options(options: list[str], field: str) -> MountOptions:
    """Sort *options* of the mount that stands at *field* of the configuration.

    Words that the specification's table lacks are the file system's own.

    Raises:
        ConfigError: an option that cannot be what it seems to be.
    """
    parsed = MountOptions()
    data: list[str] = []
    for option in options:
        if option in ("bind", "rbind"):
            parsed.bind = True
            parsed.recursive = option == "rbind"
        elif option in _FLAGS:
            to_set, to_clear = _FLAGS[option]
            parsed.flags = parsed.flags & ~to_clear | to_set
            attr_set, attr_clr = _ATTRIBUTES.get(option, (0, 0))
            parsed.attr_set = parsed.attr_set & ~attr_clr | attr_set
            # What is set later is no longer to be cleared, and the other way round.
            parsed.attr_clr = (parsed.attr_clr | attr_clr) & ~(attr_set & ~m.MOUNT_ATTR__ATIME)
        elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
            rec_set, rec_clr = _ATTRIBUTES[option[1:]]
            parsed.rec_set = parsed.rec_set & ~rec_clr | rec_set
            parsed.rec_clr = (parsed.rec_clr | rec_clr) & ~(rec_set & ~m.MOUNT_ATTR__ATIME)
        elif option in _PROPAGATION or (option[:1] == "r" and option[1:] in _PROPAGATION):
            parsed.propagation.append(propagation_flags(option, field))
        elif option in ("idmap", "ridmap"):
            parsed.idmap = option
        elif option in _SWITCHES:
            setattr(parsed, _SWITCHES[option], True)
        elif option.startswith(("idmap=", "ridmap=")):
            # crun's own form. As a word of the file system's it would be dropped, and the
            # files would keep their ids.
            raise ConfigError(field, "ids are given as uidMappings and gidMappings of the mount")
        else:
            data.append(option)
    if parsed.copy_symlink and (parsed.src_nofollow or parsed.dest_nofollow):
        raise ConfigError(field, "copy-symlink excludes src-nofollow and dest-nofollow")
    if parsed.bind and parsed.flags & (m.MS_SYNCHRONOUS | m.MS_DIRSYNC | m.MS_MANDLOCK):
        # These belong to the file system, which a bind mount doesn't make.
        parsed.flags &= ~(m.MS_SYNCHRONOUS | m.MS_DIRSYNC | m.MS_MANDLOCK)
    if parsed.bind and data:
        # docker and podman pass words of their own ("z", "nocopy") down to here.
        data = []
    parsed.data = ",".join(data)
    return parsed


def option_names() -> list[str]:
    """Return every option that is not left to the file system, sorted."""
    names = {"bind", "rbind", "idmap", "ridmap", *_FLAGS, *_PROPAGATION, *_SWITCHES}
    names |= {f"r{name}" for name in (*_ATTRIBUTES, *_PROPAGATION)}
    return sorted(names)
