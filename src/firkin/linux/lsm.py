"""Linux Security Modules: which of them the kernel runs.

Source: apparmor(7), selinux(8), proc_pid_attr(5), Documentation/admin-guide/LSM.
"""

from __future__ import annotations

import os

# The file of a thread in which each takes what the next execve is to run as. AppArmor has
# its own since Linux 5.8; before, the file belonged to whichever module came first.
APPARMOR_EXEC = ("attr/apparmor/exec", "attr/exec")
SELINUX_EXEC = ("attr/exec",)


def has_apparmor() -> bool:
    """Whether the kernel has AppArmor, and it is switched on."""
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


def has_selinux() -> bool:
    """Whether the kernel has SELinux, and a policy is loaded: its file system is mounted."""
    return os.path.exists("/sys/fs/selinux/enforce")
