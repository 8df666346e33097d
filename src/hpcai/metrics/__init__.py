"""From rows to numbers: one row a case -> estimates, each with its interval and n. numpy only, no torch."""
