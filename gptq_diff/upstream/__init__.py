"""Kernels of any release, compiled from its source distribution without installing it.

archive.py reads it, select.py keeps the few files that matter, pack.py stores them, installer.py and index.py fetch,
plan.py says how they are compiled, compile.py does so in a process of its own that build.py starts, store.py keeps the
result. Nothing of upstream's is kept in this repository; bindings/ is ours.
"""
