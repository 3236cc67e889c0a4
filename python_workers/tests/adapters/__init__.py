"""Tests of the adapters, against a node played on a socket."""
