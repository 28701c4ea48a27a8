"""Which release changed the verdict: bisection over releases that are installed, or whose kernels are compiled.

search.py is the search and knows nothing but a judge; versions.py lists releases, record.py keeps every trial on disk,
installed.py and compiled.py bring a release here, by_case.py judges it.
"""
