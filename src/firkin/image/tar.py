"""Reading a tar stream of which nothing is believed.

:mod:`tarfile` takes a broken header in the middle for the end of the archive,
holds whatever an extended header claims in memory, and follows chains of them
by recursion; so this is a reader of its own, for what tar programs write today:
V7, ustar, GNU (long names, old sparse files) and pax with GNU's sparse files
0.0, 0.1 and 1.0. Names stay bytes.

Sources: POSIX pax(1), the GNU tar manual's "Tar Internals", libarchive's tar(5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 512
# What a single extended header may hold, as in Go's archive/tar.
_EXTENDED_LIMIT = 1 << 20
# Extended headers before one entry; real archives have three at most.
_EXTENDED_IN_A_ROW = 16
_EXTENTS_LIMIT = 1 << 18
_SIZE_LIMIT = 1 << 62
# Nanoseconds; about the year 36000, which any time_t can take.
_TIME_LIMIT = (1 << 40) * 1_000_000_000


class Corrupt(Exception):
    """The stream is not a whole tar archive."""


class _Truncated(Corrupt):
    """The stream ends where there must be more."""


class Stream(Protocol):
    """Where the bytes of an archive come from."""

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, none at the end."""


class Entry:
    """One entry.

    Attributes:
        name: as in the archive, not checked.
        kind: ``file``, ``directory``, ``symlink``, ``link`` (hard), ``fifo``, ``device``,
            or ``label`` (nothing to unpack).
        link: what a link points to.
        size: bytes of the file once unpacked.
        extents: of a sparse file, where its data goes: (offset, length), ascending.
        mtime: nanoseconds since the epoch.
        xattrs: extended attributes by full name.
    """

    __slots__ = (
        "extents", "gid", "kind", "link", "mode", "mtime", "name", "size", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, name: bytes, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.link = b""
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.size = 0
        self.extents: list[tuple[int, int]] | None = None
        self.xattrs: dict[bytes, bytes] = {}


_KINDS = {
    b"\0": "file", b"0": "file", b"7": "file", b"S": "file", b"1": "link", b"2": "symlink",
    b"3": "device", b"4": "device", b"5": "directory", b"D": "directory", b"6": "fifo",
    b"V": "label",
}  # fmt: skip


class TarReader:
    """The entries of a tar *stream*, each to be used before the next is asked for."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0  # bytes of the current entry's data not read yet
        self._padding = 0
        self._first = True
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Yield each entry up to the end-of-archive mark.

        Raises:
            Corrupt: anything that is not as the format has it, and a missing mark.
        """
        while (entry := self._next()) is not None:
            yield entry

    def read(self, size: int) -> bytes:
        """Return the next bytes of the current entry's data, *size* unless it ends before."""
        size = min(size, self._left)
        data = self._exactly(size)
        self._left -= size
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            parts = [data]
            missing = size - len(data)
            while missing:
                data = self._stream.read(missing)
                if not data:
                    raise _Truncated("it ends too early (truncated)")
                parts.append(data)
                missing -= len(data)
            data = b"".join(parts)
        return data

    def _next(self) -> Entry | None:
        while self._left:
            self.read(1 << 20)
        self._exactly(self._padding)
        self._padding = 0
        name = link = b""
        records: list[tuple[bytes, bytes]] = []
        for _ in range(_EXTENDED_IN_A_ROW):
            block = self._header()
            if block is None:
                if name or link or records:
                    raise Corrupt("an extended header without an entry")
                return None
            kind = block[156:157]
            if kind in b"LK":
                text = self._extended(block).split(b"\0", 1)[0]
                name, link = (text, link) if kind == b"L" else (name, text)
            elif kind in b"xX":
                records += _pax_records(self._extended(block))
            elif kind == b"g":
                for key, value in _pax_records(self._extended(block)):
                    if key in (b"uid", b"gid", b"mtime"):
                        self._globals[key] = value
            else:
                return self._entry(block, name, link, records)
        raise Corrupt("too many extended headers in a row")

    def _header(self) -> bytes | None:
        """Return the next header block, None for the end-of-archive mark."""
        try:
            block = self._exactly(_BLOCK)
        except _Truncated:
            if self._first:
                raise Corrupt("not a tar archive: too short") from None
            raise
        if block.count(0) == _BLOCK:
            return None
        stored = _number(block[148:156])
        blank = block[:148] + b" " * 8 + block[156:]
        # Some old programs added the bytes up as signed ones.
        if stored not in (sum(blank), sum(blank) - 256 * sum(b > 127 for b in blank)):
            why = "not a tar archive" if self._first else "corrupt: a header's checksum is wrong"
            raise Corrupt(why)
        self._first = False
        return block

    def _extended(self, block: bytes) -> bytes:
        size = _number(block[124:136])
        if not 0 <= size <= _EXTENDED_LIMIT:
            raise Corrupt(f"an extended header of {size} bytes")
        data = self._exactly(size)
        self._exactly(-size % _BLOCK)
        return data

    def _entry(
        self, block: bytes, name: bytes, link: bytes, records: list[tuple[bytes, bytes]]
    ) -> Entry:
        kind = _KINDS.get(block[156:157])
        name = name or _header_name(block)
        if kind is None:
            raise Corrupt(f"entry {name!r} is of unknown type {block[156:157]!r}")
        if kind == "file" and name.endswith(b"/"):  # V7 had no type for directories
            kind = "directory"
        entry = Entry(name, kind)
        entry.link = link or block[157:257].split(b"\0", 1)[0]
        entry.mode = _number(block[100:108]) & 0o7777
        entry.uid = _number(block[108:116])
        entry.gid = _number(block[116:124])
        entry.mtime = _number(block[136:148]) * 1_000_000_000
        stored = _number(block[124:136])

        pax = {**self._globals, **dict(records)}
        sparse: dict[bytes, bytes] = {}
        for key, value in pax.items():
            if key.startswith(b"GNU.sparse."):
                sparse[key[11:]] = value
            elif key.startswith(b"SCHILY.xattr."):
                entry.xattrs[key[13:]] = value
            elif not value:
                continue  # an empty value takes a global one back
            elif key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key == b"size":
                stored = _decimal(value)
            elif key == b"uid":
                entry.uid = _decimal(value)
            elif key == b"gid":
                entry.gid = _decimal(value)
            elif key == b"mtime":
                entry.mtime = _time(value)

        entry.mtime = max(-_TIME_LIMIT, min(entry.mtime, _TIME_LIMIT))
        # The size of a directory or link says nothing about data that follows.
        if kind != "file" and block[156:157] not in b"DV":
            stored = 0
        if not 0 <= stored < _SIZE_LIMIT:
            raise Corrupt(f"entry {entry.name!r} has the size {stored}")
        self._left = stored
        self._padding = -stored % _BLOCK
        entry.size = stored
        if block[156:157] == b"S":
            entry.size = _number(block[483:495])
            entry.extents = self._old_sparse(block)
        elif sparse and kind == "file":
            self._pax_sparse(entry, sparse, records)
        if entry.extents is not None:
            self._check_extents(entry)
        return entry

    def _old_sparse(self, block: bytes) -> list[tuple[int, int]]:
        extents: list[tuple[int, int]] = []
        start, count, more = 386, 4, block[482]
        while True:
            for at in range(start, start + 24 * count, 24):
                if block[at]:
                    extents.append(
                        (_number(block[at : at + 12]), _number(block[at + 12 : at + 24]))
                    )
            if not more:
                return extents
            if len(extents) > _EXTENTS_LIMIT:
                raise Corrupt("a sparse file in too many pieces")
            # These blocks stand between the header and the data.
            block = self._exactly(_BLOCK)
            start, count, more = 0, 21, block[504]

    def _pax_sparse(
        self, entry: Entry, sparse: dict[bytes, bytes], records: list[tuple[bytes, bytes]]
    ) -> None:
        entry.name = sparse.get(b"name", entry.name)
        entry.size = _decimal(sparse.get(b"realsize", sparse.get(b"size", b"")))
        if sparse.get(b"major") == b"1":
            numbers = self._sparse_map()
        elif b"map" in sparse:
            numbers = [_decimal(n) for n in sparse[b"map"].split(b",")]
        else:  # 0.0: one record for each number
            keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            numbers = [_decimal(value) for key, value in records if key in keys]
        if len(numbers) % 2:
            raise Corrupt(f"entry {entry.name!r} has a broken sparse map")
        entry.extents = list(zip(numbers[::2], numbers[1::2], strict=True))

    def _sparse_map(self) -> list[int]:
        """Read the map that stands before the data: decimal lines, padded to a block."""
        lines = [b""]
        wanted = 1
        while len(lines) <= wanted:
            block = self.read(_BLOCK)
            if len(block) < _BLOCK:
                raise Corrupt("a sparse map longer than its file")
            first, *others = block.split(b"\n")
            lines[-1] += first
            lines += others
            if len(lines[-1]) > 2 * _BLOCK:
                raise Corrupt("a broken sparse map")
            if wanted == 1 and len(lines) > 1:
                wanted = 1 + 2 * _decimal(lines[0])
                if wanted > 2 * _EXTENTS_LIMIT:
                    raise Corrupt("a sparse file in too many pieces")
        return [_decimal(line) for line in lines[1:wanted]]

    def _check_extents(self, entry: Entry) -> None:
        end = total = 0
        for offset, length in entry.extents or ():
            if offset < end or length < 0:
                raise Corrupt(f"entry {entry.name!r} has a broken sparse map")
            end = offset + length
            total += length
        if end > entry.size or entry.size >= _SIZE_LIMIT or total != self._left:
            raise Corrupt(f"entry {entry.name!r} has a broken sparse map")


def _header_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":  # GNU's "ustar  " keeps other things there
        # star and libarchive's "xustar" end the prefix before two times.
        end = 476 if block[508:512] == b"tar\0" else 500
        prefix = block[345:end].split(b"\0", 1)[0]
        if prefix:
            return prefix + b"/" + name
    return name


def _number(field: bytes) -> int:
    """Read a number of a header: octal digits, or GNU's base 256."""
    if field[0] & 0x80:
        # The bit below the mark is the sign.
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        sign = 1 << (8 * len(field) - 2)
        return value - 2 * sign if value & sign else value
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise Corrupt("not a tar archive, or corrupt: a header without numbers")
    return int(text, 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise Corrupt(f"not a number: {text[:40]!r}")
    return int(text)


def _time(text: bytes) -> int:
    whole, _, fraction = text.partition(b".")
    seconds = _decimal(whole.removeprefix(b"-"))
    nanoseconds = seconds * 1_000_000_000 + _decimal((fraction[:9] + b"000000000")[:9])
    return -nanoseconds if whole.startswith(b"-") else nanoseconds


def _pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split an extended header into its records, ``LENGTH KEY=VALUE\\n`` each."""
    records = []
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 20)
        if space < 0:
            raise Corrupt("a broken extended header")
        end = start + _decimal(data[start:space])
        equals = data.find(b"=", space, end)
        if equals < 0 or end > len(data) or data[end - 1] != 0x0A:
            raise Corrupt("a broken extended header")
        records.append((data[space + 1 : equals], data[equals + 1 : end - 1]))
        start = end
    return records
