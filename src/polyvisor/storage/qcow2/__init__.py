"""qcow2 images: disks that grow as they are written, over backing files, with snapshots inside.

The format is that of QEMU's ``docs/interop/qcow2.txt``, called "the specification" here.
"""
