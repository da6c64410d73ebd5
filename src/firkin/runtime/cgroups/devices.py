"""Which device numbers a container may use: the rules, apart from how they are enforced.

A rule is ``(allow, type, major, minor, access)``; ``None`` is "any number". The
last rule that covers a kind of access decides, as the OCI runtime-spec says
("MUST apply entries in the listed order"). All are denied at first, and the devices that
every container has come last, as in runc.
"""

from __future__ import annotations

from firkin.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    Rule = tuple[bool, str, int | None, int | None, str]
    Rules = tuple[Rule, ...]
    Key = tuple[str, int | None, int | None]

# What OCI's "Default Devices" need, and mknod of any node, which is harmless
# without the right to open it; runc's AllowedDevices.
DEFAULTS: Rules = (
    (True, "c", None, None, "m"),
    (True, "b", None, None, "m"),
    (True, "c", 1, 3, "rwm"),  # /dev/null
    (True, "c", 1, 5, "rwm"),  # /dev/zero
    (True, "c", 1, 7, "rwm"),  # /dev/full
    (True, "c", 1, 8, "rwm"),  # /dev/random
    (True, "c", 1, 9, "rwm"),  # /dev/urandom
    (True, "c", 5, 0, "rwm"),  # /dev/tty
    (True, "c", 5, 2, "rwm"),  # /dev/ptmx
    (True, "c", 136, None, "rwm"),  # /dev/pts/*
)

# What runc and crun allow besides: a tunnel takes CAP_NET_ADMIN in the container's own network.
TUNNEL: Rules = ((True, "c", 10, 200, "rwm"),)  # /dev/net/tun


def complete(given: Rules, more: Rules = ()) -> Rules:
    """The rules of a configuration between "deny all" and the defaults, then *more*.

    Returns an empty tuple where everything is allowed (a privileged container):
    then there is nothing to enforce.
    """
    rules: list[Rule] = []
    allowed = False
    for rule in given:
        allow, kind, major, minor, access = rule
        if kind == "a" and major is None and minor is None and set(access) == set("rwm"):
            rules, allowed = [], allow  # nothing before it matters
        else:
            rules.append(rule)
    if allowed and not any(not rule[0] for rule in rules):
        return ()
    first: Rule = (allowed, "a", None, None, "rwm")
    return (first, *rules, *DEFAULTS, *more)


def exceptions(rules: Rules) -> tuple[bool, dict[Key, str]]:
    """Reduce *rules* to a default and a set of exceptions, which is all that v1 knows.

    Returns:
        Whether devices are allowed by default, and the access of each exception.

    Raises:
        Unsupported: a rule takes a part out of a wider exception, which the v1
            controller would silently ignore (it removes exact matches only).
    """
    default = rules[0][0]
    found: dict[Key, str] = {}
    for allow, kind, major, minor, access in rules[1:]:
        for one in ("b", "c") if kind == "a" else (kind,):
            key = (one, major, minor)
            if allow != default:
                found[key] = _ordered(set(found.get(key, "")) | set(access))
                continue
            left = set(found.pop(key, "")) - set(access)
            if left:
                found[key] = _ordered(left)
            for other, its in found.items():
                if other != key and set(its) & set(access) and _overlap(other, key):
                    if _inside(other, key):
                        found[other] = _ordered(set(its) - set(access))
                        continue
                    raise Unsupported(
                        f"cannot {'allow' if allow else 'deny'} device {_text(key)} {access}",
                        f"cgroup v1 cannot take it out of {_text(other)} {its}",
                        "list the devices one by one",
                    )
    return default, {key: access for key, access in found.items() if access}


def _overlap(a: Key, b: Key) -> bool:
    return a[0] == b[0] and all(
        x is None or y is None or x == y for x, y in zip(a[1:], b[1:], strict=True)
    )


def _inside(a: Key, b: Key) -> bool:
    return all(y is None or x == y for x, y in zip(a[1:], b[1:], strict=True))


def _ordered(access: set[str]) -> str:
    return "".join(c for c in "rwm" if c in access)


def _text(key: Key) -> str:
    kind, major, minor = key
    return f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor}"
