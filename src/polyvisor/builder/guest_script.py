"""What runs in the machine that builds an image: a busybox shell script, in our initramfs.

It gets an archive on the disk with serial number ``input``: packages, lists of them, and the recipe's files; it works
on ``scratch`` and makes a file system on ``target``. A line ``@@ TEXT`` of its output says what it is doing.

For the same result each time, it works at a fixed time, and takes away what programs leave that depends on
when and where they ran. mke2fs does the rest: it sorts, and with SOURCE_DATE_EPOCH no time is later than that.
"""

from __future__ import annotations

# Variables: EPOCH, UUID, SEED, LABEL, SALT, HOSTNAME, APT_MIRROR, SUITE, and those of the lists in /scratch/in.
BUILD = r"""
set -eu
stage() { echo "@@ $*"; }
disk() {
    for device in /sys/block/vd*; do
        serial=
        read -r serial < "$device/serial" || :
        [ "$serial" != "$1" ] || { echo "/dev/${device##*/}"; return; }
    done
    echo "there is no disk $1" >&2
    return 1
}
in=/scratch/in root=/scratch/root tools=/scratch/tools
source=$(disk input)
scratch=$(disk scratch)
target=$(disk target)

stage "unpacking packages"
date -s "@$EPOCH" > /dev/null
mke2fs -b 4096 -i 8192 "$scratch" > /dev/null
mkdir -p /scratch
# What is on it need not survive anything, so nobody waits for the host's disk.
mount -t ext4 -o noatime,nobarrier "$scratch" /scratch
mkdir "$root" "$tools"
tar -xf "$source" -C /scratch

unpack() { ar -p "$in/debs/$1.deb" data.tar | tar -xpf - -C "$2"; }
links() {
    mkdir -p "$1/usr/bin" "$1/usr/sbin" "$1/usr/lib"
    for name in bin sbin lib; do
        [ -e "$1/$name" ] || ln -s "usr/$name" "$1/$name"
    done
}
links "$tools"
mkdir -p "$tools/dev" "$tools/proc" "$tools/root"
for name in $(cat $in/tools); do unpack "$name" "$tools"; done

# base-files has the links that merge / and /usr, and they must be there before anything else.
for name in $(cat $in/essential); do
    [ "${name#*-}" != base-files ] || unpack "$name" "$root"
done
links "$root"
for name in $(cat $in/essential); do
    [ "${name#*-}" = base-files ] || unpack "$name" "$root"
done
for name in dev proc run sys; do mkdir -p "$root/$name"; done
mkdir -p -m 1777 "$root/tmp"

# Programs are called by their paths: of a name alone, busybox would run its own applet.
inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        DEBCONF_NONINTERACTIVE_SEEN=true SOURCE_DATE_EPOCH="$EPOCH" PERL_HASH_SEED=0 PYTHONHASHSEED=0 \
        chroot "$root" "$@"
}
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind /dev/pts "$root/dev/pts"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs tmp "$root/tmp"
mkdir "$root/run/build"
mount --bind "$in" "$root/run/build"

paths() { sed 's|.*|/run/build/debs/&.deb|' "$1"; }
if [ -x "$root/usr/bin/dpkg" ]; then
    # Nothing is to be started here.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/triggers"
    : > "$root/var/lib/dpkg/status"
    : > "$root/var/lib/dpkg/available"
    [ -e "$root/usr/bin/awk" ] || [ ! -e "$root/usr/bin/mawk" ] || ln -s mawk "$root/usr/bin/awk"
    install="/usr/bin/dpkg --force-unsafe-io --force-confold"
    # What these four make is needed by the others' scripts, whatever their order.
    for first in base-passwd base-files perl-base debconf; do
        path=$(paths $in/essential | grep -E "/[0-9]+-$first\.deb$" || :)
        [ -z "$path" ] || inside $install --force-depends --install $path
    done
    stage "installing the essential packages"
    inside $install --force-depends --install $(paths $in/essential)
    count=0
    total=$(cat $in/batch-* 2> /dev/null | wc -l)
    for batch in $in/batch-*; do
        [ -e "$batch" ] || continue
        stage "installing packages: $count of $total"
        inside $install --install $(paths "$batch")
        count=$((count + $(wc -l < "$batch")))
    done
    inside $install --configure -a
    wrong=$(inside /usr/bin/dpkg --audit)
    [ -z "$wrong" ] || { echo "$wrong" >&2; exit 1; }
else
    # A system without dpkg, such as one of busybox alone: packages are unpacked, and their scripts not run.
    for name in $(cat $in/batch-* 2> /dev/null); do unpack "$name" "$root"; done
fi

stage "setting up the system"
# The modules that our initramfs has are those for this kernel.
mkdir -p "$root/usr/lib/modules"
cp -a /usr/lib/modules/. "$root/usr/lib/modules/"
[ ! -x "$root/usr/sbin/depmod" ] || inside /usr/sbin/depmod "$(uname -r)"
mkdir -p "$root/etc"
echo "$HOSTNAME" > "$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n' "$HOSTNAME" \
    > "$root/etc/hosts"
[ ! -d "$root/etc/default" ] || [ -e "$root/etc/default/locale" ] || echo LANG=C.UTF-8 > "$root/etc/default/locale"
printf 'UUID=%s\t/\text4\tdefaults\t0\t1\n' "$UUID" > "$root/etc/fstab"
if [ -d "$root/etc/apt/sources.list.d" ]; then
    sources="$root/etc/apt/sources.list.d/debian.sources"
    example="$root/usr/share/doc/apt/examples/debian.sources"
    if [ -n "$APT_MIRROR" ]; then
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$APT_MIRROR" "$SUITE" \
            /usr/share/keyrings/debian-archive-keyring.pgp > "$sources"
    elif [ -e "$example" ]; then
        # Its first entry is the archive, with the suites of a release.
        sed -e '/^#/d' -e '/^$/,$d' -e "s/^Suites:.*/Suites: $SUITE/" -e 's/^Components:.*/Components: main/' \
            "$example" > "$sources"
    fi
    mkdir -p "$root/var/lib/apt"
    cp $in/extended_states "$root/var/lib/apt/extended_states"
fi
if [ -x "$root/usr/lib/systemd/systemd-networkd" ]; then
    mkdir -p "$root/etc/systemd/network"
    printf '[Match]\nType=ether\n\n[Network]\nDHCP=yes\n' > "$root/etc/systemd/network/80-dhcp.network"
    inside /usr/bin/systemctl enable systemd-networkd.service
    inside /usr/bin/systemctl disable systemd-networkd-wait-online.service
fi
if [ -x "$root/usr/lib/systemd/systemd-resolved" ]; then
    rm -f "$root/etc/resolv.conf"
    ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
fi
if [ -x "$root/usr/sbin/sshd" ] && [ -d "$root/etc/systemd/system" ]; then
    cat > "$root/etc/systemd/system/ssh-host-keys.service" <<END
[Unit]
Description=Host keys of this machine's own
Before=ssh.service ssh.socket
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
END
    inside /usr/bin/systemctl enable ssh-host-keys.service
fi

password() {
    case $2 in
        none) inside /usr/sbin/usermod -p '*' "$1" ;;
        empty) inside /usr/sbin/usermod -p '' "$1" ;;
        *) inside /usr/sbin/usermod -p "$(mkpasswd -m sha512 -S "$SALT" -P 0 < "$in/$2")" "$1" ;;
    esac
}
if [ -x "$root/usr/sbin/usermod" ]; then
    password root "$ROOT_PASSWORD"
    while read -r name secret shell groups; do
        for group in $(echo "$groups" | tr , ' '); do
            grep -q "^$group:" "$root/etc/group" || inside /usr/sbin/groupadd --system "$group"
        done
        inside /usr/sbin/useradd --create-home --shell "$shell" ${groups:+--groups "$groups"} "$name"
        password "$name" "$secret"
    done < $in/users
elif [ -s $in/users ]; then
    echo "users need the package passwd" >&2
    exit 1
fi

# By a program that is there in any system, and inside, as links in a path lead elsewhere from here.
cp /usr/bin/busybox $in/busybox
put_file='mkdir -p "${3%/*}"; rm -f "$3"; cp "/run/build/files/$1" "$3"; chmod "$2" "$3"'
while read -r name mode path; do
    inside /run/build/busybox sh -e -c "$put_file" sh "$name" "$mode" "$path" < /dev/null
done < $in/files.list
if [ -s $in/commands ]; then
    stage "running the recipe's commands"
    for command in $(cat $in/commands); do
        echo "+ $(cat "$in/$command")"
        inside /bin/sh -e -c "$(cat "$in/$command")" < /dev/null
    done
fi

stage "cleaning up"
umount "$root/run/build"
umount "$root/run" "$root/tmp" "$root/dev/pts" "$root/dev" "$root/proc"
cd "$root"
rm -rf usr/sbin/policy-rc.d var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* var/log/apt/* \
    var/log/journal var/log/dpkg.log var/log/alternatives.log var/lib/dpkg/*-old var/lib/dpkg/lock* \
    var/lib/dpkg/updates/* var/cache/debconf/*-old var/cache/ldconfig/aux-cache var/lib/systemd/random-seed \
    var/lib/systemd/credential.secret etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid- \
    etc/ssh/ssh_host_*_key etc/ssh/ssh_host_*_key.pub root/.bash_history root/.cache var/tmp/*
[ ! -d var/log ] || find var/log -type f | while read -r log; do : > "$log"; done
if [ -e etc/machine-id ] || [ -d etc/systemd ]; then : > etc/machine-id; fi
# All that systemd does after an update of /usr is done.
if [ -d etc/systemd ]; then : > etc/.updated; : > var/.updated; fi
[ -L var/lib/dbus/machine-id ] || rm -f var/lib/dbus/machine-id
cd /

stage "making the file system"
used=$(du -sk "$root" | cut -f 1)
size=$(($(cat "/sys/block/${target##*/}/size") / 2))
if [ $((used + used / 8)) -gt "$size" ]; then
    echo "$((used / 1024)) MiB of files do not fit on a disk of $((size / 1024)) MiB: give a larger size" >&2
    exit 1
fi
mount --bind /dev "$tools/dev"
mount -t proc proc "$tools/proc"
mount --bind "$root" "$tools/root"
env -i PATH=/usr/sbin:/usr/bin SOURCE_DATE_EPOCH="$EPOCH" chroot "$tools" /usr/sbin/mke2fs \
    -q -F -t ext4 -L "$LABEL" -U "$UUID" \
    -E "hash_seed=$SEED,lazy_itable_init=0,lazy_journal_init=0" -d /root "$target"
env -i PATH=/usr/sbin:/usr/bin chroot "$tools" /usr/sbin/e2fsck -f -n "$target" > /dev/null
sync
stage "done"
"""
