"""Measuring, and showing what was measured.

``timing`` has the clocks and the one timing loop, ``machine`` the devices, ``runs`` what is run.
``sweep`` with ``budget`` and ``figure3`` serves ``mbt-fast profile``; ``recommend`` with
``comparison`` serves ``mbt-fast bench``; ``trace`` writes traces. ``plots`` and ``page`` are for
other programs too.
"""
