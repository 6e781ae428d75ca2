# make setup | imagine | real | test | lint | bench        ARGS="task:=push episodes:=3" goes on to the command.
#   PYTHON=python3.11   the interpreter for .venv (3.10 to 3.12; default: the newest of them)
#   TORCH=cpu|cuda      the build of torch (default: cuda where nvidia-smi sees a GPU, else cpu)
#   WORKERS=1           processes for the tests (default: 2)
.PHONY: setup imagine real test lint format bench lock clean
ARGS ?=
WORKERS ?= 2

setup:
	@scripts/setup

imagine: setup
	@.venv/bin/wvl up imagine $(ARGS)

real: setup
	@.venv/bin/wvl up real_robot $(ARGS)

test: setup
	@.venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --quiet $(ARGS)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

format: setup
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: setup
	@.venv/bin/python -m benchmarks $(ARGS)

# Newer pins for all Pythons at once; needs `uv` (pip install uv).
lock:
	uv pip compile --upgrade --universal --python-version 3.10 --extra test --no-annotate \
	  --custom-compile-command "make lock" pyproject.toml requirements.in --output-file requirements.lock
	sed -i -E "s/ and platform_python_implementation == 'CPython' and sys_platform == 'linux'//g; s/ ; platform_machine.*//; \
	  s/ and python_full_version < '3.13'//; s/ ; python_full_version < '3.13'.*//; /^hf-xet/ s/ ;.*//" requirements.lock

clean:
	rm -rf .venv build wvl_ros.egg-info wvl_ros/msg wvl_ros/srv wvl_ros/action wvl_ros/*.so
