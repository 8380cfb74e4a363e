"""Measuring, and showing what was measured.

``timing`` has the clocks and the one timing loop, ``measurement`` measures calls within a time,
``machine`` knows the devices, ``runs`` what is run. ``sweep`` with ``plan`` serves ``mbt-fast
profile``; ``sweep_table``, ``sweep_page``, ``budget`` and ``figure3`` show it. ``recommend`` with
``op_calls`` and ``comparison`` serves ``mbt-fast bench``; ``trace`` writes traces.
``plots`` and ``page`` are for other programs too.
"""
