"""The text files of our initramfs: its first process and the little configuration that a shell expects.

They are busybox sh. On an emulator every process the guest starts costs time, so the script uses the shell's own
means where it can, and loads only the drivers of devices that are there.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import cpio

INIT = r"""#!/bin/sh
# First process of a polyvisor image. It understands these words of the kernel's command line:
#   polyvisor.run=BASE64       run this shell command, then power off with its exit status
#   polyvisor.winsize=RxC      the console has R rows and C columns
#   polyvisor.share=TAG:PATH   mount the host's directory with this tag there, not at /mnt/TAG
#   polyvisor.net=wait         wait some seconds for an address from DHCP before running the command
#   root=UUID=... or LABEL=... or /dev/...
#                              the root file system is on that disk; with rootfstype=, rootflags=, ro or rw (else ro),
#                              and init= (else /sbin/init), as the kernel has them

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LOGNAME=root SHELL=/bin/sh TERM=xterm LANG=C.UTF-8

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o nosuid,mode=755 dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mount -t tmpfs -o nosuid,nodev tmp /tmp
echo debian > /proc/sys/kernel/hostname

# Only where the image was built without a list of busybox's applets.
[ -e /bin/ls ] || busybox --install -s /bin

# /dev/console cannot be a controlling terminal, so find the device behind it: the last one listed.
tty=
read -r tty < /sys/class/tty/console/active
tty=/dev/${tty##* }
[ -c "$tty" ] || tty=/dev/console

run=
winsize=
shares=
net=
root= rootfstype="ext4 btrfs squashfs" rootflags= rootmode=ro init=/sbin/init
set -f
read -r cmdline < /proc/cmdline
for word in $cmdline; do
    case $word in
        polyvisor.run=*) run=${word#*=} ;;
        polyvisor.winsize=*x*) winsize=${word#*=} ;;
        polyvisor.share=?*:/*) shares="$shares ${word#*=}" ;;
        polyvisor.net=*) net=${word#*=} ;;
        root=*) root=${word#*=} ;;
        rootfstype=*) rootfstype=$(echo "${word#*=}" | tr , " ") ;;
        rootflags=*) rootflags=,${word#*=} ;;
        init=/*) init=${word#*=} ;;
        ro | rw) rootmode=$word ;;
    esac
done
set +f

# The transports first, then one driver for each device that they found.
modprobe -q -a virtio_mmio virtio_pci
aliases=
for file in /sys/bus/virtio/devices/*/modalias; do
    [ -e "$file" ] && read -r alias < "$file" && aliases="$aliases $alias"
done
[ -z "$aliases" ] || modprobe -q -b -a $aliases

# Directories that the host shares. By 9P with cache=mmap, files can be mapped and written through, and what the host
# changes is seen when a file is opened again.
for file in /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag /sys/fs/virtiofs/*/tag; do
    [ -e "$file" ] || continue
    tag=
    read -r tag < "$file"
    path=/mnt/$tag
    for share in $shares; do
        [ "${share%%:*}" = "$tag" ] && path=${share#*:}
    done
    case $file in
        */mount_tag) type="9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap" ;;
        *) type=virtiofs ;;
    esac
    mkdir -p "$path"
    mount -t $type "$tag" "$path" || echo "cannot mount the shared directory $tag at $path" > "$tty"
done

# Put there by the host, if it wants to run commands here. With a root file system of its own, it starts there.
if [ -x /polyvisor/agent ] && [ -z "$root" ]; then
    setsid /polyvisor/agent < /dev/null > /dev/null 2>&1 &
fi

ip link set lo up 2>/dev/null
# Real interfaces ask for an address while all else goes on.
for device in /sys/class/net/*/device; do
    [ -e "$device" ] || continue
    device=${device%/device}
    device=${device##*/}
    ip link set "$device" up 2>/dev/null
    udhcpc -f -i "$device" -t 5 -T 1 -A 10 < /dev/null > /dev/null 2>&1 &
done
[ -z "$winsize" ] || stty rows "${winsize%x*}" cols "${winsize#*x}" < "$tty"

