"""Files of other containers and of the store: out of reach from inside, and for other users."""

from __future__ import annotations

import uuid
from pathlib import Path

from support.attack import inside
from support.command import Firkin, execute
from support.containers import running
from support.requires import need


def test_from_inside(firkin: Firkin, busybox_root: Path) -> None:
    mark = f"secret-{uuid.uuid4().hex}"
    with running(firkin, image=busybox_root, script=f"touch /{mark} /tmp/{mark}") as other:
        # Its files are there, on the host.
        assert other.path(f"/{mark}").exists()
        code = f"""
found = []
for top in ("/", "/proc/1/root", "/proc/self/cwd/../.."):
    for folder, names, files in os.walk(top):
        if folder == top:
            names[:] = set(names) - {{"proc", "sys", "usr"}}
        found += [f for f in files if f == {mark!r}]
print(found, os.path.exists({str(firkin.folder)!r}))
"""
        assert inside(firkin, code=code).stdout == "[] False\n"
        # What names the store is in mountinfo, and leads nowhere.
        upper = other.mounts()["/"][2].split("upperdir=")[1].split(",")[0]
        assert (Path(upper) / mark).exists()
        code = f"print(tried(os.listdir, {upper!r}))"
        assert inside(firkin, code=code).stdout == "ENOENT\n"


def test_for_other_users(firkin: Firkin, busybox_root: Path) -> None:
    need("user:firkin-test")
    with running(firkin, image=busybox_root, script="touch /new") as box:
        upper = Path(box.mounts()["/"][2].split("upperdir=")[1].split(",")[0])
        assert (upper / "new").exists()
        for path in (upper.parent.parent, Path(f"/proc/{box.pid}/root/")):
            done = execute(["ls", str(path)], user="firkin-test")
            assert "Permission denied" in done.stderr, path
