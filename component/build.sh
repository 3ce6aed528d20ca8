#!/usr/bin/env bash
# Builds the Wasm components, once for each version of the WASI interfaces that a supported runtime implements:
#
#   target/components/wasi-0.3.0/*.wasm                  for links-host and Spin 4.1; component/spin.toml names these
#   target/components/wasi-0.3.0-rc-2026-03-15/*.wasm    for Spin 4.0; links-pack picks these if it packs Spin 4.0
#
#   component/build.sh [PACKAGE...]
#
# Without arguments, it builds the packages links-redirect and links-api.
#
# It uses the first of these toolchains that this machine has or can get:
#   1. The active toolchain, if it has the standard library of wasm32-wasip2.
#   2. Debian's rustc-web, if an earlier run has prepared it (see 4).
#   3. The active toolchain, after `rustup target add wasm32-wasip2`.
#   4. Debian's packages rustc-web, rust-web-src and rust-web-llvm (the compiler, the sources of its standard library, and
#      wasm-component-ld) with the wasi-libc of Debian 13, because Debian 12's is too old for wasm32-wasip2. wasi-libc comes
#      from the mirror that apt is configured with, and is only unpacked into the cache directory. As root, the script
#      installs the other packages. Otherwise it prints the command that installs them and exits with status 1.
#
# Environment:
#   XDG_CACHE_HOME    wasi-libc is kept in $XDG_CACHE_HOME/links (default ~/.cache/links).
#   CARGO_TARGET_DIR  cargo builds there, in one directory for each interface version. The components are copied from there.
#   RUSTFLAGS         is ignored, so that the same sources and toolchain give the same bytes, without paths of this machine.
set -euo pipefail

