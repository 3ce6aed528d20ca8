# Thin on purpose: cargo builds, linksctl packs and runs, component/build.sh builds the Wasm. `make help` lists the targets.

CARGO ?= cargo
DIST  := target/packages
# What the packages hold is built in this profile; in `release`, as the tests are, where they are packed for a test only.
PROFILE = dist
LINKSCTL = target/$(PROFILE)/linksctl
# What others install carries the list of what it was built from (cargo-auditable).
AUDITABLE = $(if $(filter dist,$(PROFILE)),auditable)
# In the profile that the rest is built in: what the dependencies generate is then there already.
CLIPPY := $(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings
# All but what is only built for Wasm.
NATIVE := --exclude links-redirect --exclude links-api --exclude hello
SMOKE := apt_installs_it_with_nginx_and_the_first_link_redirects

.DEFAULT_GOAL := help
.PHONY: help run check test soak deb lint bench clean build packages-run packages-bench packages-test

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run check test soak: PROFILE = release

run: packages-run deb ## build everything, pack it, start the appliance on localhost until Ctrl-C
	$(LINKSCTL) --root target/run up --bundle $(DIST)/links-*.tar.gz

check: packages-test deb ## in a few minutes: formatting, clippy, unit tests, and one test that installs the package, shortens, redirects, counts
	$(CARGO) fmt --all --check
	$(CLIPPY)
	$(CARGO) test --release --locked --workspace $(NATIVE) --exclude links-tests
	$(CARGO) test --release --locked -p links-tests --lib
	$(CARGO) test --release --locked -p links-tests --test appliance -- $(SMOKE)

test: packages-test released deb ## every test, the lab with systemd and nginx included (needs root); SPIN=/path/to/spin for that runtime
	$(CARGO) test --release --workspace $(NATIVE) --locked

soak: packages-test released deb ## the long tests: three million clicks, a million requests over a hundred rollouts, fifty kills, thirty power failures (an hour)
	$(CARGO) test --release --locked -p links-tests --test clicks --test soak --test rollout --test upgrades -- --ignored --nocapture --test-threads 1

deb: build ## both packages, the .deb and the tarball, into target/packages/
	rm -rf $(DIST)
	$(LINKSCTL) pack --out $(DIST)

build:
	component/build.sh
	PATH="$(if $(AUDITABLE),$$(.ci/tools cargo-auditable):)$$PATH" \
		$(CARGO) $(AUDITABLE) build --profile $(PROFILE) --locked -p links-host -p links-installer

lint: packages-test ## formatting, clippy, shellcheck, cargo-deny: everything that must be silent
	$(CARGO) fmt --all --check
	$(CLIPPY)
	git ls-files | xargs grep -lE '^#!/(usr/)?bin/(env )?(ba)?sh' | xargs shellcheck
	.ci/dependencies

bench: packages-bench deb ## speed of this build on this machine, beside another shortener with PEER=URL of one of its redirects; ONLY=edge for a part
	component/build.sh hello
	$(CARGO) build --release --locked -p links-tests --bins
	$(CARGO) run --release --locked -p links-tests --bin bench -- $(ONLY)

clean: ## remove what was built (the caches below ~/.cache/links stay)
	$(CARGO) clean

packages-run packages-bench packages-test:
	@.ci/packages $(@:packages-%=%)

packages-test: servers

.PHONY: servers released
servers:
	@.ci/servers

released:
	@.ci/released
