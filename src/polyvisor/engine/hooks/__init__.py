"""Hooks: users' functions, written in the description language, that become part of the code that executes guests.

``declare`` is what users write; ``events`` what they can be told of; ``compile`` makes SSA of their functions,
``instrument`` puts that into the SSA of instructions, ``lowering`` says what it is in LLVM IR; ``code`` is the native
code of a set of hooks, ``states`` their states, ``observe`` tells hooks of what the reference executor does;
``install`` swaps them in and out.
"""
