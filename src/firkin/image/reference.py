"""What the IMAGE of a command line names."""

from __future__ import annotations

from firkin.errors import UsageError


class Reference:
    """What IMAGE names: *kind* is ``"host"``, ``"scratch"`` or ``"path"``, *value* the text."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: str, value: str) -> None:
        self.kind = kind
        self.value = value


def parse(image: str) -> Reference:
    """Tell what *image* names, without looking whether it exists.

    A path is what a shell's user would call one: it starts with ``/``, ``./`` or
    ``../``, or is ``.`` or ``..``. Everything else is a name, of which ``host``
    and ``scratch`` are reserved.

    Raises:
        UsageError: empty, impossible as a path, or an image's name.
    """
    if not image:
        raise UsageError("cannot use image ''", "it is empty", "give a path, 'host' or 'scratch'")
    if "\0" in image:
        raise UsageError(f"cannot use image '{image}'", "null byte in path")
    if image in ("host", "scratch"):
        return Reference(image, image)
    if image.startswith(("/", "./", "../")) or image in (".", ".."):
        return Reference("path", image)
    return _by_name(image)


def _by_name(image: str) -> Reference:
    raise UsageError(
        f"cannot use image '{image}'",
        "images by name are not supported yet",
        "give a path such as ./rootfs.tar.gz, or 'host' or 'scratch'",
    )
