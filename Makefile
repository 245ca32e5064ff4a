# make serve: install, then serve what the settings say, by default the embedded model on http://127.0.0.1:8000/v1;
#             takes HOST=, PORT= and MODEL=
# make test:  install, then run the tests
# make bench: measure the gateway beside mlx_lm.server and mlx-lm's plain generator; ARGS takes what `bench` takes

# What .venv is made with: the first of these that fits.
PYTHON ?= python3 python3.13 python3.12 python3.11 python3.14

BIN := .venv/bin

# Says why a Python, or the machine, does not fit: pip would only say that it finds no mlx for it.
define fits
import platform, sys
python, version, mac = sys.argv[1], platform.python_version(), platform.mac_ver()[0]
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit("%s is Python %s" % (python, version))
if sys.platform == "darwin" and platform.machine() != "arm64":
    sys.exit("%s runs as %s, and MLX needs Apple silicon and a Python for arm64" % (python, platform.machine()))
if sys.platform == "darwin" and int(mac.split(".")[0]) < 14:
    sys.exit("this is macOS %s, and MLX needs 14 or newer" % mac)
libc, release = platform.libc_ver()
found = ("%s %s" % (libc, release)).strip() or "no glibc"
if sys.platform == "linux" and (libc != "glibc" or [int(part) for part in release.split(".")] < [2, 35]):
    sys.exit("this Linux has %s, and MLX needs glibc 2.35 or newer" % found)
endef
export fits

# uv makes environments without pip. In dot folders under Documents or on the Desktop macOS hides files, and Python passes
# over hidden .pth files, which is how an editable install is found from elsewhere.
define pip
@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip
$(BIN)/python -m pip install --quiet --disable-pip-version-check $1
@chflags nohidden .venv/lib/python*/site-packages/*.pth 2>/dev/null || true
endef

# Where the Python is gone, as after an upgrade by Homebrew, what was installed for it is no good to the next one.
$(shell test -x $(BIN)/python || rm -f .venv/.installed .venv/.installed-dev)

# Only what is given to make itself: HOST, PORT and MODEL stand in many an environment for something else, and as options
# they would go over every setting.
given = $(if $(filter command,$(origin $1)),$($1))
option = $(if $(call given,$1),--$2 "$($1)")

.PHONY: install serve test check format bench demo-model clean
.DEFAULT_GOAL := serve

install: .venv/.installed
develop: .venv/.installed-dev

.venv/bin/python:
	@for python in $(PYTHON); do \
		if ! command -v "$$python" >/dev/null; then reason="$$python is missing"; \
		elif reason=$$("$$python" -c "$$fits" "$$python" 2>&1); then \
			echo "$$python -m venv --clear .venv"; exec "$$python" -m venv --clear .venv; \
		fi; \
		reasons="$$reasons  $$reason\n"; \
	done; \
	printf 'openai-gateway needs Python 3.11 to 3.14:\n%b' "$$reasons" >&2; \
	echo 'Get one with `brew install python@3.13`, from python.org or with `uv python install 3.13`, and if it is not found' \
		'by itself: make $(MAKECMDGOALS) PYTHON=...' >&2; exit 1

.venv/.installed: pyproject.toml | .venv/bin/python
	$(call pip,--editable .)
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(call pip,--editable '.[dev]')
	@# Without its dependencies: it bounds jiter below what the SDK needs, and works with it. What it imports is in [dev].
	$(call pip,--no-deps 'instructor~=1.17')
	@touch .venv/.installed $@

serve: install
	$(BIN)/python -m openai_gateway serve $(call option,HOST,host) $(call option,PORT,port) $(call option,MODEL,model)

# On two cores, a file's tests on one of them: they share the servers that it starts.
test: develop
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

check: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform linux --cache-dir .mypy_cache/linux
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A model of random weights is made in .bench for it; MODEL=demo takes the embedded one.
bench: install
	$(BIN)/python -m openai_gateway bench --start "$(or $(call given,MODEL),tiny)" --rounds 3 $(ARGS)

# Trains the embedded model again from nothing: one to two hours on two cores, more beside other work.
demo-model: develop
	$(call pip,--editable '.[train]')
	OMP_WAIT_POLICY=passive $(BIN)/python -m openai_gateway.demo.training.train

clean:
	rm -rf .venv .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
