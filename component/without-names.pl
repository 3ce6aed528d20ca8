#!/usr/bin/env perl
# Copies a component from standard input to standard output without its custom sections. wasm-component-ld always writes them,
# and they only hold the names of the component's types and functions, which nothing reads, and the names of the tools.
#
# Every section is its id, the size of what follows as LEB128, and the contents
# (https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md). Custom sections have the id 0.
use strict;
use warnings;

binmode STDIN;
binmode STDOUT;
my $component = do { local $/; <STDIN> };
my $at = 8;
print substr $component, 0, $at;
while ($at < length $component) {
    my $start = $at;
    my $id = ord substr $component, $at++, 1;
    my ($size, $shift, $byte) = (0, 0);
    do {
        $byte = ord substr $component, $at++, 1;
        $size |= ($byte & 0x7f) << $shift;
        $shift += 7;
    } while $byte & 0x80;
    $at += $size;
    print substr $component, $start, $at - $start if $id != 0;
}
