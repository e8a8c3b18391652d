"""Forks: machines that are copies of a running one, each in a process of its own (``os.fork``).

``start`` copies the process, ``fork`` is the copy as the one who asked sees it, ``life`` what the copy does, and
``remote_object`` lets the one use what is in the other.
"""
