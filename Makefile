# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A second opinion for tests. It asks for an attrs of 2023, which others here exclude, and runs with today's.
OPINION := dp-accounting==0.6.0 absl-py==2.5.1 dm-tree==0.1.10
AXE    := tests/browser/node_modules/.package-lock.json
SKIPPED := the tests in a browser are skipped
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c requirements.lock

.PHONY: demo test browser check format stubs simulate lock peers images clean

demo: $(VENV)/.demo       ## set up, then run the main job
	$(BIN)/hansa demo $(ARGS)

test: $(VENV)/.dev browser  ## set up, then run every test, or make test ARGS=tests/unit/test_ledger.py
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -q -n 2 --ignore tests/processes --ignore tests/browser
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/processes tests/browser
endif

browser:                  ## Chromium and axe-core, for the tests in a real browser; without them these are skipped
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing Chromium (about 400 MB on disk)"; \
	        apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	            chromium chromium-driver fonts-liberation >/dev/null || echo "Chromium cannot be installed: $(SKIPPED)"; \
	    else echo "there is no Chromium (root on Debian: apt-get install chromium chromium-driver): $(SKIPPED)"; fi; fi
	@if [ ! $(AXE) -nt tests/browser/package-lock.json ]; then \
	    if command -v npm >/dev/null; then \
	        (cd tests/browser && npm ci --no-audit --no-fund --loglevel=error && touch node_modules/.package-lock.json) \
	            || echo "npm cannot install axe-core: $(SKIPPED)"; \
	    else echo "there is no npm to install axe-core: $(SKIPPED)"; fi; fi

check: $(VENV)/.dev       ## lint, types, house laws, stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/house

simulate: $(VENV)/.dev    ## many seeds of the whole consortium with faults: make simulate SEEDS=10000, or SEED=17
	SEED=$(SEED) SEEDS=$(or $(SEEDS),10000) $(BIN)/python -m pytest -q -n 2 tests/simulation

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

stubs: $(VENV)/.dev       ## regenerate commons/wire/v1 from proto/
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
	    --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. proto/commons/wire/v1/*.proto

lock: $(VENV)/.dev        ## write the versions now installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -Ev '^(hansa|dp-accounting|absl-py|dm-tree)' > requirements.lock

PEERS  ?= runs/peers
peers: $(PEERS)/flower/.ready $(PEERS)/nvflare/.ready  ## environments of the systems that the benches put beside Hansa

$(PEERS)/%/.ready: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

images: $(VENV)/.dev browser  ## pictures of every page of the dashboard on every screen, into runs/images, to be looked at
	HANSA_IMAGES=runs/images $(BIN)/python -m pytest -q tests/browser/test_pages.py tests/browser/test_signing_in.py

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	@echo "creating $(VENV) (torch, Ray and MLflow: about 2.3 GB on disk, two to five minutes)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) -e '.[samples]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock Makefile | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(OPINION)
	@touch $@ $(VENV)/.demo
