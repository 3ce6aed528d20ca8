#!/bin/bash
# Installs packages over a tree, offline, into a layer of their own: install-layer.sh LAYER LOWER PACKAGES...
# Run it in mount, PID and network namespaces of its own: nothing that the packages start may survive or be seen.
set -euo pipefail
layer=$1 lower=$2 work=$1.work root=$1.root
shift 2

rm -rf "$work" "$root"
mkdir "$layer" "$work" "$root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$layer,workdir=$work" "$root"
# Services start when the tree is booted, not now.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" apt-get --quiet --yes install "$@"
rm "$root/usr/sbin/policy-rc.d"
umount "$root"
rm -r "$root" "$work"
