# Each target sets .venv up by itself and is quick the second time.
.PHONY: run test soak check proto bench fuzz clean
VENV ?= .venv
PYTHON ?= python3
READY := $(VENV)/.ready

run: $(READY)  ## both tiers on this machine, one photo edited, ready for the next
	@$(VENV)/bin/retouch up

test: $(READY)  ## the whole suite; needs Python alone
	$(VENV)/bin/python -m pytest $(ARGS)

soak: $(READY)  ## an hour of everything at once (SECONDS=600 is less), and the long forms of faults and hostile input
	RETOUCH_TESTS_LONG=1 RETOUCH_TESTS_SOAK_SECONDS=$(SECONDS) \
		$(VENV)/bin/python -m pytest $(or $(ARGS),tests/soak tests/faults tests/hostile)

check: $(READY)  ## ruff and mypy, strict
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

proto: $(READY)  ## regenerate the committed code from the contract
	scripts/proto

bench: $(READY)  ## measure, as ratios in one run; results go to bench/LOG.md by hand
	$(VENV)/bin/python -m bench.engine
	$(VENV)/bin/python -m bench.compare
	$(VENV)/bin/python -m bench.switches
	$(VENV)/bin/python -m bench.policy
	$(VENV)/bin/python -m bench.gateway
	$(VENV)/bin/python -m bench.overload
	$(VENV)/bin/python -m bench.roll
	$(VENV)/bin/python -m bench.scale_out

fuzz: $(READY)  ## fuzz what parses strangers' bytes, each for a minute; ARGS="picture -max_total_time=600" for one
	scripts/fuzz $(ARGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) .retouch

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Retouch needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@[ -x $(VENV)/bin/pip ] && $(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || $(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[server,gateway,object-store,redis,c2pa,tracing,cli,dev]'
	@touch $@
