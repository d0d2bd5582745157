# Compiles csrc/cuda/*.cu for each of ARCHS with nvcc, which needs no GPU, and reports what each kernel uses;
# of sm_90a also what the loops of the memory-bound ones cost (tools/sass_budget.py). WRITE=--write records it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

ARCHS ?= 80 86 89 90a 100a 120
PYTHON ?= python3
NVCC ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc $(CUDA_PATH)/bin/nvcc /usr/local/cuda/bin/nvcc) $(shell command -v nvcc))
OUT := build/archs
KERNELS := $(sort $(wildcard csrc/cuda/*.cu))
LOGS := $(foreach arch,$(ARCHS),$(KERNELS:csrc/cuda/%.cu=$(OUT)/sm_$(arch)/%.log))
FLAGS := -std=c++20 -O3 -Icsrc --expt-relaxed-constexpr -Werror=all-warnings -Xptxas=-v -Xcompiler=-ffp-contract=off,-Wall

.PHONY: report
ifeq ($(NVCC),)
report:
	@echo "no nvcc found (CUDA_HOME, PATH): the kernels are not compiled here"
else ifeq ($(KERNELS),)
report:
	@echo "no kernels under csrc/cuda"
else
report: $(LOGS)
	@$(PYTHON) tools/kernel_resources.py $(LOGS)
	$(if $(filter 90a,$(ARCHS)),@$(PYTHON) tools/sass_budget.py $(OUT)/sm_90a $(WRITE))
	@$(PYTHON) tools/kernel_table.py $(NVCC) $(LOGS) $(WRITE)
endif

# nvcc writes ptxas' findings to stderr, where the reader of a failed compilation wants them too.
define compile_for
$(OUT)/sm_$(1)/%.log: csrc/cuda/%.cu tools/archs.mk
	@mkdir -p $$(@D) && echo "nvcc sm_$(1) $$<"
	@$(NVCC) $(FLAGS) -arch=sm_$(1) -MD -MF $$(@:.log=.d) -MT $$@ -c $$< -o $$(@:.log=.o) 2> $$@ || { cat $$@; exit 1; }
endef
$(foreach arch,$(ARCHS),$(eval $(call compile_for,$(arch))))

-include $(LOGS:.log=.d)
