"""A stand-in for the calls of Ray that a pipeline needs: actors in this process, which a test can kill."""

import pickle

from qwq_ref.cluster.pipeline import Calls


class LostError(Exception):
    """A process that is gone."""


class FailedError(Exception):
    """Work that failed."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class _Method:
    def __init__(self, actor, name):
        self._actor, self._name = actor, name

    def remote(self, *arguments):
        """Do the work at once -> a reference: a function that gives the result, or raises."""
        return self._actor.do(self._name, arguments)


class Actor:
    """An actor. Arguments and results are pickled, as between processes.

    dies_after  calls of `flow` that it still answers; None: it goes on
    """

    def __init__(self, made):
        self.made, self.dead, self.dies_after = made, False, None

    def __getattr__(self, name):
        return _Method(self, name)

    def do(self, name, arguments):
        if name == "flow" and self.dies_after is not None:
            self.dies_after -= 1
            self.dead = self.dead or self.dies_after < 0
        if self.dead:
            return _raises(LostError("the actor died"))
        try:
            values = [get(each) if callable(each) else each for each in arguments]
        except LostError as problem:
            return _raises(problem)
        try:
            found = getattr(self.made, name)(*pickle.loads(pickle.dumps(values)))
        except Exception as problem:
            return _raises(FailedError(problem))
        data = pickle.dumps(found)
        return lambda: pickle.loads(data)


def _raises(problem):
    def get():
        raise problem

    return get


def get(refs, seconds=None):
    return [each() for each in refs] if isinstance(refs, list) else refs()


class Actors:
    """All actors that were started, by the numbers of their stages: the last is the present one."""

    def __init__(self, make):
        """make: the number of a stage -> what an actor holds."""
        self._make = make
        self.started = {}

    def start(self, i):
        self.started.setdefault(i, []).append(Actor(self._make(i)))
        return self.started[i][-1]

    @staticmethod
    def kill(actor):
        actor.dead = True

    @property
    def calls(self):
        return Calls(self.start, get, self.kill, LostError, FailedError)
