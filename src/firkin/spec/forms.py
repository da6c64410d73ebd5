"""The forms that strings of a configuration must have.

Each function says in a few words what is wrong with its argument, as the
continuation of "'the value' ...", and returns "" when nothing is.
"""

from __future__ import annotations

DIGITS = frozenset("0123456789")
ALNUM = DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

# __NEW_UTS_LEN of linux/utsname.h: sethostname(2) refuses more.
UTS_LENGTH = 64
# IFNAMSIZ of linux/if.h, less its NUL.
INTERFACE_LENGTH = 15


def is_number(text: str) -> bool:
    """Tell whether *text* is a decimal number as SemVer 2.0.0 spells them."""
    return bool(text) and DIGITS.issuperset(text) and (text == "0" or text[0] != "0")


def version(text: str) -> str:
    """A SemVer 2.0.0 version that this runtime can read (config.md, "Specification version")."""
    rest, plus, build = text.partition("+")
    core, dash, release = rest.partition("-")
    numbers = core.split(".")
    suffixes = (release.split(".") if dash else []) + (build.split(".") if plus else [])
    if len(numbers) != 3 or not all(is_number(number) for number in numbers):
        return "is not a version of the form 1.2.3"
    if any(not suffix or not (ALNUM | {"-"}).issuperset(suffix) for suffix in suffixes):
        return "is not a version of the form 1.2.3-suffix"
    # 0.x are the drafts of 1.0. The specification's own example says 0.5.0-dev,
    # and the other runtimes read it.
    if numbers[0] not in ("0", "1"):
        return "is a version that is not supported: expected 1.x.y"
    return ""


def nonempty(text: str) -> str:
    """Anything but the empty string."""
    return "" if text else "is empty"


def absolute(text: str) -> str:
    """An absolute path."""
    return "" if text.startswith("/") else "is not an absolute path"


def environment(text: str) -> str:
    """``NAME=value`` with a name: execve(2) takes anything, getenv(3) finds only these."""
    name, equals, _ = text.partition("=")
    if not equals:
        return "has no '='"
    return "" if name else "has no name before '='"


def hostname(text: str) -> str:
    """A name that sethostname(2) and setdomainname(2) take."""
    return "" if len(text.encode()) <= UTS_LENGTH else f"is longer than {UTS_LENGTH} bytes"


def interface(text: str) -> str:
    """A name that a network interface can have: ``dev_valid_name`` of net/core/dev.c."""
    if not text or len(text.encode()) > INTERFACE_LENGTH:
        return f"is not an interface's name: expected 1 to {INTERFACE_LENGTH} bytes"
    if text in (".", "..") or any(c in "/:" or c.isspace() for c in text):
        return "is not an interface's name: it has '/', ':' or white space, or is a dot"
    return ""


def page_size(text: str) -> str:
    """The size of a huge page: a number and KB, MB or GB."""
    if text[-2:] in ("KB", "MB", "GB") and is_number(text[:-2]) and text[0] != "0":
        return ""
    return "is not a page size: expected a number and KB, MB or GB, as 2MB"


def cpu_list(text: str) -> str:
    """A list of processors, as ``0-3,5``."""
    return "" if (DIGITS | set(", -")).issuperset(text) else "is not a list of processors, as 0-3,5"


def device_access(text: str) -> str:
    """Any of r (read), w (write) and m (mknod)."""
    return "" if set("rwm").issuperset(text) else "is not made of 'r', 'w' and 'm'"


def cgroup_path(text: str) -> str:
    """A path that stays below the cgroup's mount; systemd's form is ``slice:prefix:name``."""
    return "has '..' in it" if ".." in text.replace(":", "/").split("/") else ""


def file_name(text: str) -> str:
    """The name of one file in a folder that is known, and no path out of it."""
    return "is not a file's name" if "/" in text or text in ("", ".", "..") else ""


def class_of_service(text: str) -> str:
    """The name of a folder in resctrl's file system, or that file system's root."""
    return "" if text == "/" else file_name(text)


def one_line(text: str) -> str:
    """Text without a line's end (config-linux.md, "IntelRdt")."""
    return "has more than one line" if "\n" in text else ""


def memory_bandwidth(text: str) -> str:
    """One line that starts with ``MB:`` (config-linux.md, "IntelRdt")."""
    return "" if text.startswith("MB:") and "\n" not in text else "is not one line 'MB:...'"
