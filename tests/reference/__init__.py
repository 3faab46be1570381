"""Slow references in plain Python, written from the papers' equations and not from the project's code."""
