"""A seccomp filter with a listener: the child loads it, the parent gets the listener.

From the moment that the filter is loaded the child may stop at any system call until
somebody answers for it. So what hands the listener over must be a call that the filter
lets through; the profile decides which of two it is.

Source: seccomp_unotify(2), pidfd_getfd(2).
"""

from __future__ import annotations

import os

from firkin.init import channel as protocol
from firkin.init.channel import Channel
from firkin.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Plan.listener: the descriptor goes with a message, by sendmsg(2); or write(2) tells its
# number, and the parent, which needs CAP_SYS_PTRACE for that, takes a copy.
BY_MESSAGE = 1
BY_NUMBER = 2


class Loader:
    """Loads a filter and hands its listener over.

    Args:
        load: loads the filter, and returns its listener.
        way: how it is handed over.
        channel: to the parent.
    """

    __slots__ = ("_channel", "_load", "_way")

    def __init__(self, load: Callable[[], int], way: int, channel: Channel) -> None:
        self._load = load
        self._way = way
        self._channel = channel

    def load(self) -> int:
        """Load the filter, and wait until the listener is in its listener's hands.

        Returns:
            0, as a filter without a listener does.
        """
        fd = self._load()
        libc.because("the listener goes to the one who answers for our system calls")
        if self._way == BY_MESSAGE:
            self._channel.send(protocol.LISTENER, fds=(fd,))
        else:
            os.write(self._channel.fileno(), protocol.LISTENER + str(fd).encode())
        self._channel.expect(protocol.LISTENED)
        os.close(fd)
        return 0
