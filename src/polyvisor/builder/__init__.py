"""Images with a root file system, made by running a machine: see :func:`polyvisor.builder.build.build`."""
