#!/bin/bash
# Makes the Debian tree that the lab boots: make-tree.sh TARGET SUITE INSTALLED DOWNLOADED
# INSTALLED is what debootstrap puts in (comma-separated); DOWNLOADED (space-separated) waits, with all it depends on, in
# /var/cache/apt/archives, so that apt inside the lab, which has no network, can install it.
# Run it in mount and PID namespaces of its own: what it mounts and starts goes away with them.
set -euo pipefail
target=$1 suite=$2 installed=$3 downloaded=$4

# The archive is the one that this machine itself uses.
# shellcheck disable=SC2016 # apt expands these
archive() {
    apt-get indextargets --format '$(SITE) $(CODENAME) $(SIGNED_BY)' 'Created-By: Packages' |
        awk -v suite="$1" '$2 == suite && !found { print $1, $3; found = 1 }'
}
read -r mirror keyring < <(archive "$suite") || {
    echo "the apt sources of this machine name no archive of Debian $suite (after an apt-get update)" >&2
    exit 1
}
read -r security _ < <(archive "$suite-security") || security=
[ -f "$keyring" ] || keyring=/usr/share/keyrings/debian-archive-keyring.gpg
eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
[ -z "${http_proxy:-}" ] || export http_proxy

# A tree that may be lost at any time needs no fsync per file; apt keeps what it installed, to install it again.
mkdir -p "$target/etc/dpkg/dpkg.cfg.d" "$target/etc/apt/apt.conf.d"
echo force-unsafe-io >"$target/etc/dpkg/dpkg.cfg.d/lab"
echo 'Binary::apt::APT::Keep-Downloaded-Packages "true";' >"$target/etc/apt/apt.conf.d/90lab"

debootstrap --variant=minbase --include="$installed" --keyring="$keyring" "$suite" "$target" "$mirror"

{
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
    [ -z "$security" ] ||
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $security $suite-security main"
} >"$target/etc/apt/sources.list"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$target" apt-get --quiet update
# shellcheck disable=SC2086 # several packages
chroot "$target" apt-get --quiet --yes --download-only install $downloaded

# Both were copied from this machine.
echo links-lab >"$target/etc/hostname"
: >"$target/etc/resolv.conf"
# No console and no network: what would wait for one of them, or fail without it, stays off.
for unit in console-getty.service getty@.service apt-daily.timer apt-daily-upgrade.timer; do
    ln -sf /dev/null "$target/etc/systemd/system/$unit"
done
