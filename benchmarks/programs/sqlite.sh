#!/bin/sh
# Debian's sqlite3 runs work.sql with a table of SCALE times 1000 rows.
sed "s/@ROWS@/$(($1 * 1000))/" /bench/work.sql > /tmp/script
echo begin
sqlite3 -batch -bail :memory: < /tmp/script > /tmp/answers || exit 1
set -- $(sha256sum /tmp/answers)
echo "result $1"
rm /tmp/script /tmp/answers
