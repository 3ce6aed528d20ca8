# A thin wrapper: cargo and component/build.sh build, links-pack packs, linksctl runs. `make help` lists the targets.

CARGO ?= cargo
# The architecture of the packages: that of this machine, or arm64, for which .ci/cross has a compiler.
HOST_ARCH := $(shell dpkg --print-architecture 2>/dev/null)
ARCH = $(HOST_ARCH)
IS_CROSS = $(filter-out $(HOST_ARCH),$(ARCH))
$(if $(filter-out arm64,$(IS_CROSS)),$(error packages for $(ARCH) cannot be made on $(HOST_ARCH), only those for arm64 on amd64))
DIST  = target/packages$(addprefix -,$(IS_CROSS))
# A file in $(DIST) says that the packages are for tests. `make repo` refuses them.
MARKER = only-for-tests
# The profile of the programs in the packages. Packages for tests use `release`, like the tests themselves.
PROFILE = dist
PROGRAMS = target/$(PROFILE)
PACK_CROSS = $(if $(IS_CROSS),--arch $(ARCH) --programs target/aarch64-unknown-linux-gnu/$(PROFILE) \
	--emulator "$$(.ci/cross emulator)")
PACKED := -p links-host -p linksctl -p links-run -p links-agent -p links-db -p links-acme -p links-backup
# Packages for others have the same bytes wherever they are built, and their programs contain the list of their crates.
BUILD = $(if $(filter dist,$(PROFILE)),.ci/build,$(CARGO) build)
# What tests turn on in the dependencies. With it, everything but the packages for others shares one build of them.
SHARED := --features links-host/as-in-tests
# The runtime to pack, for --runtime of links-pack.
RUNTIME =
# The directory of the apt repository.
REPO ?= target/repo
# Uses the profile of the other targets, so that the output of the dependencies' build scripts is reused.
CLIPPY := $(CARGO) clippy --release --workspace --all-targets --locked $(SHARED) -- -D warnings
# Excludes the crates that are only built for Wasm.
NATIVE := --exclude links-redirect --exclude links-api --exclude hello
TESTS := $(CARGO) test --release --locked --workspace $(NATIVE) $(SHARED)
SMOKE := appliance::apt_install_sets_up_nginx_and_the_first_link_redirects

.DEFAULT_GOAL := help
.PHONY: help run check test soak deb repo release lint bench clean build packages-run packages-bench packages-test packages-repo

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run check test soak: PROFILE = release

run: packages-run deb ## build everything, pack it, start the appliance on localhost until Ctrl-C
	$(PROGRAMS)/linksctl --root target/run up --bundle $(DIST)/links-*.tar.gz

check: packages-test deb ## a few minutes: formatting, clippy, unit tests, and one test that installs the package, shortens, redirects and counts
	$(CARGO) fmt --all --check
	$(CLIPPY)
	$(TESTS) --lib --bins
	$(TESTS) --exclude links-tests --test '*'
	$(TESTS) --doc
	$(TESTS) --test e2e -- $(SMOKE)

test: packages-test released deb ## every test, including those on systemd and nginx (needs root); TEST=NAME runs the tests with that name, SUITE=bookworm runs them on Debian 12, SPIN=/path/to/spin packs that runtime
	$(TESTS)$(if $(TEST), -- $(TEST))

soak: packages-test released deb ## the long tests (three million clicks, a million requests over a hundred rollouts, fifty kills, thirty power failures), every test on Debian 12, and the programs for arm64
	$(MAKE) deb ARCH=arm64 PROFILE=release RUNTIME=links-host
	$(TESTS) --no-run
	$(TESTS) --test e2e --test soak -- --ignored --nocapture --test-threads 1
	SUITE=bookworm $(TESTS) --test e2e --test soak

deb: build ## both packages, the .deb and the tarball, into target/packages/; ARCH=arm64 makes those for arm64, into target/packages-arm64/
	rm -rf $(DIST)
	$(if $(filter dist,$(PROFILE)),,mkdir -p $(DIST) && touch $(DIST)/$(MARKER))
	$(PROGRAMS)/links-pack --out $(DIST) $(PACK_CROSS) $(if $(RUNTIME),--runtime $(RUNTIME))

repo: packages-repo ## add the .debs in target/packages to a signed apt repository in target/repo: REPO_KEY=KEY signs it, REPO_URL=URL is where hosts find it
	@for packages in $(DIST) $(wildcard $(DIST)-*); do [ ! -e $$packages/$(MARKER) ] || { \
		echo "the packages in $$packages are for tests only (make run, check, test and soak write such packages): run 'make" \
			"deb' (for arm64 'make deb ARCH=arm64'), or remove $$packages" >&2; exit 1; }; done
	@[ -x $(PROGRAMS)/links-pack ] || { echo "$(PROGRAMS)/links-pack is missing: run 'make deb' first" >&2; exit 1; }
	$(PROGRAMS)/links-pack repo $(addprefix --packages ,$(DIST) $(wildcard $(DIST)-*)) --out $(REPO)

release: ## everything that is published, from a clean tree: packages, bills of materials, signed sums, apt repository; see docs/releasing.md
	.ci/release

# The components are linked on one processor, so the programs are built beside them. If one build fails, the other one ends
# before make does.
build:
	$(if $(IS_CROSS),.ci/cross true && $(CARGO) build --profile $(PROFILE) --locked -p links-pack)
	component/build.sh & components=$$!; \
	$(if $(IS_CROSS),.ci/cross) $(BUILD) --profile $(PROFILE) --locked $(if $(filter release,$(PROFILE)),$(SHARED)) \
		$(PACKED) $(if $(IS_CROSS),,-p links-pack); programs=$$?; wait $$components && exit $$programs

lint: packages-test ## formatting, clippy, shellcheck, cargo-deny
	$(CARGO) fmt --all --check
	$(CLIPPY)
	git ls-files | xargs grep -lE '^#!/(usr/)?bin/(env )?(ba)?sh' | xargs shellcheck
	.ci/dependencies

bench: packages-bench deb ## measure this build on this machine; PEER=URL of another shortener's redirect compares it (PEER_SLUGS=FILE: its slugs, after that URL), ONLY=edge runs a part
	component/build.sh hello
	$(CARGO) build --release --locked -p links-tests --bins
	$(CARGO) run --release --locked -p links-tests --bin bench -- $(ONLY)

clean: ## remove the build output (the caches below ~/.cache/links stay)
	$(CARGO) clean

packages-run packages-bench packages-test packages-repo:
	@.ci/packages $(@:packages-%=%)

packages-test: servers

.PHONY: servers released
servers:
	@.ci/servers

released:
	@.ci/released
