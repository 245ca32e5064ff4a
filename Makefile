# make serve: install, then serve what the settings say, by default the embedded model on http://127.0.0.1:8000/v1;
#             takes HOST=, PORT= and MODEL=
# make test:  install, then run the tests
# make bench: measure the gateway beside mlx_lm.server and mlx-lm's plain generator; ARGS takes what `bench` takes
PYTHON ?= python3

BIN := .venv/bin

# Only what is given to make itself: HOST, PORT and MODEL stand in many an environment for something else, and as options
# they would go over every setting.
given = $(if $(filter command,$(origin $1)),$($1))
option = $(if $(call given,$1),--$2 "$($1)")

.PHONY: install serve test check format bench demo-model clean
.DEFAULT_GOAL := serve

install: .venv/.installed
develop: .venv/.installed-dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "openai-gateway needs Python 3.11 to 3.13, and $(PYTHON) is another; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# Without its dependencies: it bounds jiter below what the SDK needs, and works with it. What it imports is in [dev].
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'instructor>=1.17,<2'
	@touch .venv/.installed $@

serve: install
	$(BIN)/openai-gateway serve $(call option,HOST,host) $(call option,PORT,port) $(call option,MODEL,model)

test: develop
	$(BIN)/python -m pytest $(ARGS)

check: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A model of random weights is made in .bench for it; MODEL=demo takes the embedded one.
bench: install
	$(BIN)/openai-gateway bench --start "$(or $(call given,MODEL),tiny)" --rounds 3 $(ARGS)

# Trains the embedded model again from nothing: about an hour on two cores, more beside other work.
demo-model: develop
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	OMP_WAIT_POLICY=passive $(BIN)/python -m openai_gateway.demo.training.train

clean:
	rm -rf .venv .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
