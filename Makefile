.DEFAULT_GOAL := help
.PHONY: help setup generate setup-test test test-fast lint setup-train train-mini figures bench-gm bench-data bench-train bench-sample

help:  ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup:  ## Makes .venv with what generating music needs
	@scripts/setup_venv.sh

# The prompt reaches the program through the environment, as it was typed: quotes, apostrophes
# and dollar signs mean nothing on the way. `value` keeps make from expanding it, `unexport` from
# expanding it while it hands its own variables down.
PROMPT ?=
SECONDS := 10
SEED := 0
MODEL := gm-mini
OUT := out
export MUSICLM_PROMPT := $(value PROMPT)
unexport PROMPT

generate:  ## Makes music: PROMPT="…" [SECONDS=10 SEED=0 MODEL=gm-mini OUT=out]
	@[ -n "$$MUSICLM_PROMPT" ] || { \
		echo 'musiclm: error: no prompt: say make generate PROMPT="a calm flute melody"' >&2; exit 2; }
	@scripts/setup_venv.sh
	@.venv/bin/musiclm generate --png --seconds "$(SECONDS)" --seed "$(SEED)" \
		--model "$(MODEL)" --out "$(OUT)" -- "$$MUSICLM_PROMPT"

# Tests -------------------------------------------------------------------------------------------

# Files stay whole, so that what a file's tests share is made once.
PYTEST = .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

setup-test:  ## Makes .venv with what the tests need, and the system packages
	@scripts/setup_venv.sh dev
	@scripts/setup_system.sh chromium

test: setup-test  ## Runs every test
	$(PYTEST)

test-fast: setup-test  ## Runs the tests that take seconds
	$(PYTEST) -m "not slow"

lint: setup-test  ## Checks style and the direction of imports
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

# gm-mini from nothing ----------------------------------------------------------------------------
#
# Every file below is made beside its place and renamed when whole, and every training run resumes
# from its newest checkpoint: after a kill, start it again.

RUN := runs/gm-mini
CLIPS := 32000
HELD_OUT_CLIPS := 600
NAME := gm-mini

CORPUS = $(RUN)/corpus/train
HELD_OUT = $(RUN)/corpus/held_out
RAW = $(RUN)/models
BUNDLE = $(RUN)/bundle
PY = .venv/bin/python -m
# XLA asks for its buffers anew at every step: handing them back to the kernel in between, in small
# pages, costs a quarter of the time on a CPU. Steps one by one, or the buffers of three are kept.
KEEP_MEMORY = GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736 JAX_CPU_ENABLE_ASYNC_DISPATCH=false
TRAIN = $(KEEP_MEMORY) .venv/bin/musiclm train
FIT = .venv/bin/musiclm fit
bind = --gin_bindings='$(1)="$(2)"'

setup-train:
	@scripts/setup_venv.sh data,beam,train
	@scripts/setup_system.sh

train-mini: setup-train $(BUNDLE)/bundle.json  ## Trains gm-mini from nothing: [RUN=runs/gm-mini]

# A corpus grows clip by clip; its stamp says that it is whole.
$(RUN)/corpus/train.complete:
	.venv/bin/musiclm data gm --out $(CORPUS) --clips $(CLIPS) --seed 0
	touch $@

$(RUN)/corpus/held_out.complete:
	.venv/bin/musiclm data gm --out $(HELD_OUT) --clips $(HELD_OUT_CLIPS) --seed 1 --held-out
	touch $@

$(RUN)/vocabulary.json: $(RUN)/corpus/train.complete
	$(FIT) --gin_file=gin/train/mini/vocabulary.gin $(call bind,CORPUS,$(CORPUS)) \
		$(call bind,VOCABULARY,$@)

# A data set's folder is named by what made it; these files say where it is, once it is whole.
# Clips of one sound library and one drum machine look like near duplicates.
SHARDS = --manifest $(CORPUS) --split $* --duplicates exact --window-seconds 10 \
	--num-shards 32 --shards-a-run 4
$(RUN)/sound/%.path: $(RUN)/corpus/train.complete
	mkdir -p $(@D)
	.venv/bin/musiclm pack $(SHARDS) --sample-rate 16000 --out $(RUN)/sound/$* >$@.part
	mv $@.part $@

$(RUN)/tokens/%.path: $(BUNDLE)/mulan.safetensors $(BUNDLE)/w2v_bert.safetensors \
		$(BUNDLE)/soundstream.safetensors
	mkdir -p $(@D)
	.venv/bin/musiclm tokenize $(SHARDS) --bundle $(BUNDLE) --out $(RUN)/tokens/$* >$@.part
	mv $@.part $@

SOUND = $(RUN)/sound/train.path $(RUN)/sound/validation.path
TOKENS = $(RUN)/tokens/train.path $(RUN)/tokens/validation.path
splits = $(call bind,TRAIN,$(shell cat $(RUN)/$(1)/train.path)) \
	$(call bind,VALIDATION,$(shell cat $(RUN)/$(1)/validation.path))

$(RAW)/bert.safetensors: $(RUN)/vocabulary.json $(SOUND)
	$(TRAIN) --gin_file=gin/train/mini/bert.gin $(call splits,sound) \
		$(call bind,VOCABULARY,$<) $(call bind,WORKDIR,$(RUN)/bert) \
		$(call bind,COMPONENT,$(RAW)/bert)

