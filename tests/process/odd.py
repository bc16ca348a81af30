"""For HANDLERS: no handlers, but a process whose wall clock is wrong, or that never looks without being told to.

JOBPIPE_TEST_CLOCK is how many seconds its clock is ahead; JOBPIPE_TEST_POLL how many pass between two looks of its own.
"""

import os
import time

from jobpipe.engine import waiting
from jobpipe.store.postgres import listening

real, ahead = time.time, float(os.environ.get("JOBPIPE_TEST_CLOCK", "0"))

if ahead:
    time.time = lambda: real() + ahead

if poll := os.environ.get("JOBPIPE_TEST_POLL"):
    listening.LOOK_EVERY = waiting.LOOK_AGAIN = float(poll)
