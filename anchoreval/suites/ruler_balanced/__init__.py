"""RULER with answers spread evenly over depths and needles."""
