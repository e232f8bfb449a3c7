# The README's two commands. Each makes .venv by itself on a machine that has make and Python 3.11 or newer.
PYTHON ?= python3
VENV = .venv/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: install demo test lint

install: $(VENV)

demo: $(VENV)
	.venv/bin/python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda

test: $(VENV) lint
	.venv/bin/python -m pytest

lint: $(VENV)
	.venv/bin/ruff check .

$(VENV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev,experiments]'
	touch $@
