"""What the programs' exit codes mean; launchers decide by them whether to start a job again."""

DONE = 0
# A fault of the program, with a traceback.
FAULT = 1
# A mistake that the person can mend, told in one line.
USAGE = 2
# Training was asked to stop (SIGTERM), and has saved, or taken no step yet: start it again.
PREEMPTED = 42
# Training stood still and the watchdog ended it, with the stacks of all threads: start it again.
STALLED = 43
# A health gate stopped training: it would stop again.
UNHEALTHY = 44
# Training's configuration or data can't be used (sysexits' EX_CONFIG): mend it first.
CONFIGURATION = 78
# Ctrl-C.
INTERRUPTED = 130
# Asked to stop (SIGTERM), all but training: what was unfinished is gone.
TERMINATED = 143
