# Frequent tasks. Each target first installs what is missing: apt packages (Debian, Ubuntu), a virtual
# environment in .venv, and the package with its extras.

SHELL := bash
.SHELLFLAGS := -o pipefail -c
# The Python of the distribution, to which python3-venv and python3-dev belong. Another one in PATH is
# often built without optimisation; it is used if the distribution's is too old.
PYTHON ?= $(or $(shell for each in /usr/bin/python3 python3; do \
    $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; \
done),python3)
# Many images set this variable. Then each start of a program compiles all its modules again, and a
# third of the tests' time goes there.
export PYTHONDONTWRITEBYTECODE :=
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := .venv/bin

# Programs that the demo runs: nft, namespaces, and programs that try to get out; and requirements to
# compile the BPF programs when the package is installed.
DEMO_PACKAGES := nftables iproute2 iputils-ping curl clang libbpf-dev libbpf1 libc6-dev python3-venv

# Other programs that the package runs (journalctl), requirements to build systemd-python, and tools of
# the tests: their own journald, jq, a compiler for one shim, Kubernetes manifests and their proxy,
# virtual machines and their programs, a container runtime, and receivers of events.
PACKAGES := $(DEMO_PACKAGES) iptables jq systemd systemd-journal-remote \
            gcc pkg-config libsystemd-dev python3-dev \
            kustomize tinyproxy-bin qemu-system-x86 busybox-static runc shellcheck \
            nats-server librdkafka1 kcat rsyslog rsyslog-openssl rsyslog-gnutls promtool e2fsprogs

# Browser of the slow tests of reports, and of their picture.
BROWSER := chromium

# Prometheus of a slow test. Where systemd runs, Debian starts its daemon; the test runs its own one.
MONITORING := prometheus

# Container engines of the slow tests. Where systemd runs, Debian starts the daemons of Docker and
# containerd; the tests run their own ones, in namespaces of their own.
ENGINES := docker.io docker-cli podman containerd containernetworking-plugins

# Programs that `make bench` compares with.
PEERS := mawk gawk ulogd2 ulogd2-json

# Build-Depends of deploy/debian/control, for `make package`.
PACKAGING := debhelper dpkg-dev dh-python pybuild-plugin-pyproject help2man python3-setuptools \
             python3-click python3-orjson python3-prometheus-client python3-pydantic python3-rich \
             python3-structlog
# Programs of the slow tests of these packages.
PACKAGING_TESTS := lintian man-db mmdebstrap
# The folder of the built packages.
DIST ?= dist

# Most tests wait, so there are more workers than cores.
WORKERS ?= 4
PYTEST = $(SUDO) $(BIN)/pytest -q --durations=10 --durations-min=1

.PHONY: help demo test test-slow test-loaded test-odd-host mutants mutants-rules ways fuzz lint lint-types lint-rest bench soak package docs \
        reference detections screenshots clean system system-demo

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' Makefile

demo: .venv/demo  ## Fence a throw-away sandbox and watch programs fail to get out of it.
	$(SUDO) $(BIN)/ocsf-nft demo

test: .venv/ready  ## Run all tests but the slow ones, or a part: make test ARGS="tests/fence -k name".
	$(PYTEST) $(or $(ARGS),-n $(WORKERS))

test-slow: PACKAGES += $(PACKAGING) $(PACKAGING_TESTS) $(ENGINES) $(BROWSER) $(MONITORING)
test-slow: system .venv/ready  ## Run the slow tests: virtual machines, container engines, 200 kills, whole floods.
	$(PYTEST) -m slow $(or $(ARGS),-n $(WORKERS))

test-loaded: .venv/ready  ## Run the tests that could depend on timing 20 times beside busy processes.
	$(SUDO) $(BIN)/python -m tests.loaded --runs $(or $(RUNS),20) $(if $(ARGS),-- $(ARGS))

test-odd-host: PACKAGES += docker.io docker-cli locales
test-odd-host: system .venv/ready  ## Run the tests beside Docker and a firewall, with an unusual umask and locale.
	$(SUDO) tests/odd_host.sh $(or $(ARGS),-n $(WORKERS))

mutants: .venv/ready  ## Break the Python code in small ways, one by one: make mutants ARGS="--seed 7".
	$(BIN)/pip install --quiet --constraint constraints.txt --group mutants
	$(SUDO) $(BIN)/python -m tests.mutants.python $(ARGS)

ways: .venv/ready  ## Try all ways round the proxy, and write docs/explanation/ways-round.md again.
	$(SUDO) $(BIN)/python -m tests.kernel.ways docs/explanation/ways-round.md

