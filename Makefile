.PHONY: test slow lint format build ci

test:
	pytest

slow:
	pytest -m slow

lint:
	ruff check .
	ruff format --check .
	mypy
	python .ci/lint_model_files.py

format:
	ruff check --fix .
	ruff format .

build:
	python -m build

ci:
	bash .ci/run
