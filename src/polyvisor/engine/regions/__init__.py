"""The region JIT: hot code, compiled over many basic blocks.

:mod:`.plan` chooses the blocks of a region, :mod:`.windows` the accesses that share a look at the TLB.  :mod:`.inline`
turns one instruction's function into LLVM IR with constant operands, its accesses to memory by way of :mod:`.accesses`,
and :mod:`.emit` writes the region's function, :mod:`.compile` makes machine code of it, :mod:`.region` says what is
asked of it and what it gives, and :mod:`.manager` finds what is hot and installs it.
"""
