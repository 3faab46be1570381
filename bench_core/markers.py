"""The marker of hook implementations (``hookimpl``)."""

import pluggy

__all__ = ["hookimpl"]

hookimpl = pluggy.HookimplMarker("exitbench")
"""Marks a function of a plugin as the implementation of the hook of its name (see ``bench_core.hookspecs``)."""
