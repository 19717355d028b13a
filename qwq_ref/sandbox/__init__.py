"""A sandbox: programs that nobody vouches for run here, with no network, no files and little of everything else.

process     start a program, and end it
ways        which containment works on this machine: bubblewrap, or namespaces of our own
view        the files that a program sees
seccomp     the system calls that it cannot make
namespaces  a script: the part of bubblewrap that is needed, for machines without it
inside      the code that runs in the sandbox
"""

from .process import LIMITS, Contained, Limits, start
from .ways import WAYS, containment, problem, require_containment

__all__ = ["LIMITS", "WAYS", "Contained", "Limits", "containment", "problem", "require_containment", "start"]
