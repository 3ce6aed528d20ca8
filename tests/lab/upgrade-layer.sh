#!/bin/bash
# Downloads what the upgrade of a tree to another suite needs into a layer of its own: upgrade-layer.sh LAYER LOWER FROM TO
# With the sources in /etc/apt/sources.list.TO, apt in the lab, which has no network, can then upgrade.
# Run it in mount and PID namespaces of its own (cached.sh does).
set -euo pipefail
layer=$1 lower=$2 from=$3 to=$4 work=$1.work root=$1.root sources=/etc/apt/sources.list.$4

rm -rf "$work" "$root"
mkdir "$layer" "$work" "$root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$layer,workdir=$work" "$root"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
[ -z "${http_proxy:-}" ] || export http_proxy
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

sed "s/\b$from\b/$to/g" "$root/etc/apt/sources.list" >"$root$sources"
# The lists of FROM stay too: apt uses those that its sources name.
apt=(chroot "$root" apt-get --quiet --yes -o "Dir::Etc::SourceList=$sources" -o APT::Get::List-Cleanup=false)
"${apt[@]}" update
"${apt[@]}" --download-only full-upgrade
umount --recursive "$root"
rm -r "$root" "$work"
