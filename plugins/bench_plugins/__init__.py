"""The shipped methods, one plugin each, registered like any other plugin."""
