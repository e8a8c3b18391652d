#!/bin/sh
# Debian's xz compresses and decompresses SCALE times 32 KiB of text.
size=$(($1 * 32768))
head -c $size /bench/corpus > /tmp/text
echo begin
# With its path: the shell would take busybox's own.
/usr/bin/xz -T1 -6 -k -f /tmp/text && /usr/bin/xz -d -c /tmp/text.xz | cmp - /tmp/text || exit 1
set -- $(sha256sum /tmp/text.xz)
echo "result $1"
rm /tmp/text /tmp/text.xz
