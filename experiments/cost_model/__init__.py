"""The cost model: what formulas say about a point before anything is measured."""
