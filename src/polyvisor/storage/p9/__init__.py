"""Sharing a directory of the host by 9P2000.L: messages, a server, and the tree of files that it serves."""