readonly target=wasm32-wasip2
# The directories in target/components. The packages' features have the same names, with hyphens instead of dots.
readonly generations=(wasi-0.3.0 wasi-0.3.0-rc-2026-03-15)
packages=("$@")
[ $# -gt 0 ] || packages=(links-redirect links-api)
# The first Debian release whose wasi-libc has a wasm32-wasip2 library.
readonly wasi_libc_suite=trixie

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/links
wasi_libc=$cache/wasi-libc-$wasi_libc_suite
wasi_libc_lib=$wasi_libc/usr/lib/$target

say() { printf 'component/build.sh: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

host_triple() { "$1" -vV | sed -n 's/^host: //p'; }

active_has_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; }

# Prints a wasm-ld that understands the output of rustc-web's LLVM: rustup's, or a package's. Debian 12's lld-14 is too old.
find_wasm_ld() {
    local sysroot candidate
    sysroot=$(rustc --print sysroot)
    for candidate in "$sysroot/lib/rustlib/$(host_triple rustc)/bin/gcc-ld/wasm-ld" /usr/bin/wasm-ld-2[0-9]; do
        if [ -x "$candidate" ]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() {
    local package
    for package in rustc-web rust-web-src rust-web-llvm; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s\n' "$package"
    done
    find_wasm_ld >/dev/null || echo lld-22
}

debian_ready() {
    command -v dpkg-query >/dev/null && [ -z "$(missing_packages)" ] && [ -e "$wasi_libc_lib/libc.a" ]
}

rustup_adds_target() {
    command -v rustup >/dev/null || return 1
    say "adding target $target to the active toolchain (rustup)"
    timeout 120 rustup --quiet target add "$target" >/dev/null 2>&1 && active_has_target
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "rustup cannot add the target $target here, and Debian packages are missing. Install them and run this again:"
        die "    sudo apt-get install ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    # --no-remove: rustc-web installs /usr/bin/rustc. It must not replace another package that owns this file.
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-remove --no-install-recommends install)
    install+=("${missing[@]}")
    "${install[@]}" >&2 && return 0
    say "updating the package lists and trying again"
    apt-get -q update >&2 || die "apt-get update failed: is the mirror of this machine's apt configuration reachable?"
    "${install[@]}" >&2 || die "apt-get cannot install ${missing[*]}; see its message above"
}

# Prints the mirrors from which this machine's apt gets Debian itself. If no lists have been downloaded, apt does not know the
# origin of a mirror, and this prints all mirrors.
debian_mirrors() {
    local mirrors
    # shellcheck disable=SC2016  # apt-get's own placeholder
    local list=(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages')
    mirrors=$("${list[@]}" 'Origin: Debian' 'Label: Debian')
    [ -n "$mirrors" ] || mirrors=$("${list[@]}")
    printf '%s\n' "$mirrors" | sort -u
}

# Unpacks wasi-libc from the mirror $1 into the directory $2. It uses its own lists and cache, so nothing system-wide changes.
unpack_wasi_libc() {
    local mirror=$1 dir=$2
    rm -rf "${dir:?}"/*
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/tree" || return 1
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$wasi_libc_suite" \
        >"$dir/sources.list"
    # APT::Sandbox::User: the user _apt cannot read the directory.
    local apt=(apt-get -q -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=3)
    "${apt[@]}" update >&2 || return 1
    (cd "$dir" && "${apt[@]}" download wasi-libc >&2) || return 1
    dpkg-deb -x "$dir"/wasi-libc_*.deb "$dir/tree" || return 1
    [ -e "$dir/tree/usr/lib/$target/libc.a" ]
}

# The result is complete or absent: wasi-libc is unpacked in a directory beside its place and then renamed. If two runs overlap,
# the first to finish wins.
get_wasi_libc() {
    [ ! -e "$wasi_libc_lib/libc.a" ] || return 0
    local dir mirror
    mkdir -p "$cache"
    dir=$(mktemp -d "$cache/.wasi-libc.XXXXXX")
    # shellcheck disable=SC2064  # expand $dir now
    trap "rm -rf '$dir'" EXIT
    while read -r mirror; do
        say "downloading wasi-libc of Debian $wasi_libc_suite into $cache"
        if unpack_wasi_libc "$mirror" "$dir"; then
            mv -T "$dir/tree" "$wasi_libc" 2>/dev/null || [ -e "$wasi_libc_lib/libc.a" ]
            break
        fi
    done < <(debian_mirrors)
    rm -rf "$dir"
    trap - EXIT
    [ -e "$wasi_libc_lib/libc.a" ] && return
    die "cannot download wasi-libc: no mirror in this machine's apt configuration has it or can be reached (see above)"
}

# Sets cargo's environment and arguments for Debian's compiler, which ships the standard library as source.
use_debian() {
    local triple
    triple=$(host_triple /usr/bin/rustc)
    rustflags+=(-L "native=$wasi_libc_lib" -C "linker=/usr/lib/rustlib/$triple/bin/wasm-component-ld"
        "--remap-path-prefix=/usr/lib/rustlib/src/rust=/rust")
    # build-std is an unstable flag of cargo. Only this build, with this pair of compiler and sources, uses it.
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
    cargo_args+=('-Zbuild-std=std,panic_abort')
    say "compiler: $(/usr/bin/rustc --version), from Debian's rustc-web"
}

unset RUSTC RUSTC_WRAPPER RUSTFLAGS
command -v cargo >/dev/null || die "cargo is not on PATH: install Rust first (https://rustup.rs)"
command -v wasm-opt >/dev/null || die "wasm-opt is not on PATH: install Debian's package binaryen first"

prefixes=$("$root/.ci/path-prefixes")
mapfile -t prefixes <<<"$prefixes"
rustflags=("${prefixes[@]/#/--remap-path-prefix=}")
# SHA-256 in a loop instead of 64 repeated rounds. A request hashes a few hundred bytes at most.
rustflags+=(--cfg 'sha2_backend_soft="compact"')
cargo_args=(--release --locked --target "$target" --no-default-features)

if active_has_target; then
    say "compiler: $(rustc --version)"
elif debian_ready; then
    use_debian
elif rustup_adds_target; then
    say "compiler: $(rustc --version), with the target that rustup added"
else
    install_packages
    get_wasi_libc
    use_debian
fi

# Through wasm-opt, which makes the components an eighth smaller.
WASM_LD=$(find_wasm_ld) || die "wasm-ld is missing: install the rustup component rust-lld or Debian's package lld-22"
export WASM_LD
rustflags+=(-C "link-arg=--wasm-ld-path=$root/component/wasm-ld.sh")

# Prints the levels of optimization by rustc and by wasm-opt. A redirect takes 5 % less time if its component is not built for
# the smallest size.
optimization() {
    case $1 in
        links-redirect) echo s -O3 ;;
        *) echo z -Oz ;;
    esac
}

# Always the same bytes, whatever the workspace's profile says about native programs.
export CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_PANIC=abort
export CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_INCREMENTAL=0
# spin-sdk's build script writes the commit of the surrounding git repository into the component.
export GIT_DIR=/nonexistent
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && printf '%s' "${rustflags[*]}")
export CARGO_ENCODED_RUSTFLAGS

# Cargo gives a component's file the same name whatever its features are. In one directory the builds would overwrite each
# other, and cargo would consider either of them up to date.
cd "$root"
for generation in "${generations[@]}"; do
    directory=${CARGO_TARGET_DIR:-target}/$generation
    mkdir -p "target/components/$generation"
    for package in "${packages[@]}"; do
        read -r CARGO_PROFILE_RELEASE_OPT_LEVEL WASM_OPT_LEVEL < <(optimization "$package")
        export CARGO_PROFILE_RELEASE_OPT_LEVEL WASM_OPT_LEVEL
        cargo build "${cargo_args[@]}" --package "$package" --features "${generation//./-}" --target-dir "$directory"
        built=$directory/$target/release/${package//-/_}.wasm
        wanted=target/components/$generation/${package//-/_}.wasm
        # The file is complete or absent, and keeps its old time if nothing has changed.
        if ! cmp --silent "$built" "$wanted"; then
            cp "$built" "$wanted.$$" && mv "$wanted.$$" "$wanted"
        fi
        say "$wanted: $(stat -c %s "$wanted") bytes, sha256 $(sha256sum "$wanted" | cut -d' ' -f1)"
    done
done
