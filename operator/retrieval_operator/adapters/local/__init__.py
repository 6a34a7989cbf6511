"""Adapters for one machine: objects in files, programs as supervised processes, one loopback address per model.

Nothing is imported here: the wrapper and the proxy live in this package and must start in milliseconds.
"""
