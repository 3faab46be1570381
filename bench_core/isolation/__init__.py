"""Isolation of foreign code (plugins, user networks), so that it changes nothing but its own result."""
