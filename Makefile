# Two commands do everything on a machine with Python 3.11 or newer: `make lab` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS ?= $(sort $(wildcard notebooks/[0-9]*.ipynb))
# The versions that the stored outputs were made with. Where they can't be had: `make lab LOCK=` takes the newest that fit.
LOCK ?= --constraint requirements.lock

.PHONY: lab explore test test-slow test-lowest notebooks slides sheet lint lock bench

lab: .venv/installed
	$(BIN)/jupyter lab $(LAB_FLAGS) notebooks/00_start_here.ipynb

# The explorer alone, as one file that needs neither Python nor a network: for a lecture hall, a phone, a memory stick.
explore: .venv/installed
	$(BIN)/python -m capsule_lib.explorer build/explorer.html
	$(BIN)/python -c "import pathlib, webbrowser; webbrowser.open(pathlib.Path('build/explorer.html').resolve().as_uri())"

# The notebooks are executed once, as copies with two more kinds of cells: the truth of a prediction and the solution of an exercise.
test: .venv/installed lint
	$(BIN)/pytest
	rm -rf build/notebooks
	$(BIN)/python tests/solutions.py build/notebooks $(NOTEBOOKS)
	$(BIN)/pytest --nbval --nbval-cell-timeout=900 build/notebooks

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

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(LOCK) --editable ".[test]"
	touch $@

# Time and memory of three forms of routing on this machine: about ten minutes, with nothing else running.
bench: .venv/installed
	$(BIN)/python -m capsule_lib.bench --out build/bench.json

# What takes too long for `make test`: the paper's network on all 10,000 test digits, 256 pixels.
test-slow: .venv/installed
	$(BIN)/pytest -m slow

# The lower bounds of pyproject.toml, tried: the oldest Python and packages that they allow, with every test that is not slow.
# They take 6 GB below build/.
test-lowest: build/uv/bin/uv
	$< venv --quiet --clear --python 3.11 build/lowest
	$< pip install --quiet --python build/lowest --resolution lowest-direct --editable ".[test]"
	build/lowest/bin/pytest

# Choose the newest versions for every system. Then `make notebooks` stores the outputs that they give. What PyTorch brings
# for the GPU depends on its build, and is left to it.
lock: build/uv/bin/uv
	UV_CUSTOM_COMPILE_COMMAND="make lock" $< pip compile --quiet --universal --upgrade --no-annotate --extra test pyproject.toml \
		--output-file build/requirements.lock
	grep -vE '^(cuda|nvidia|triton)' build/requirements.lock > requirements.lock

build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet --disable-pip-version-check uv

# List the files that ship anew, after one of them was made again: what is read is verified with this list.
.PHONY: sums
sums:
	cd data && sha256sum weights/*.json weights/*.safetensors benchmarks/*.json experiments/*.json > SHA256SUMS

# Every notebook and the training command on a stand-in accelerator, which refuses what CUDA or MPS would refuse: about ten minutes.
.PHONY: test-device
test-device: .venv/installed
	$(BIN)/pytest -m "not gpu" tests/test_device.py