# Never returns: PID 1 may not exit.
power_off() {
    if [ -n "$enter" ]; then
        kill -9 -1
        mount -o remount,ro /newroot
    fi
    sync
    if [ "$1" -ne 0 ]; then
        # The test device of the virt board (sifive,test0) ends the machine with a status: 0x3333 in the low half
        # means "failed", the high half is the status.
        address=100000
        for node in /proc/device-tree/soc/test@* /proc/device-tree/test@*; do
            [ -e "$node" ] && address=${node##*@}
        done
        devmem "0x$address" 32 $(($1 << 16 | 0x3333)) 2>/dev/null
    fi
    poweroff -f
    while :; do sleep 3600; done
}

# What the leader of a session on the console does: it waits until all output is sent (as changing the terminal's modes
# does), because when it ends the terminal is hung up, and what another hart has not sent yet would be lost.
leader='"$@"; status=$?; (trap "" TTOU; exec stty sane); exit $status'

# A root file system on a disk: all goes on there, and the agent with it.
mount_root() {
    tries=20
    device=$root
    while :; do
        case $root in UUID=* | LABEL=*) device=$(findfs "$root" 2>/dev/null) ;; esac
        [ -b "$device" ] && break
        [ $tries -gt 0 ] || { echo "there is no disk $root" > "$tty"; power_off 1; }
        tries=$((tries - 1))
        sleep 0.1
    done
    mkdir -p /newroot
    for type in $rootfstype; do
        mount -t "$type" -o "$rootmode$rootflags" "$device" /newroot 2>/dev/null && return
    done
    echo "$device cannot be mounted as one of: $rootfstype" > "$tty"
    power_off 1
}
# What is mounted here is there too: by option $1 of mount, --rbind or --move.
mount_there() {
    while read -r what where type rest; do
        case $where:$type in
            /newroot*) ;;
            /proc:* | /sys:* | /dev:* | /run:* | *:9p)
                where=$(printf '%b' "$where")
                mkdir -p "/newroot$where" && mount "$1" "$where" "/newroot$where"
                ;;
        esac
    done < /proc/mounts
    if [ -x /polyvisor/agent ]; then
        mkdir -p /newroot/run/polyvisor
        cp /polyvisor/agent /newroot/run/polyvisor/agent
        setsid chroot /newroot /run/polyvisor/agent < /dev/null > /dev/null 2>&1 &
    fi
}
enter=
if [ -n "$root" ]; then
    mount_root
    if [ -z "$run" ]; then
        if [ ! -e "/newroot$init" ] && [ ! -L "/newroot$init" ]; then
            echo "there is no $init on $root" > "$tty"
            power_off 1
        fi
        killall -q udhcpc
        umount /tmp
        mount_there --move
        exec env -i PATH="$PATH" TERM="$TERM" switch_root -c /dev/console /newroot "$init"
    fi
    # A command is run without that system's own init.
    mount_there --rbind
    enter="chroot /newroot"
fi

cd /root
if [ -n "$run" ]; then
    tries=100
    while [ "$net" = wait ] && [ ! -e /run/lease ] && [ $tries -gt 0 ]; do
        tries=$((tries - 1))
        sleep 0.1
    done
    command=$(echo "$run" | base64 -d)
    [ -z "$root" ] || [ ! -s /etc/resolv.conf ] || cat /etc/resolv.conf > /newroot/etc/resolv.conf 2>/dev/null
    setsid -c sh -c "$leader" sh $enter /bin/sh -c "$command" < "$tty" > "$tty" 2>&1
    power_off $?
fi

read -r release < /proc/sys/kernel/osrelease
echo "
Linux $release, with busybox. \"exit\" powers the machine off.
" > "$tty"
setsid -c sh -c "$leader" sh sh -l < "$tty" > "$tty" 2>&1
power_off $?
"""

PROFILE = r"""PS1='\u@\h:\w\$ '
alias ll='ls -l'
"""

# What busybox's udhcpc runs when it has a lease, or has none any more. It touches no address but those it gave itself.
UDHCPC = r"""#!/bin/sh
lease=/run/lease.$interface
case $1 in
    deconfig)
        ip link set "$interface" up
        [ ! -e "$lease" ] || ip addr del "$(cat "$lease")" dev "$interface" 2>/dev/null
        rm -f "$lease"
        ;;
    bound | renew)
        ip addr replace "$ip/${mask:-24}" dev "$interface"
        echo "$ip/${mask:-24}" > "$lease"
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface"
            break
        done
        : > /etc/resolv.conf
        [ -z "$domain" ] || echo "search $domain" >> /etc/resolv.conf
        for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
        : > /run/lease
        ;;
esac
"""

PASSWD = "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
HOSTS = "127.0.0.1 localhost debian\n::1 localhost\n"


def scripts() -> Iterable[cpio.Entry]:
    """Our own scripts in the archive. A machine puts those of its version over those that the image was built with."""
    yield cpio.file("init", INIT.encode(), 0o755)
    yield cpio.file("etc/profile", PROFILE.encode())
    # Debian's busybox looks in /etc, upstream's in /usr/share.
    yield cpio.file("etc/udhcpc/default.script", UDHCPC.encode(), 0o755)
