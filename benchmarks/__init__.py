# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: blocklayer beside its peers, in one run, with the answers checked.

`python -m benchmarks [names...]` runs them. `harness` says how a comparison is measured, `machine`
where it ran, `images` what was read; each `bench_*.py` is one topic. Nothing in `src/` imports
from here.
"""
