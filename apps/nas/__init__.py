"""Architecture search on a proxy: rank networks by training each on a tiny set, and judge the ranking."""
