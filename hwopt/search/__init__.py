"""Search: which version of a profile is the best that keeps its requirements.

``subject`` says what is searched, ``perform`` tries one version, ``samplers`` choose the next, ``lead`` decides,
``crews`` do the work: here, on other machines over a shared database, or in a Ray cluster.
"""
