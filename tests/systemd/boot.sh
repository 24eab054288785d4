#!/bin/sh
# Becomes PID 1 of a container with a real systemd. container.py calls it in fresh namespaces (mount, pid, net, uts, ipc):
#
#   boot.sh LOWERDIR CGROUP HOSTNAME
#
# LOWERDIR is one or several directories as overlayfs wants them, the uppermost first. Everything mounted here belongs to
# this mount namespace and goes with it, the tmpfs of what the container writes too.
set -eu

if [ "$1" != inside ]; then
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root /mnt/cgroup
    mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
    # A cgroup of its own, seen as the root from inside. Version 2, whatever the host has: with version 1 systemd's
    # DevicePolicy= is not enforced, and nobody says so.
    mount -t cgroup2 cgroup2 /mnt/cgroup
    mkdir "/mnt/cgroup/$2"
    echo 0 > "/mnt/cgroup/$2/cgroup.procs"
    umount /mnt/cgroup
    echo "$3" > /mnt/root/etc/hostname
    exec unshare --cgroup sh "$0" inside
fi

cd /mnt/root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev

# Only the network's settings are this container's own. The others are the host's: systemd would write to them.
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
[ ! -e proc/sysrq-trigger ] || mount --bind /dev/null proc/sysrq-trigger

mkdir dev/net dev/pts dev/shm
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# name, major, minor; net/tun as udev makes it
while read -r name major minor; do
    mknod -m 666 "dev/$name" c "$major" "$minor"
done << DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
DEVICES

mkdir .old
pivot_root . .old
# Shared, as systemd expects its mounts to be: otherwise credentials do not get to the services.
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c \
    'umount -l /.old; rmdir /.old; mount --make-rshared /; exec /lib/systemd/systemd --log-target=journal'
