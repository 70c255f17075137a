# Everything happens in .venv/, which is made here: `.venv/bin/asrserver` is the program.

# A Python that the versions in constraints.txt were chosen on, else any newer one.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$python; exit; }; \
	done; python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo python3)
BIN := .venv/bin

# Every install takes the versions in constraints.txt, the environments in which packages are built too.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := setup.cfg setup.py constraints.txt

.PHONY: demo run mic test test-unit test-service test-system soak lint browser docs docs-update dist-check format \
	bench promtool constraints model model-eval clean

demo: .venv/installed ## the whole system on real speech, from nothing
	$(BIN)/python tools/demo.py

run: .venv/installed ## the server on port 8080
	$(BIN)/asrserver run

mic: .venv/mic ## what `asrserver transcribe --live` needs for a microphone, but PortAudio (Debian: libportaudio2)

test: .venv/test ## everything that must pass
	$(MAKE) --no-print-directory -j2 lint browser docs dist-check
	$(BIN)/python -m pytest -m 'not slow' --cov

test-unit: .venv/test ## what needs no server and starts no process: under a minute
	$(BIN)/python -m pytest -m unit

test-service: .venv/test ## what needs a real Redis or PostgreSQL
	$(BIN)/python -m pytest -m service

test-system: .venv/test ## what starts the program as processes
	$(BIN)/python -m pytest -m system

soak: .venv/test ## the slow tests
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: .venv/test ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/test ## the documentation, built strictly into build/site/
	$(BIN)/python tools/generate_docs.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-update: .venv/test ## the parts of it that the code knows, written anew
	$(BIN)/python tools/generate_docs.py

browser: ## Chromium, for the test with a real browser's recorder: Debian's, if we may install it
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		if command -v $$name >/dev/null; then exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; \
	else echo "no Chromium, and not root on Debian: the test with a real browser is skipped" >&2; fi

dist-check: .venv/test ## the sdist and the wheel are built, hold everything, and serve where no checkout is
	$(BIN)/python tools/check_dist.py

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test ## ratios against the bare libraries
	$(BIN)/python tools/bench_gateway.py
	$(BIN)/python tools/bench_worker.py
	$(BIN)/python tools/bench_vad.py
	$(BIN)/python tools/bench_rest.py
	$(BIN)/python tools/bench_broker.py
	$(BIN)/python tools/bench_storage.py
	$(BIN)/python tools/bench_events.py
	$(BIN)/python tools/bench_limits.py
	$(BIN)/python tools/bench_streams.py
	$(BIN)/python tools/bench_growth.py all --quick

promtool: .venv/installed ## what promtool (Debian: prometheus) thinks of the metrics and of the alert rules
	promtool check rules conf/prometheus-rules.yml
	$(BIN)/python -c 'from asrserver.telemetry import metrics; print(metrics.exposition().decode(), end="")' | promtool check metrics

constraints: .venv/bin/pip ## the newest versions of everything that is depended upon; KEEP=--keep only adds
	$(BIN)/python tools/constraints.py $(KEEP)

# The demo model. Needs espeak-ng, flite, festival and festvox-us-slt-hts (Debian packages), and torch.
MODEL ?= build/model
MINUTES ?= 100

model: .venv/model $(MODEL)/corpus ## train it from nothing: about two hours on two cores
	$(BIN)/python tools/model/train.py --corpus $(MODEL) --out $(MODEL)/demo.pt --minutes $(MINUTES)
	$(BIN)/python tools/model/convert.py --checkpoint $(MODEL)/demo.pt

model-eval: .venv/model ## measure it against its targets
	test -e $(MODEL)/evaluation-festival-en.npz || $(BIN)/python tools/model/generate.py --out $(MODEL) --share 0
	$(BIN)/python tools/model/evaluate.py --corpus $(MODEL) --wrong $(MODEL)/wrong.txt --write

$(MODEL)/corpus: tools/model/generate.py tools/model/voices.py tools/model/grammar.json
	$(BIN)/python tools/model/generate.py --out $(MODEL)
	@touch $@

.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: $(REQUIREMENTS) | .venv/bin/pip
	@echo "Installing dependencies into .venv (about 150 MB to download): a minute or two …"
	$(INSTALL) -e '.[embedded]'
	@touch $@

.venv/test: $(REQUIREMENTS) | .venv/bin/pip
	@echo "Installing dependencies and test tools into .venv (about 300 MB to download): a minute or two …"
	$(INSTALL) -e '.[embedded,loadtest,test,docs]'
	@touch .venv/installed $@

.venv/mic: $(REQUIREMENTS) | .venv/bin/pip
	$(INSTALL) -e '.[embedded,mic]'
	@touch .venv/installed $@

.venv/model: $(REQUIREMENTS) | .venv/bin/pip
	@echo "Installing PyTorch into .venv: a few minutes …"
	$(INSTALL) -e '.[embedded,model]'
	@touch .venv/installed $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
