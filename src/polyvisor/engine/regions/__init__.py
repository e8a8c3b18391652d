"""The region JIT: hot code, compiled over many basic blocks.

:mod:`.inline` turns one instruction's function into LLVM IR with constant operands, :mod:`.plan` chooses the blocks of
a region, :mod:`.emit` writes the region's function, :mod:`.compile` makes machine code of it, :mod:`.arena` links that
into this process, and :mod:`.manager` finds what is hot and installs it.
"""
