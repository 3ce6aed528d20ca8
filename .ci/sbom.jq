# Merges the bills of materials of programs, as cargo-cyclonedx writes them, into one for the package that contains them.
#
#   jq --slurp --argjson package COMPONENT --arg root DIRECTORY --rawfile crates FILE -f .ci/sbom.jq PROGRAM.cdx.json...
#
# $package    the component that the bill describes
# $root       the directory of the sources, which must not be in the result
# $crates     lines of NAME VERSION, the crates in the package: cargo-cyclonedx lists those of all features
def own: "path+file://\($root)/";
def set(names): reduce names as $name ({}; .[$name] = true);
# A crate of this repository has no package URL: the registry could have another crate of that name.
def named: (if ."bom-ref" | startswith(own) then del(.purl) else . end) | ."bom-ref" |= ltrimstr(own);

set($crates | split("\n")[]) as $included
| [.[].metadata.component | del(.components)] as $programs
| [$programs[], .[].components[] | select($included["\(.name) \(.version)"])] as $components
| set($components[]."bom-ref") as $known
| [.[].dependencies[] | select($known[.ref])] as $dependencies
| .[0]
| {
    bomFormat,
    specVersion,
    version,
    metadata: { timestamp: .metadata.timestamp, tools: .metadata.tools, component: $package },
    components: ($components | unique_by(."bom-ref") | map(named)),
    dependencies: (
      [{ ref: $package."bom-ref", dependsOn: [$programs[]."bom-ref" | ltrimstr(own)] | sort }]
      + ($dependencies | group_by(.ref) | map({
          ref: .[0].ref | ltrimstr(own),
          dependsOn: [.[].dependsOn[]? | select($known[.]) | ltrimstr(own)] | unique
        }))
    )
  }
