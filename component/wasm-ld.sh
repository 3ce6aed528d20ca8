#!/usr/bin/env bash
# Links a core module and optimizes it, in the place of wasm-ld: wasm-component-ld turns the result into a component. wasm-opt
# cannot read components, so it cannot come later.
#
# Environment:
#   WASM_LD           the wasm-ld to call
#   WASM_OPT_LEVEL    wasm-opt's level, such as -O3
set -euo pipefail

"$WASM_LD" "$@"

output=
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then
        output=$2
    fi
    shift
done
# What rustc's wasm32-wasip2 uses beyond the first version of WebAssembly.
features=(bulk-memory multivalue mutable-globals nontrapping-float-to-int reference-types sign-ext)
# The first pass gives the functions that are called most often the shortest numbers, which saves 1.2 KB of the api.
exec wasm-opt --reorder-functions "$WASM_OPT_LEVEL" --converge "${features[@]/#/--enable-}" "$output" -o "$output"
