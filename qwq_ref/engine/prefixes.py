"""Sessions that ended, kept because a later prompt may begin with their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ids

from .session import Session, common_prefix

_LEAST = 16  # tokens in common from which a fork is worth its pages


class Prefixes:
    """Ended sessions, the latest used last.

    most  sessions to keep
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[Session] = []

    def __len__(self) -> int:
        return len(self._kept)

    def common(self, ids: Ids[int], running: Iterable[Session] = ()) -> tuple[int, Session | None]:
        """Return the most first tokens that a session has in common with ids [T], at most T - 1, and that session."""
        found: tuple[int, Session | None] = (0, None)
        for session in [*self._kept, *running]:
            n = min(common_prefix(session.ids, ids[:-1]), session.held)
            if n > found[0]:
                found = (n, session)
        return found

    def begin(self, ids: Ids[int], new: Callable[[], Session], running: Iterable[Session] = ()) -> Session:
        """Return a session for a prompt, which holds the longest prefix of it that there is.

        A kept session that is a prefix as a whole is taken away from here. Of others, a fork is returned.
        """
        n, session = self.common(ids, running)
        if session is None or n < _LEAST:
            return new()
        if session in self._kept:
            self._kept.remove(session)
            if n == len(session.ids):
                return session
            self._kept.append(session)
        return session.fork(n)

    def fork(self, ids: Ids[int], new: Callable[[], Session], running: Iterable[Session] = ()) -> Session:
        """Return a session as `begin` does, but take none away."""
        n, session = self.common(ids, running)
        return new() if session is None else session.fork(n)

    def keep(self, session: Session) -> None:
        """Keep a session that ended, in place of those that are prefixes of it. The oldest one may go."""
        if len(session.ids) < _LEAST:
            return
        for other in [*self._kept]:
            n = common_prefix(other.ids, session.ids)
            if n == len(session.ids):  # another one has all of this one's tokens
                return
            if n == len(other.ids):
                self._kept.remove(other)
        self._kept.append(session)
        if len(self._kept) > self._most:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Let go of the session that was unused for the longest time. False: there is none."""
        if self._kept:
            del self._kept[0]
            return True
        return False
