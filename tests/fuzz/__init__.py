"""Damaged files for every loader: ``python -m tests.fuzz LOADER --cases 20000`` (docs/reliability.md has the figures).

Each loader has valid files; they are changed by bytes and by their meaning, and every case ends in a result or in one
line of the documented error. Anything else is a failure: another exception, a message that is no plain line, more than
five seconds of processor time. Mutations and the loop over one case are those of ``tests.fuzz.files``.
"""
