"""The code that all methods share, so that the comparison is fair. Nothing here depends on a particular method."""

from common.runtime.threads import bound_spinning

bound_spinning()  # here, since it must come before any module that loads torch
