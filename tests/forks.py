"""Processes that are forks of one which has loaded the libraries: loading them takes longer than most tests."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "datasets", "accelerate", "transformers.models.auto.modeling_auto", "evaluate"])
