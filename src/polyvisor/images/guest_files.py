"""The text files of our initramfs: its first process and the little configuration that a shell expects.

They are busybox sh. On an emulator every process the guest starts costs time, so the script uses the shell's own
means where it can, and loads only the drivers of devices that are there.
"""

INIT = r"""#!/bin/sh
# First process of a polyvisor image. It understands these words of the kernel's command line:
#   polyvisor.run=BASE64       run this shell command, then power off with its exit status
#   polyvisor.winsize=RxC      the console has R rows and C columns
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
root= rootfstype="ext4 btrfs squashfs" rootflags= rootmode=ro init=/sbin/init
set -f
read -r cmdline < /proc/cmdline
for word in $cmdline; do
    case $word in
        polyvisor.run=*) run=${word#*=} ;;
        polyvisor.winsize=*x*) winsize=${word#*=} ;;
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

# Put there by the host, if it wants to run commands here. With a root file system of its own, it starts there.
if [ -x /polyvisor/agent ] && [ -z "$root" ]; then
    setsid /polyvisor/agent < /dev/null > /dev/null 2>&1 &
fi

ip link set lo up 2>/dev/null
[ -z "$winsize" ] || stty rows "${winsize%x*}" cols "${winsize#*x}" < "$tty"

# Never returns: PID 1 may not exit.
power_off() {
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
    tries=50
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
    echo "$device cannot be mounted as one of $rootfstype" > "$tty"
    power_off 1
}
start_agent() {
    [ -x /polyvisor/agent ] || return
    mkdir -p /newroot/run/polyvisor
    cp /polyvisor/agent /newroot/run/polyvisor/agent
    setsid chroot /newroot /run/polyvisor/agent < /dev/null > /dev/null 2>&1 &
}
if [ -n "$root" ]; then
    mount_root
    umount /tmp
    if [ -n "$run" ]; then
        # Without that system's own init: the command alone.
        for directory in proc sys dev run; do mount --rbind "/$directory" "/newroot/$directory"; done
        [ ! -s /etc/resolv.conf ] || [ "$rootmode" = ro ] || cat /etc/resolv.conf > /newroot/etc/resolv.conf 2>/dev/null
        start_agent
        command=$(echo "$run" | base64 -d)
        setsid -c sh -c "$leader" sh chroot /newroot /bin/sh -c "cd; $command" < "$tty" > "$tty" 2>&1
        status=$?
        kill -9 -1
        mount -o remount,ro /newroot
        power_off $status
    fi
    if [ ! -x "/newroot$init" ] && [ ! -L "/newroot$init" ]; then
        echo "there is no $init on $root" > "$tty"
        power_off 1
    fi
    # What else is mounted, such as directories of the host, goes along.
    while read -r what where rest; do
        case $where in
            /proc | /sys | /dev | /run | /mnt/*)
                where=$(printf '%b' "$where")
                mkdir -p "/newroot$where" && mount --move "$where" "/newroot$where"
                ;;
        esac
    done < /proc/mounts
    start_agent
    killall -q udhcpc
    exec env -i PATH="$PATH" TERM="$TERM" switch_root -c /dev/console /newroot "$init"
fi

cd /root
if [ -n "$run" ]; then
    command=$(echo "$run" | base64 -d)
    setsid -c sh -c "$leader" sh sh -c "$command" < "$tty" > "$tty" 2>&1
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

# What busybox's udhcpc runs when it has a lease.
UDHCPC = r"""#!/bin/sh
case $1 in
    deconfig)
        ip addr flush dev "$interface"
        ip link set "$interface" up
        ;;
    bound | renew)
        ip addr replace "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface"
            break
        done
        : > /etc/resolv.conf
        [ -z "$domain" ] || echo "search $domain" >> /etc/resolv.conf
        for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
        ;;
esac
"""

PASSWD = "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
HOSTS = "127.0.0.1 localhost debian\n::1 localhost\n"
