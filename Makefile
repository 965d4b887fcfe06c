# Frequent tasks. Each target first installs what is missing: apt packages (Debian, Ubuntu), a virtual
# environment in .venv, and the package with its extras.

PYTHON ?= python3
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := .venv/bin

# Programs that the package runs (nft, journalctl), requirements to build systemd-python, and tools of
# the tests and the demo: namespaces, ping, curl, their own journald, jq, a compiler for one shim,
# Kubernetes manifests and their proxy, virtual machines and their programs, and receivers of events.
PACKAGES := nftables iptables iproute2 iputils-ping curl jq systemd systemd-journal-remote \
            clang libbpf-dev libbpf1 gcc libc6-dev pkg-config libsystemd-dev python3-dev python3-venv \
            kustomize tinyproxy-bin qemu-system-x86 busybox-static shellcheck \
            nats-server librdkafka1 kcat rsyslog rsyslog-openssl rsyslog-gnutls promtool e2fsprogs

# Programs that `make bench` compares with.
PEERS := mawk ulogd2 ulogd2-json

# Build-Depends of deploy/debian/control, for `make package`.
PACKAGING := debhelper dpkg-dev dh-python pybuild-plugin-pyproject help2man python3-setuptools \
             python3-orjson python3-prometheus-client python3-pydantic python3-rich \
             python3-structlog python3-typer
# Programs of the slow tests of these packages.
PACKAGING_TESTS := lintian man-db mmdebstrap
# The folder of the built packages.
DIST ?= dist

# Most tests wait, so there are more workers than cores.
WORKERS ?= 4
PYTEST = $(SUDO) $(BIN)/pytest -q --durations=10 --durations-min=1

.PHONY: help demo test test-slow test-loaded test-odd-host mutants mutants-rules lint bench package docs reference clean system

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' Makefile

demo: .venv/ready  ## Fence a throw-away sandbox and watch programs fail to get out of it.
	$(SUDO) $(BIN)/ocsf-nft demo

test: .venv/ready  ## Run all tests but the slow ones, or a part: make test ARGS="tests/fence -k name".
	$(PYTEST) $(or $(ARGS),-n $(WORKERS))

test-slow: PACKAGES += $(PACKAGING) $(PACKAGING_TESTS)
test-slow: system .venv/ready  ## Run the slow tests: virtual machines, 200 kills, a long outage, whole floods.
	$(PYTEST) -m slow $(or $(ARGS),-n 2)

test-loaded: .venv/ready  ## Run the tests that could depend on timing 20 times beside busy processes.
	$(SUDO) $(BIN)/python -m tests.loaded --runs $(or $(RUNS),20) $(if $(ARGS),-- $(ARGS))

test-odd-host: PACKAGES += docker.io docker-cli locales
test-odd-host: system .venv/ready  ## Run the tests beside Docker and a firewall, with an unusual umask and locale.
	$(SUDO) tests/odd_host.sh $(or $(ARGS),-n $(WORKERS))

mutants: .venv/ready  ## Break the Python code in small ways, one by one: make mutants ARGS="--seed 7".
	$(BIN)/pip install --quiet --constraint constraints.txt --group mutants
	$(SUDO) $(BIN)/python -m tests.mutants.python $(ARGS)

mutants-rules: .venv/ready  ## Break the rulesets line by line: make mutants-rules ARGS="--file tap.nft".
	$(SUDO) $(BIN)/python -m tests.mutants.rules $(ARGS)

lint: .venv/ready  ## Check style, types and the direction of imports.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.plain_english
	$(BIN)/hadolint deploy/container/Dockerfile deploy/kubernetes/example/proxy/Dockerfile

bench: PACKAGES += $(PEERS)
bench: system .venv/ready  ## Measure, beside the peers, in the same run.
	$(SUDO) $(BIN)/python -m bench

package: PACKAGES += $(PACKAGING)
package: system .venv/ready  ## Build a source distribution, a wheel and a Debian package in dist/.
	rm -f $(DIST)/ocsf_nft-* $(DIST)/ocsf-nft_*
	$(BIN)/python -m build --quiet --outdir $(DIST)
	deploy/debian/build-deb $(DIST)
	@ls -1 $(DIST)/*

docs: .venv/ready  ## Build the documentation as a site in build/docs.
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs
	@echo "open build/docs/index.html"

reference: .venv/ready  ## Write the generated pages of docs/reference again: events, sinks, cli.
	$(BIN)/python -m ocsf_nft.ocsf.field_guide docs/reference/events.md
	$(BIN)/python -m ocsf_nft.config.guide docs/reference/sinks.md
	$(BIN)/typer ocsf_nft.cli utils docs --name ocsf-nft --title "Command line" \
	    --output docs/reference/cli.md

clean:  ## Remove what the other targets made.
	$(SUDO) rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
	    .hypothesis .import_linter_cache .guest
	$(SUDO) find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: pyproject.toml setup.py constraints.txt $(wildcard ocsf_nft/attribution/bpf/*.[ch]) | system
	@echo "setting up .venv"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[journal,validate,http,nats,kafka,parquet]' \
	    --group test --group lint --group docs
	@touch $@

system:
	@command -v apt-get >/dev/null || { echo "no apt-get: install $(PACKAGES), or their like"; exit 0; }; \
	missing=$$(for package in $(PACKAGES); do \
	    dpkg-query -W -f='$${db:Status-Status}\n' $$package 2>/dev/null | grep -qx installed \
	        || echo $$package; \
	done); \
	if [ -n "$$missing" ]; then \
	    echo "installing" $$missing; \
	    $(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	        apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi
