"""Start a command as an orderly parent would: SIGINT not ignored; and with --powerless without root's special rights.

A shell starts what runs in its background with SIGINT ignored, and children inherit that. Root may read and write
every file, so that a test of permissions would find none missing; who is not root has nothing to give up.
"""

import ctypes
import os
import signal
import sys

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # capabilities(7)


def give_up_rights() -> None:
    """From the next program on, permissions count for root too."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "root cannot give up its rights here")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = sys.argv[1:]
    if command[0] == "--powerless":
        del command[0]
        if os.geteuid() == 0:
            give_up_rights()
    os.execv(command[0], command)