mutants-rules: .venv/ready  ## Break the rulesets line by line: make mutants-rules ARGS="--file tap.nft".
	$(SUDO) $(BIN)/python -m tests.mutants.rules $(ARGS)

lint: .venv/ready  ## Check style, types and the direction of imports.
	@$(MAKE) --no-print-directory -j2 --output-sync lint-types lint-rest

lint-types: .venv/ready
	$(BIN)/mypy --num-workers auto

lint-rest: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m tests.plain_english
	$(BIN)/hadolint deploy/container/Dockerfile deploy/kubernetes/example/proxy/Dockerfile

fuzz: .venv/ready  ## Fuzz all parsers of hostile bytes, 100 million inputs: make fuzz INPUTS=1000000 SEED=2.
	$(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),100000000) --seed $(or $(SEED),1) $(ARGS)

bench: PACKAGES += $(PEERS)
bench: system .venv/ready  ## Measure, beside the peers, in the same run.
	$(BIN)/pip install --quiet --constraint constraints.txt --group bench
	$(SUDO) $(BIN)/python -m bench

soak: .venv/ready  ## Run services with 6 and 50 sandboxes through bursts and faults for 30 minutes.
	$(SUDO) $(BIN)/python -m bench.soak $(ARGS)

package: PACKAGES += $(PACKAGING)
package: system .venv/ready  ## Build a source distribution, a wheel and a Debian package in dist/.
	rm -f $(DIST)/ocsf_nft-* $(DIST)/ocsf-nft_*
	$(BIN)/python -m build --quiet --outdir $(DIST)
	deploy/debian/build-deb $(DIST)
	@ls -1 $(DIST)/*

docs: .venv/ready  ## Build the documentation as a site in build/docs.
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs
	@echo "open build/docs/index.html"

reference: .venv/ready  ## Write the generated files of docs/reference again.
	$(BIN)/python -m tests.docs.field_guide docs/reference/events.md
	$(BIN)/python -m tests.docs.sinks_page docs/reference/sinks.md
	$(BIN)/python -m tests.docs.openapi_file docs/reference/control-api.openapi.json
	$(BIN)/python -m tests.docs.cli_page docs/reference/cli.md

detections: .venv/ready  ## Write the generated files of detections/ again.
	$(BIN)/python -m tests.detections.conversion

screenshots: PACKAGES += $(BROWSER)
screenshots: system .venv/ready  ## Draw the pictures of docs/images again, from real runs.
	$(SUDO) $(BIN)/python -m tests.docs.screenshots

clean:  ## Remove what the other targets made.
	$(SUDO) rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
	    .hypothesis .import_linter_cache .guest
	$(SUDO) find . -name __pycache__ -type d -prune -exec rm -rf {} +

PIP := $(BIN)/pip install --disable-pip-version-check --progress-bar off
# Of the messages of pip and apt-get, one line for each package.
PIP_PROGRESS := sed -un 's/^Collecting \([^ ]*\).*/  \1/p'
APT_PROGRESS := sed -un 's/^Setting up \([^ ]*\).*/  \1/p'

# The package without extras.
.venv/demo: pyproject.toml setup.py constraints.txt $(wildcard ocsf_nft/*/bpf/*.[ch] ocsf_nft/*/native/*.[ch]) | system-demo
	@echo "making .venv: a virtual environment with ocsf-nft and its libraries (about a minute)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --constraint constraints.txt --editable . | $(PIP_PROGRESS)
	@touch $@

# The package with all extras, and what tests, lint and docs use.
.venv/ready: .venv/demo | system
	@echo "adding to .venv: all extras, and what the tests, lint and docs use (some minutes)"
	@$(PIP) --upgrade pip | $(PIP_PROGRESS)  # --group needs version 25.1
	@PYTHONWARNINGS=ignore $(PIP) --constraint constraints.txt \
	    --editable '.[journal,validate,http,nats,kafka,parquet,names,zstd]' \
	    --group test --group lint --group docs | $(PIP_PROGRESS)
	@touch $@

# Install the Debian packages $(1) that are missing.
define install_packages
command -v apt-get >/dev/null || { echo "no apt-get: install $(1), or their like"; exit 0; }; \
missing() { for package in $(1); do \
    dpkg-query -W -f='$${db:Status-Status}\n' $$package 2>/dev/null | grep -qx installed \
        || echo $$package; \
done; }; \
absent=$$(missing); \
if [ -n "$$absent" ]; then \
    echo "installing Debian packages (some minutes):" $$absent; \
    $(SUDO) apt-get update -qq && \
    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        -o Dpkg::Use-Pty=0 $$absent | $(APT_PROGRESS); \
fi
endef

system:
	@$(call install_packages,$(PACKAGES))

system-demo:
	@$(call install_packages,$(DEMO_PACKAGES))
