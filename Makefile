# Each target sets up .venv first; that needs make, a network and Python 3.11 or newer.
PYTHON ?= python3
VENV = .venv/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: install demo test pytest lint audit docs

install: $(VENV)

# Huge pages make training on the CPU faster (docs/hardware.md). A value in the environment is kept.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)
	.venv/bin/python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda

# Both at once: tests wait for processes now and then, and lint takes that time.
test: $(VENV)
	$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: $(VENV)
	.venv/bin/python -m pytest

lint: $(VENV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck examples/slurm/*.sh experiments/*.sh

# The site. A link that leads nowhere is a warning, and --fail-on-warning makes it an error.
docs: $(VENV)
	test -x .venv/bin/sphinx-build || .venv/bin/python -m pip install --quiet --editable '.[docs]'
	.venv/bin/sphinx-build --quiet --fail-on-warning --fresh-env -c docs --builder html . site
	echo '<meta http-equiv="refresh" content="0; url=docs/index.html">' > site/index.html
	@echo 'Open site/index.html in a browser.'

# Known vulnerabilities of the versions in the lock file. --strict: fail if one cannot be looked up.
audit: $(VENV)
	test -x .venv/audit/bin/pip-audit || .venv/bin/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet 'pip-audit>=2.10,<3'
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

$(VENV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev,experiments]'
	touch $@
