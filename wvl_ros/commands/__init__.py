"""Commands of `wvl` that belong to no other part."""
