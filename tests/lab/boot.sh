#!/bin/bash
# Becomes systemd, PID 1 of a machine: boot.sh DIR LOWER volatile|durable
# Run it as the first process of fresh PID, mount, UTS, IPC, network and cgroup namespaces. DIR holds upper/ and work/ (what
# the machine wrote, over the read-only layers LOWER), root/ to mount it on, and notify (the socket that hears
# READY=1). With `volatile`, syncs do nothing. Writes one line to standard output, the PID of systemd as this computer counts;
# all else goes to standard error.
set -euo pipefail
dir=$1 lower=$2 syncs=$3 root=$1/root

read -r pid _ </proc/self/stat # still this computer's /proc
echo "$pid"
exec >&2

options=lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work
if [ "$syncs" = volatile ]; then
    options+=,volatile
    # The kernel leaves a mark and mounts nothing that has one: after a crash of this computer, files could be incomplete. No
    # test outlives that.
    rm -rf "$dir/work/work/incompat"
fi
mount -t overlay overlay -o "$options" "$root"
mount -t proc proc "$root/proc"
# Every boot has an ID of its own, or the journal would take all of them for one.
cat /proc/sys/kernel/random/uuid >"$dir/boot_id"
mount --bind "$dir/boot_id" "$root/proc/sys/kernel/random/boot_id"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"

# The devices that a container gets (systemd.io/CONTAINER_INTERFACE).
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
# There is no console. A node of its own, like null: systemd changes its mode, and that of a bind mount is this
# computer's.
mknod "$root/dev/console" c 1 3
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

mkdir "$root/run/host"
touch "$root/run/host/notify"
mount --bind "$dir/notify" "$root/run/host/notify"

ip link set lo up
mkdir -p "$root/run/host/old"
cd "$root"
pivot_root . run/host/old
umount -l /run/host/old
rmdir /run/host/old
# Outside a container systemd does this itself. Credentials reach a unit through a mount that has to propagate.
mount --make-rshared /
exec env -i container=other NOTIFY_SOCKET=/run/host/notify PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
