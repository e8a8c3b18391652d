"""What hooks are good for: coverage, profiles, system calls, pictures of memory accesses, caches."""
