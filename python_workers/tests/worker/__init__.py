"""Tests of the worker's runtime, against a node played on a socket."""
