"""What disks are kept in on the host."""
