#!/bin/sh
# Debian's busybox compresses and decompresses SCALE times 32 KiB of text.
size=$(($1 * 32768))
head -c $size /bench/corpus > /tmp/text
echo begin
gzip -c /tmp/text > /tmp/text.gz && gzip -d -c /tmp/text.gz | cmp - /tmp/text || exit 1
set -- $(sha256sum /tmp/text.gz)
echo "result $1"
rm /tmp/text /tmp/text.gz
