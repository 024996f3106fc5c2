.DEFAULT_GOAL := help
.PHONY: help setup generate

help:  ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup:  ## Makes .venv with what generating music needs
	@scripts/setup_venv.sh

# The prompt reaches the program through the environment, as it was typed: quotes, apostrophes
# and dollar signs mean nothing on the way. `value` keeps make from expanding it, `unexport` from
# expanding it while it hands its own variables down.
PROMPT ?=
SECONDS ?= 10
SEED ?= 0
MODEL ?= gm-mini
OUT ?= out
export MUSICLM_PROMPT := $(value PROMPT)
unexport PROMPT

generate:  ## Makes music: PROMPT="…" [SECONDS=10 SEED=0 MODEL=gm-mini OUT=out]
	@[ -n "$$MUSICLM_PROMPT" ] || { \
		echo 'musiclm: error: no prompt: say make generate PROMPT="a calm flute melody"' >&2; exit 2; }
	@scripts/setup_venv.sh
	@.venv/bin/musiclm generate --png --seconds "$(SECONDS)" --seed "$(SEED)" \
		--model "$(MODEL)" --out "$(OUT)" -- "$$MUSICLM_PROMPT"
