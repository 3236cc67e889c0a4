# Every target sets up what it needs by itself; see scripts/ for what they do.
.DEFAULT_GOAL := help
DEV := _build/venvs/dev/bin/python

.PHONY: help setup demo demo-all test test-faults start release bench bench-peers check clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup        everything that the other targets need; resumable, asks nothing
setup:
	@scripts/setup

## make demo         all set-up, then a tour of the engine on the embedded model
demo:
	@scripts/setup
	@scripts/release --quiet
	@$(DEV) scripts/demo.py

## make demo-all     the same with every framework, and the three plans of examples/plans
demo-all:
	@scripts/setup --frameworks
	@scripts/release --quiet
	@$(DEV) scripts/demo.py --all

## make test         all set-up, then every test; ends with `N passed, N failed'
test:
	@scripts/setup --frameworks
	@scripts/test

## make test-faults  the long forms of the fault tests (about 42 minutes on 2 busy cores)
test-faults:
	@scripts/setup --frameworks
	@SINGULARITY_LONG_TESTS=1 scripts/test guard e2e

## make start        a node in the foreground; honours SINGULARITY_CONFIG and SINGULARITY_DATA_DIR
start:
	@scripts/setup --quiet
	@scripts/start foreground

## make release      the tarball of singularityd, with the Erlang runtime inside
release:
	@scripts/setup
	@scripts/release --tar

## make bench        the benchmarks: tables, and _build/bench/results.json and matrix.json
bench:
	@scripts/setup --frameworks
	@scripts/unpack_postgres
	@scripts/unpack_nginx
	@scripts/release --quiet
	@$(DEV) scripts/bench.py
	@$(DEV) scripts/bench_matrix.py

## make bench-peers  other gateways (LiteLLM, Portkey) beside the HTTP door
bench-peers:
	@scripts/setup
	@scripts/unpack_nginx
	@scripts/release --quiet
	@$(DEV) scripts/bench_peers.py

## make check        layout, linters, types, Dialyzer, dependency rule, proto lint
check:
	@scripts/setup
	@scripts/check

## make clean        removes what was built (not your data)
clean:
	rm -rf _build apps/*/priv/*.so apps/agent_native/priv/bin python_workers/src/singularity_agents/_proto
