#!/bin/bash
# Installs packages over a tree into a layer of their own: install-layer.sh LAYER LOWER SOURCE PACKAGES...
# SOURCE says where they come from: `tree` (what waits in its /var/cache/apt/archives) or `network` (the archive).
# Run it in mount and PID namespaces of its own, and for `tree` in a network namespace of its own too: nothing that the
# packages start may survive or be seen.
set -euo pipefail
layer=$1 lower=$2 source=$3 work=$1.work root=$1.root
shift 3

rm -rf "$work" "$root"
mkdir "$layer" "$work" "$root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$layer,workdir=$work" "$root"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
if [ "$source" = network ]; then
    # What apt needs for it stays out of the layer.
    mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
    mount -t tmpfs tmpfs "$root/var/lib/apt/lists"
    mount -t tmpfs tmpfs "$root/var/cache/apt"
    eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
    [ -z "${http_proxy:-}" ] || export http_proxy
    chroot "$root" apt-get --quiet update
fi
# Services start when the tree is booted, not now.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get --quiet --yes --no-install-recommends install "$@"
rm "$root/usr/sbin/policy-rc.d"
umount --recursive "$root"
rm -r "$root" "$work"
