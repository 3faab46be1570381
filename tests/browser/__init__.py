"""The page in a browser; not part of the plain run (``tox -e browser``)."""
