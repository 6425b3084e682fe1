"""What formulas say of a point before anything is measured."""
