#!/bin/bash
# Makes the Debian tree that the lab boots: make-tree.sh TARGET SUITE
# Run it in mount and PID namespaces of its own (cached.sh does).
set -euo pipefail
target=$1 suite=$2
# What the tree contains in addition to the minimal system.
installed=systemd,systemd-sysv,dbus,init-system-helpers,ca-certificates,curl,iproute2,procps
# What waits with all its dependencies in /var/cache/apt/archives, so that apt inside the lab, which has no network, can
# install it.
downloaded=nginx
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Prints the mirror from which this machine's apt gets the archive with this label. Debian's mirrors hold all suites.
mirror() {
    # shellcheck disable=SC2016 # apt expands it
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Label: $1" | sort -u | sed -n 1p
}
debian=$(mirror Debian)
[ -n "$debian" ] || {
    echo "the apt sources of this machine name no mirror of Debian (run apt-get update)" >&2
    exit 1
}
security=$(mirror Debian-Security)
sources=("deb [signed-by=$keyring] $debian $suite main")
[ -z "$security" ] || sources+=("deb [signed-by=$keyring] $security $suite-security main")
eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
[ -z "${http_proxy:-}" ] || export http_proxy

# Twice as fast as debootstrap. Debian 12 merges / and /usr only if it is told to. A tree that may be lost at any time needs no
# fsync per file.
mmdebstrap --mode=root --variant=minbase --keyring="$keyring" --include="usr-is-merged,$installed" \
    --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr --dpkgopt=force-unsafe-io "$suite" "$target" "${sources[@]}"

# apt keeps what it installed, to install it again.
echo 'Binary::apt::APT::Keep-Downloaded-Packages "true";' >"$target/etc/apt/apt.conf.d/90lab"
cat /etc/resolv.conf >"$target/etc/resolv.conf"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$target" apt-get --quiet update
# shellcheck disable=SC2086 # several packages
chroot "$target" apt-get --quiet --yes --download-only install $downloaded

rm "$target/etc/hostname" "$target/etc/resolv.conf"
echo links-lab >"$target/etc/hostname"
: >"$target/etc/resolv.conf"
# mmdebstrap empties it. Without an ID, systemd would give every machine another one at its first boot.
tr --delete - </proc/sys/kernel/random/uuid >"$target/etc/machine-id"
# No console, no network and a kernel without its modules: what would wait for one of them, or fail without it, stays off.
for unit in console-getty.service getty@.service apt-daily.timer apt-daily-upgrade.timer systemd-modules-load.service; do
    ln -sf /dev/null "$target/etc/systemd/system/$unit"
done