$(RAW)/mulan.safetensors: $(RAW)/bert.safetensors
	$(TRAIN) --gin_file=gin/train/mini/mulan.gin $(call splits,sound) \
		$(call bind,VOCABULARY,$(RUN)/vocabulary.json) $(call bind,START,$(RAW)/bert) \
		$(call bind,WORKDIR,$(RUN)/mulan) $(call bind,COMPONENT,$(RAW)/mulan)

$(BUNDLE)/mulan.safetensors: $(RAW)/mulan.safetensors
	$(FIT) --gin_file=gin/train/mini/mulan_quantizer.gin $(call splits,sound) \
		$(call bind,VOCABULARY,$(RUN)/vocabulary.json) $(call bind,MODEL,$(RAW)/mulan) \
		$(call bind,COMPONENT,$(BUNDLE)/mulan)

$(RAW)/w2v_bert.safetensors: $(SOUND)
	$(TRAIN) --gin_file=gin/train/mini/w2v_bert.gin $(call splits,sound) \
		$(call bind,WORKDIR,$(RUN)/w2v_bert) $(call bind,COMPONENT,$(RAW)/w2v_bert)

$(BUNDLE)/w2v_bert.safetensors: $(RAW)/w2v_bert.safetensors
	$(FIT) --gin_file=gin/train/mini/semantic_clusters.gin $(call splits,sound) \
		$(call bind,MODEL,$(RAW)/w2v_bert) $(call bind,COMPONENT,$(BUNDLE)/w2v_bert)

$(RAW)/soundstream_start.safetensors: $(SOUND)
	$(FIT) --gin_file=gin/train/mini/soundstream_start.gin $(call splits,sound) \
		$(call bind,COMPONENT,$(RAW)/soundstream_start)

$(BUNDLE)/soundstream.safetensors: $(RAW)/soundstream_start.safetensors
	$(TRAIN) --gin_file=gin/train/mini/soundstream.gin $(call splits,sound) \
		$(call bind,START,$(RAW)/soundstream_start) $(call bind,WORKDIR,$(RUN)/soundstream) \
		$(call bind,COMPONENT,$(BUNDLE)/soundstream)

# SoundStorm may stand for the coarse and the fine stage: a bundle may do without.
STAGES = $(foreach stage,semantic coarse fine soundstorm,$(BUNDLE)/$(stage).safetensors)

$(STAGES): $(BUNDLE)/%.safetensors: $(TOKENS)
	$(TRAIN) --gin_file=gin/train/mini/$*.gin $(call splits,tokens) \
		$(call bind,TOKENIZERS,$(BUNDLE)) $(call bind,WORKDIR,$(RUN)/$*) \
		$(call bind,COMPONENT,$(BUNDLE)/$*)

$(BUNDLE)/bundle.json: $(STAGES)
	$(FIT) --gin_file=gin/train/mini/bundle.gin $(call bind,BUNDLE,$(BUNDLE)) \
		$(call bind,NAME,$(NAME))

# What a bundle achieves on held-out clips: make figures BUNDLE=gm-mini measures the bundled one.
figures: setup-test $(RUN)/corpus/train.complete $(RUN)/corpus/held_out.complete  ## Measures a bundle and writes the README's figures
	.venv/bin/musiclm evaluate --model $(BUNDLE) --train $(CORPUS) --held-out $(HELD_OUT) \
		--judge gm-judge --best-of 4 --out $(RUN)/report --readme README.md
	cp $(RUN)/report/report.md docs/gm_mini.md

bench-gm: setup-test  ## Measures how fast the corpus is rendered
	.venv/bin/python benchmarks/gm_render.py

BENCH_DATA = $(RUN)/bench-data.jsonl
bench-data: setup-test  ## Measures how data is decoded, tokenized and fed, and what 280,000 h take
	@mkdir -p $(RUN)
	for part in decode tokenizing feed; do taskset -c 0 .venv/bin/python benchmarks/$$part.py || exit 2; \
		done >$(BENCH_DATA)
	cat $(BENCH_DATA)
	.venv/bin/python benchmarks/capacity.py $(BENCH_DATA)

# PyTorch lives in an environment of its own: nothing here depends on it.
PEERS = $(RUN)/peers
$(PEERS)/.installed:
	.venv/bin/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 audiolm-pytorch==2.4.0 \
		encodec==0.1.1 transformers
	touch $@

# The peers compute on the CPU, and so do we beside them, GPU or not.
BESIDE_PEERS = JAX_PLATFORMS=cpu $(KEEP_MEMORY) .venv/bin/python
# Without XLA's products in Triton a step is compiled sooner, and is not slower.
bench-train: setup-test $(PEERS)/.installed  ## Measures training steps beside PyTorch's, what the loop adds, and a GPU
	$(BESIDE_PEERS) benchmarks/train.py --peer-python $(PEERS)/bin/python
	XLA_FLAGS=--xla_gpu_enable_triton_gemm=false .venv/bin/python benchmarks/train_gpu.py --profile

bench-sample: setup-test $(PEERS)/.installed  ## Measures sampling beside PyTorch's, gm-mini, and a GPU
	$(BESIDE_PEERS) benchmarks/sample.py --peer-python $(PEERS)/bin/python
	.venv/bin/python benchmarks/sample_int8.py
	$(BESIDE_PEERS) benchmarks/codec.py --peer-python $(PEERS)/bin/python
	.venv/bin/python benchmarks/sample_gpu.py
