.PHONY: help demo test lint bench clean

help:
	@echo "make demo   set up, then run a program in a container, as root and as an ordinary user"
	@echo "make test   set up, then lint, types and all tests"
	@echo "make lint   only lint and types"
	@echo "make bench  the benchmark: firkin beside bwrap, runc, crun, podman and Docker"
	@echo "make clean  remove what was made in this folder (tools/setup remove: the test users, too)"

demo:
	@tools/setup run
	@tools/demo

test:
	@tools/setup test
	@tools/test

lint:
	@tools/setup test
	@tools/test lint

bench:
	@tools/setup test
	.venv/bin/python benchmarks/start.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +
