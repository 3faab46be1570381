"""What holds for all tests."""

import signal

# A job in the background may have been started deaf to Ctrl-C; the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
