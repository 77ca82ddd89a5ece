# Two commands do everything on a machine with Python 3.11 or newer: `make lab` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS ?= $(sort $(wildcard notebooks/[0-9]*.ipynb))

.PHONY: lab explore test test-slow notebooks slides sheet lint bench

lab: .venv/installed
	$(BIN)/jupyter lab $(LAB_FLAGS) notebooks/00_start_here.ipynb

# The explorer alone, on a page without code, for a lecture hall.
explore: .venv/installed
	$(BIN)/voila $(VOILA_FLAGS) capsule_lib/explorer/explore.ipynb

test: .venv/installed lint
	$(BIN)/pytest
	$(BIN)/pytest --nbval --nbval-cell-timeout=300 $(NOTEBOOKS)

# Execute from a fresh kernel and store the outputs, without widget state and timings. Then join what the kernel printed in
# pieces, in a second call: within one, it would be joined before it is executed.
notebooks: .venv/installed
	CAPSULE_HOME=$$(mktemp -d) $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.store_widget_state=False \
		--ExecutePreprocessor.record_timing=False $(NOTEBOOKS)
	$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams $(NOTEBOOKS)

slides: .venv/installed
	$(BIN)/jupyter nbconvert --to slides --output-dir build/slides --no-prompt --embed-images \
		--TemplateExporter.extra_template_basedirs=notebooks --template=slides \
		--SlidesExporter.reveal_width=1280 --SlidesExporter.reveal_height=800 $(NOTEBOOKS)

# The page to keep, for a printer: two sides of A4. Its formulas come from the network.
sheet: .venv/installed
	$(BIN)/jupyter nbconvert --to html --output-dir build --embed-images \
		--TemplateExporter.extra_template_basedirs=notebooks --template=sheet notebooks/notation.ipynb

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

# Time and memory of three forms of routing on this machine: about ten minutes, with nothing else running.
bench: .venv/installed
	$(BIN)/python -m capsule_lib.bench --out build/bench.json

# What takes too long for `make test`: the paper's network on all 10,000 test digits, 256 pixels.
test-slow: .venv/installed
	$(BIN)/pytest -m slow
