# A thin wrapper: cargo and component/build.sh build, links-pack packs, linksctl runs. `make help` lists the targets.

CARGO ?= cargo
DIST  := target/packages
# The profile of the programs in the packages. Packages for tests use `release`, like the tests themselves.
PROFILE = dist
PROGRAMS = target/$(PROFILE)
# Packages for others have the same bytes wherever they are built, and their programs contain the list of their crates.
BUILD = $(if $(filter dist,$(PROFILE)),.ci/build,$(CARGO) build)
# The runtime to pack, for --runtime of links-pack.
RUNTIME =
# The directory of the apt repository.
REPO ?= target/repo
# Uses the profile of the other targets, so that the output of the dependencies' build scripts is reused.
CLIPPY := $(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings
# Excludes the crates that are only built for Wasm.
NATIVE := --exclude links-redirect --exclude links-api --exclude hello
SMOKE := apt_install_sets_up_nginx_and_the_first_link_redirects

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
	$(CARGO) test --release --locked --workspace $(NATIVE) --exclude links-tests
	$(CARGO) test --release --locked -p links-tests --lib
	$(CARGO) test --release --locked -p links-tests --test appliance -- $(SMOKE)

test: packages-test released deb ## every test, including those on systemd and nginx (needs root); TEST=NAME runs the tests with that name, SPIN=/path/to/spin packs that runtime
	$(CARGO) test --release --workspace $(NATIVE) --locked$(if $(TEST), -- $(TEST))

soak: packages-test released deb ## the long tests: three million clicks, a million requests over a hundred rollouts, fifty kills, thirty power failures (an hour)
	$(CARGO) test --release --locked -p links-tests --test clicks --test soak --test rollout --test upgrades -- --ignored --nocapture --test-threads 1

deb: build ## both packages, the .deb and the tarball, into target/packages/
	rm -rf $(DIST)
	$(PROGRAMS)/links-pack --out $(DIST) $(if $(RUNTIME),--runtime $(RUNTIME))

repo: packages-repo ## add the .debs in target/packages to a signed apt repository in target/repo: REPO_KEY=KEY signs it, REPO_URL=URL is where hosts find it
	@[ -x $(PROGRAMS)/links-pack ] || { echo "$(PROGRAMS)/links-pack is missing: run 'make deb' first" >&2; exit 1; }
	$(PROGRAMS)/links-pack repo $(addprefix --packages ,$(DIST) $(wildcard $(DIST)-*)) --out $(REPO)

release: ## everything that is published, from a clean tree: packages, bills of materials, signed sums, apt repository; see docs/releasing.md
	.ci/release

build:
	component/build.sh
	$(BUILD) --profile $(PROFILE) --locked -p links-host -p linksctl -p links-run -p links-agent -p links-db -p links-pack

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
