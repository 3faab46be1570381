"""Small tools that know nothing of networks, exits or boards."""
