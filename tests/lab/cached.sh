#!/bin/bash
# Prints the path of a directory that a script of the lab makes, and makes it if the cache does not have it yet:
#
#   cached.sh CACHE NAMESPACES SCRIPT [ARGUMENTS...]
#
# SCRIPT is a file beside this one. It gets the path of the directory to make, then ARGUMENTS. It runs in namespaces of its own
# (NAMESPACES: the names of unshare's options, separated by commas), so what it mounts and starts ends with it.
# The name of the directory is a digest of the script and its arguments. The directory is complete or absent, because it is
# made under another name. If several processes want the same one, one of them makes it.
set -euo pipefail
cache=$1 script=$(dirname "$0")/$3
IFS=, read -ra namespaces <<<"$2"
shift 3

key=$({ cat "$script" && printf '\0%s' "$@"; } | sha256sum | cut -c1-12)
made=$cache/tree-$key
mkdir -p "$cache"
exec {lock}>"$made.lock"
if [ ! -d "$made" ] && flock "$lock" && [ ! -d "$made" ]; then
    echo "lab: making $made with ${script##*/} $* (once; about a minute)" >&2
    begin=$SECONDS
    rm -rf "$made.making"
    # The script ends with this process, however that ends.
    setpriv --pdeathsig KILL -- unshare "${namespaces[@]/#/--}" --fork --kill-child -- bash "$script" "$made.making" "$@" \
        </dev/null >"$made.log" 2>&1 || {
        echo "lab: ${script##*/} failed; the end of $made.log:" >&2
        tail -n 30 "$made.log" >&2
        exit 1
    }
    mv -T "$made.making" "$made"
    echo "lab: made in $((SECONDS - begin)) s" >&2
fi
echo "$made"
